from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from driftline.errors import CheckpointError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.renewers import find_unit_groups
from driftline.learners.renewers.traces import FADED, SWEEP, TRACES, Averages
from driftline.learners.renewers.utility import UTILITIES, instantaneous


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(groups, size, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(size, g.units, dtype=torch.float64, generator=generator) for g in groups] for _ in range(steps)
    ]


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", [kind for kind in UTILITIES if kind != "random"])
def test_averages_are_the_recursions_of_the_paper(kind, size):
    groups = find_unit_groups(network())
    averages = Averages(groups, kind, 0.9, running=True)
    u, f = ([torch.zeros(g.units, dtype=torch.float64) for g in groups] for _ in range(2))
    for step, heard in enumerate(batches(groups, size, 12), start=1):
        averages.update(heard, step)
        for i, (group, h) in enumerate(zip(groups, heard)):
            f[i] = 0.9 * f[i] + 0.1 * h.mean(0)
            y = instantaneous(kind, group, h, f[i] / (1 - 0.9**step)).detach()
            u[i] = 0.9 * u[i] + 0.1 * y
            # the recursion written in another way differs in the last digits
            torch.testing.assert_close(averages.layers[i].activation, f[i], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(averages.layers[i].utility.detach(), u[i], rtol=1e-12, atol=1e-14)
            ranks = averages.ranking(i, h, step).detach()
            torch.testing.assert_close(ranks, u[i] / (1 - 0.9**step), rtol=1e-11, atol=1e-13)


def test_a_young_units_average_is_corrected_for_its_own_age():
    groups = find_unit_groups(network())
    averages = Averages(groups, "contribution", 0.9, running=True)
    heard = batches(groups, 1, 1)[0]
    for step in range(1, 20):
        averages.update(heard, step)
        if step == 15:
            for name, value in (("utility", 0), ("activation", 0), ("birth", 15)):
                getattr(averages.layers[0], name)[2] = value
    # The same batch each time: corrected averages are that batch's utility, whatever the unit's age.
    expected = instantaneous("contribution", groups[0], heard[0], heard[0])
    torch.testing.assert_close(averages.ranking(0, heard[0], 19), expected.detach(), rtol=1e-12, atol=0)


def test_without_running_averages_the_current_batch_counts():
    groups = find_unit_groups(network())
    averages = Averages(groups, "contribution", 0.9, running=False)
    first, second = batches(groups, 3, 2)
    averages.update(first, 1)
    averages.update(second, 2)
    expected = instantaneous("contribution", groups[1], second[1], second[1])
    assert torch.equal(averages.ranking(1, second[1], 2), expected)
    assert not averages.layers[1].utility.any()


@pytest.mark.parametrize("decay", [0.9, [0.9, 0.5, 0.99]])
def test_each_replica_has_its_own_averages(decay):
    singles = [network() for _ in range(3)]
    together = Averages(find_unit_groups(stack_models(singles)), "contribution", decay, running=True)
    decays = decay if isinstance(decay, list) else [decay] * 3
    alone = [Averages(find_unit_groups(one), "contribution", d, running=True) for one, d in zip(singles, decays)]
    for step in range(1, 9):
        each = [batches(one.groups, 2, 1, seed=10 * step + r)[0] for r, one in enumerate(alone)]
        together.update([torch.stack(layer) for layer in zip(*each)], step)
        for own, one in zip(each, alone):
            one.update(own, step)
    for i in (0, 1):
        for name in TRACES:
            each = torch.stack([getattr(one.layers[i], name) for one in alone])
            torch.testing.assert_close(getattr(together.layers[i], name), each, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["copy", "pickle"])
def test_a_copy_continues_alone(copied):
    groups = find_unit_groups(network())
    averages = Averages(groups, "contribution", 0.9, running=True)
    first, second = batches(groups, 1, 2)
    averages.update(first, 1)
    other = copied(averages)
    before = averages.layers[0].utility.clone()
    other.update(second, 2)
    assert torch.equal(averages.layers[0].utility, before)
    averages.update(second, 2)
    for one, two in zip(averages.layers, other.layers):
        assert torch.equal(one.utility, two.utility) and torch.equal(one.activation, two.activation)


def test_averages_follow_the_model_to_another_dtype():
    model = network()
    groups = find_unit_groups(model)
    averages = Averages(groups, "contribution", 0.9, running=True)
    heard = batches(groups, 1, 1)[0]
    averages.update(heard, 1)
    model.float()
    averages.update(heard, 2)
    assert averages.layers[0].utility.dtype == torch.float32
    assert averages.layers[0].birth.dtype == torch.int64


def test_silent_units_do_not_fade_to_subnormal_numbers():
    model = network().float()
    groups = find_unit_groups(model)
    averages = Averages(groups, "contribution", 0.9, running=True)
    for layer in averages.layers:
        layer.utility.fill_(FADED / 2)
        layer.activation.fill_(-1.0)
    silent = [torch.zeros(1, g.units) for g in groups]
    averages.update(silent, SWEEP - 1)
    assert averages.layers[0].utility.all()
    averages.update(silent, SWEEP)
    assert not averages.layers[0].utility.any() and averages.layers[0].activation.all()


def test_a_state_of_other_layers_is_refused():
    averages = Averages(find_unit_groups(network()), "contribution", 0.9, running=True)
    state = averages.state_dict()
    state["birth"] = state["birth"][:1]
    with pytest.raises(CheckpointError, match=r"birth is that of layers of \[\(5,\)\] units, here there are"):
        averages.check_state(state)
