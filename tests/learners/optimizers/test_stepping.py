import functools

import pytest
import torch
from torch.optim import optimizer as of_torch
from torch.optim.lr_scheduler import StepLR

from driftline.learners.lockstep.optimizer import RatePerReplica
from driftline.learners.optimizers import UPGD, PerturbedSGD, WeightClipping
from driftline.learners.optimizers.stepping import take_step


def parameter():
    p = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
    p.grad = torch.linspace(1, 2, 6).view(2, 3)
    return p


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam([p], lr=0.1),
    "UPGD": lambda p: UPGD([p], lr=0.1),
    "PerturbedSGD": lambda p: PerturbedSGD([p], lr=0.1, seed=3),
    "WeightClipping": lambda p: WeightClipping(torch.optim.SGD([p], lr=0.1)),
    "RatePerReplica": lambda p: RatePerReplica(torch.optim.SGD([p], lr=1.0), lr=[0.1, 0.2]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_optimizers_own(name):
    ours, theirs = parameter(), parameter()
    mine, other = OPTIMIZERS[name](ours), OPTIMIZERS[name](theirs)
    for _ in range(3):
        take_step(mine)
        other.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, parameter())
    assert ours.requires_grad and torch.is_grad_enabled()


def test_hooks_are_called_whenever_they_were_registered():
    called = []
    sgd = torch.optim.SGD([parameter()], lr=0.1)
    take_step(sgd)
    handles = [
        sgd.register_step_pre_hook(lambda *_: called.append("before")),
        sgd.register_step_post_hook(lambda *_: called.append("after")),
        of_torch.register_optimizer_step_pre_hook(lambda *_: called.append("before any")),
        of_torch.register_optimizer_step_post_hook(lambda *_: called.append("after any")),
    ]
    take_step(sgd)
    assert called == ["before any", "before", "after", "after any"]
    for handle, left in zip(
        handles, (["before any", "after", "after any"], ["before any", "after any"], ["after any"])
    ):
        handle.remove()
        called.clear()
        take_step(sgd)
        assert called == left
    handles[-1].remove()
    called.clear()
    take_step(sgd)
    assert not called


def test_a_profiler_finds_its_entry():
    sgd = torch.optim.SGD([parameter()], lr=0.1)
    with torch.profiler.profile() as profile:
        take_step(sgd)
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}


def test_a_scheduler_sees_the_step(recwarn):
    sgd = torch.optim.SGD([parameter()], lr=0.1)
    schedule = StepLR(sgd, 1)
    take_step(sgd)
    schedule.step()
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_a_step_that_somebody_wrapped_is_called_as_it_is(monkeypatch):
    class Own(torch.optim.SGD):
        pass

    steps = []
    own = Own([parameter()], lr=0.1)

    def counted(optimizer, plain=Own.step):
        steps.append(optimizer)
        return plain(optimizer)

    monkeypatch.setattr(Own, "step", functools.wraps(Own.step)(counted))
    take_step(own)
    assert steps == [own]
