import json

import pytest
import torch
from torch import nn

from driftline.adapters import Source
from driftline.errors import CheckpointError, InputError
from driftline.stream import checkpoint
from tests.adapters.recorded import Recorded
from tests.golden import golden
from tests.learners.states import kept, same


def network(seed=0, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, classes))


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_adapt_and_predict_give_the_model_in_evaluation_mode():
    model = network().train()
    adapter = Source(model)
    with torch.no_grad():
        expected = network().eval()(X)
    for _ in range(3):
        assert torch.equal(adapter.adapt(X), expected) and torch.equal(adapter.predict(X), expected)
    assert not adapter.adapt(X).requires_grad


def test_scores_are_the_recorded_ones_on_a_shifting_stream():
    case, _ = golden("adapters", "source_f32")
    model = Recorded().train()
    model.load_state_dict({k[5:]: torch.from_numpy(v) for k, v in case.items() if k.startswith("init/")})
    adapter = Source(model)
    scores = torch.stack([adapter.adapt(torch.from_numpy(x)) for x in case["x"]])
    # 1e-4 is the tolerance that comes with the recorded float32 cases.
    torch.testing.assert_close(scores, torch.from_numpy(case["logits"]), rtol=0, atol=1e-4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, torch.from_numpy(case[f"final/{name}"]))


def test_nothing_about_the_model_changes():
    model = network().train()
    model[1].eval()
    adapter = Source(model)
    before, modes = kept(adapter), [module.training for module in model.modules()]
    adapter.adapt(X)
    adapter.reset()
    adapter.predict(X)
    assert same(adapter.state_dict(), before)
    assert [module.training for module in model.modules()] == modes
    assert adapter.network() is model


def test_the_mode_is_restored_after_an_error_of_the_model():
    model = network().train()
    adapter = Source(model)
    adapter.trusted = True
    with pytest.raises(RuntimeError):
        adapter.adapt(X[:, :3])
    assert all(module.training for module in model.modules())


def test_each_sample_is_scored_on_its_own():
    adapter = Source(network())
    one_by_one = torch.cat([adapter.adapt(X[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(one_by_one, adapter.adapt(X))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("x", [X * torch.nan, X[:0], X[:, :3], X.double(), X[0], [1.0]])
def test_a_batch_that_cannot_be_used_is_refused(x, warm):
    adapter = Source(network())
    if warm:
        adapter.adapt(X)
    for use in (adapter.adapt, adapter.predict):
        with pytest.raises(InputError):
            use(x)
    adapter.adapt(X)
    assert adapter.num_classes == 3 and adapter.input_shape == (4,)


def test_a_saved_state_gives_the_same_scores(tmp_path):
    one, two = Source(network(0)), Source(network(1))
    checkpoint.save(tmp_path / "state", one.state_dict())
    two.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert torch.equal(one.adapt(X), two.adapt(X))


def test_a_state_of_another_model_is_refused_and_nothing_changes():
    adapter = Source(network())
    before = kept(adapter)
    states = [
        Source(network(classes=4)).state_dict(),
        Source(nn.Linear(4, 3)).state_dict(),
        Source(nn.Sequential(*network(), nn.Linear(3, 3))).state_dict(),
        {**before, "memory": torch.zeros(1)},
    ]
    for state in states:
        with pytest.raises(CheckpointError):
            adapter.load_state_dict(state)
        assert same(adapter.state_dict(), before)


def test_the_description_is_json():
    described = json.loads(json.dumps(Source(network()).describe()))
    parameters = {"model": "Sequential", "parameters": 4 * 8 + 8 + 8 + 8 + 8 * 3 + 3}
    assert described == {"name": "Source", "parameters": parameters}
