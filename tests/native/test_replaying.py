from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch.nn import functional as F

from driftline import models, native
from driftline.errors import InputError
from driftline.learners import ClassBalancedReplay, GradientLearner, ReservoirReplay, SlidingReplay
from driftline.learners.losses import squared_error
from driftline.learners.optimizers import UPGD
from driftline.learners.renewers import ContinualBackprop
from driftline.native import replaying
from driftline.native.replaying import Replaying

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler here, or switched off")

INPUTS, OUTPUTS = 6, 4
SGD = functools.partial(torch.optim.SGD, lr=0.05)


def samples(count, labels=True):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, INPUTS, generator=generator)
    if labels:
        return x, torch.randint(OUTPUTS, (count,), generator=generator)
    return x, torch.randn(count, OUTPUTS, generator=generator)


def learner(memory, optimizer=SGD, renewers=(), **settings):
    model = models.mlp(INPUTS, classes=OUTPUTS, hidden=(8,), seed=0)
    settings = {"loss": F.cross_entropy, "compile": True, **settings}
    made = [make(model) for make in renewers]
    return GradientLearner(model, optimizer(model.parameters()), replay=memory and memory(), renewers=made, **settings)


def observed(trained, x, y, batch_size):
    return torch.cat([trained.observe(*part) for part in zip(x.split(batch_size), y.split(batch_size))])


def assert_agree(make, x, y, batch_size, cuts=(1, 40, 47)):
    """One learner takes all eager steps, the other alternates: compiled, eager, compiled, eager."""
    one, other = make(), make()
    expected = observed(one, x, y, batch_size)
    found = []
    for i, part in enumerate(zip(*(t.tensor_split([c * batch_size for c in cuts]) for t in (x, y)))):
        found.append(other.observe_each(*part, batch_size) if i % 2 == 0 else observed(other, *part, batch_size))
    # Sums of float32 in another order; draws and what is kept are the same, bit by bit.
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=2e-5)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-4, atol=2e-5)
    assert one.position == other.position == len(x)
    if one.replay is not None:
        kept, others = one.replay.state_dict(), other.replay.state_dict()
        assert kept.keys() == others.keys()
        for name, value in kept.items():
            assert torch.equal(value, others[name]) if isinstance(value, torch.Tensor) else value == others[name]


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("memory", [ReservoirReplay, SlidingReplay, ClassBalancedReplay])
def test_compiled_and_eager_steps_alternate_with_any_memory(memory, batch_size):
    make = functools.partial(learner, functools.partial(memory, 30, seed=3))
    assert_agree(make, *samples(90 * batch_size - batch_size // 2), batch_size)


@pytest.mark.parametrize(("ratio", "count"), [(2, None), (3, 5), (1, 50)])
def test_more_updates_and_more_replayed_samples_agree(ratio, count):
    make = functools.partial(learner, functools.partial(ReservoirReplay, 40), replay_ratio=ratio, replay_batch=count)
    assert_agree(make, *samples(240), batch_size=3)


def test_several_updates_without_a_memory_agree():
    assert_agree(functools.partial(learner, None, replay_ratio=2), *samples(240), batch_size=3)


def test_targets_that_are_numbers_agree():
    make = functools.partial(learner, functools.partial(ReservoirReplay, 40), loss=squared_error)
    assert_agree(make, *samples(240, labels=False), batch_size=3)


def test_other_optimizers_and_renewers_agree():
    make = functools.partial(
        learner,
        functools.partial(ReservoirReplay, 40),
        optimizer=functools.partial(UPGD, lr=0.02, sigma=0.001, seed=2),
        renewers=[lambda model: ContinualBackprop(model, replacement_rate=0.01, maturity=10, seed=4)],
    )
    assert_agree(make, *samples(240), batch_size=3)


def test_blocks_of_rows_make_no_difference(monkeypatch):
    x, y = samples(200)
    whole, pieces = (learner(functools.partial(ReservoirReplay, 20)) for _ in range(2))
    expected = whole.observe_each(x, y, 4)
    monkeypatch.setattr(replaying, "ROWS", 24)
    assert torch.equal(pieces.observe_each(x, y, 4), expected)
    assert torch.equal(pieces.replay.state_dict()["x"], whole.replay.state_dict()["x"])


def test_what_the_model_cannot_use_is_refused_before_anything_is_drawn():
    trained = learner(functools.partial(ReservoirReplay, 20))
    trained.observe_each(*samples(50), 5)
    before = copy.deepcopy(trained.replay.state_dict())
    trained.trusted = True
    with pytest.raises(InputError, match="labels must lie in 0 .. 3"):
        trained.observe_each(samples(10)[0], torch.full((10,), 4), 5)
    after = trained.replay.state_dict()
    assert torch.equal(before["rng"], after["rng"]) and before["seen"] == after["seen"]


def test_each_update_draws_from_what_was_kept_before_its_batch():
    runs = list(Replaying(SlidingReplay(2), ratio=2).runs(torch.eye(4), torch.arange(4), batch_size=2))
    assert [(run.size, run.new, run.updates) for run in runs] == [(2, 2, 2), (4, 2, 2)]
    assert runs[0].y.tolist() == [0, 1, 0, 1]
    updates = runs[1].y.view(2, 4)
    assert updates[:, :2].tolist() == [[2, 3], [2, 3]] and updates[:, 2:].sort().values.tolist() == [[0, 1], [0, 1]]
