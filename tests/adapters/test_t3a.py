import pytest
import torch
from torch import nn

from driftline.adapters import T3A
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import LOGITS, Case, Recorded
from tests.golden import golden_names

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", golden_names("adapters", "t3a_*"))
def test_recorded(name):
    case = Case(name)
    adapter = T3A(case.model(), case.hparams["filter_K"], variant="released")
    counts = []
    case.play(adapter, to=lambda scores: counts.append(int(adapter.entropy.isfinite().sum())) or scores)
    assert counts == case.arrays["extra/num_supports"].tolist()
    entropies = [row[row.isfinite()].sort().values for row in adapter.entropy]
    wanted = case.arrays["extra/entropy"].to(entropies[0])
    torch.testing.assert_close(torch.cat(entropies), wanted, rtol=0, atol=LOGITS[case.dtype])


def test_all_means_all_by_the_paper():
    adapter = T3A(Recorded(), -1)
    for _ in range(20):
        adapter.adapt(X)
    assert int(adapter.entropy.isfinite().sum()) == 10 + 20 * len(X)


def test_predict_does_not_let_its_samples_join():
    adapter = T3A(Recorded(), 5)
    first = adapter.predict(X)
    assert torch.equal(first, adapter.predict(X))
    assert not torch.equal(first, adapter.adapt(X))


def test_single_samples_give_the_same_supports_as_batches():
    together = T3A(Recorded(), 3)
    singly = T3A(together.model, 3)
    together.adapt(X)
    for x in X:
        singly.adapt(x[None])
    torch.testing.assert_close(together.predict(X), singly.predict(X))


def test_nan_activations_change_nothing():
    model = Recorded()
    adapter = T3A(model)
    with torch.no_grad():
        adapter.model.conv1.weight[0] = float("nan")
    before = adapter.supports.clone()
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert torch.equal(before, adapter.supports)


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(ConfigError, match="classifier="):
        T3A(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)))
    with pytest.raises(InputError, match="classifier="):
        T3A(nn.Sequential(nn.Linear(4, 3), nn.Softplus())).adapt(torch.randn(5, 4))


@pytest.mark.parametrize("settings", [{"filter_k": 0}, {"filter_k": -2}, {"variant": "fast"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        T3A(Recorded(), **settings)
