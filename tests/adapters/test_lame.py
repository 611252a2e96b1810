import pytest
import torch
from torch import nn

from driftline.adapters import LAME
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import Case, Recorded
from tests.golden import golden_names

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", golden_names("adapters", "lame_*"))
def test_recorded(name):
    case = Case(name)
    hparams = case.hparams
    adapter = LAME(case.model(), hparams["affinity"].lower(), hparams["knn"], hparams["force_symmetry"])
    # In float32 the rule that ends the steps may take one more or less.
    case.play(adapter, logits=5e-4 if case.dtype == "f32" else None, to=torch.exp)


def test_single_samples_with_neighbours_are_the_sources():
    model = Recorded()
    scores = LAME(model, "knn").adapt(X[:1])
    torch.testing.assert_close(scores.exp(), model.eval()(X[:1]).softmax(1))
    for affinity in ("rbf", "linear"):
        assert torch.isfinite(LAME(model, affinity).adapt(X[:1])).all()


def test_equal_samples_are_no_division_by_zero():
    for affinity in ("knn", "rbf", "linear"):
        assert torch.isfinite(LAME(Recorded(), affinity).adapt(X[:1].repeat(4, 1, 1, 1))).all()


def test_neighbours_come_to_agree():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.4, 0.0], [0.0, 0.4]]))
    # Four samples of one kind, of which one lies just on the other side of the classifier's border.
    x = torch.tensor([[1.0, 0.9], [1.0, 0.9], [1.0, 0.9], [0.98, 1.0]])
    assert model(x).argmax(1).tolist() == [0, 0, 0, 1]
    assert LAME(model, "knn", neighbours=3).adapt(x).argmax(1).tolist() == [0, 0, 0, 0]


def test_nan_activations_are_refused():
    model = Recorded()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        LAME(model).adapt(X)


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(ConfigError, match="classifier="):
        LAME(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)))
    with pytest.raises(ConfigError, match="classifier="):
        LAME(Recorded(), classifier="head")
    late = nn.Sequential(nn.Linear(4, 3), nn.Softplus())
    with pytest.raises(InputError, match="classifier="):
        LAME(late).adapt(torch.randn(5, 4))


@pytest.mark.parametrize(
    "settings", [{"affinity": "cosine"}, {"neighbours": 0}, {"steps": 0}, {"tolerance": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LAME(Recorded(), **settings)
