from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.optimizers import Adam
from driftline.learners.renewers import ContinualBackprop, find_unit_groups
from driftline.learners.renewers.utility import UTILITIES


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def stream(steps, shape=(4,), size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(steps, size, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (steps, size), generator=generator)


def mlp(seed=0, **given):
    return models.mlp(4, classes=3, hidden=(8, 6), seed=seed, **given).double()


def convnet(seed=0):
    return models.convnet((1, 4, 4), classes=3, width=3, seed=seed).double()


def learn(model, optimizer, renewer, data, after=lambda: None):
    for x, y in zip(*data):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if renewer is not None:
            renewer.renew(model, optimizer)
        after()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("make", [mlp, convnet])
def test_a_rate_of_zero_is_no_renewer_bit_for_bit(make):
    data = stream(60, (4,) if make is mlp else (1, 4, 4))
    renewed, plain = make(), make()
    learn(plain, sgd(plain), None, data)
    learn(renewed, sgd(renewed), ContinualBackprop(renewed, replacement_rate=0.0, maturity=1), data)
    assert same(renewed, plain)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("utility", UTILITIES)
def test_renewals_are_as_many_as_declared_and_never_before_maturity(utility, accumulate, variant):
    model = mlp()
    renewer = ContinualBackprop(
        model, 1 / 64, maturity=7, utility=utility, accumulate=accumulate, variant=variant, decay=0.9
    )
    births = [traces.birth.clone() for traces in renewer.traces]
    eligible, renewed = [0, 0], [0, 0]

    def after():
        for i, traces in enumerate(renewer.traces):
            old = renewer.step - births[i] > 7
            new = traces.birth == renewer.step
            assert not (new & ~old).any()
            eligible[i] += int(old.sum())
            renewed[i] += int(new.sum())
            births[i] = traces.birth.clone()

    learn(model, sgd(model), renewer, stream(200), after)
    if accumulate:
        assert renewed == [math.floor(n / 64) for n in eligible] and min(renewed) > 5
    else:  # as many in expectation; five standard deviations of that many coins
        assert renewed == pytest.approx([n / 64 for n in eligible], abs=5 * math.sqrt(max(eligible) / 64))


def test_the_least_useful_units_are_renewed():
    model = mlp()
    renewer = ContinualBackprop(model, replacement_rate=1.0, maturity=3)
    (x, y), optimizer = stream(4), sgd(model)
    learn(model, optimizer, renewer, (x[:3], y[:3]))
    renewer.schedule.counters[0][0].rate = 3 / 8
    expected = ranks_after_next_step(copy.deepcopy((model, renewer)), x[3], y[3]).sort(stable=True).indices[:3]
    learn(model, optimizer, renewer, (x[3:], y[3:]))
    assert set((renewer.traces[0].birth == 4).nonzero().flatten().tolist()) == set(expected.tolist())


def ranks_after_next_step(copied, x, y):
    model, renewer = copied
    for counters in renewer.schedule.counters:
        counters[0].rate = 0.0
    learn(model, sgd(model), renewer, ([x], [y]))
    return renewer.ranking(0, x)


def one_hidden(decay, compensate, **given):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return model, ContinualBackprop(model, 0.5, maturity=0, decay=decay, compensate=compensate, **given)


@pytest.mark.parametrize("utility", ["contribution", "zero_contribution"])
def test_the_output_changes_by_what_is_silenced_and_what_the_bias_takes_over(utility):
    model, renewer = one_hidden(decay=0.8, compensate=True, utility=utility)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = stream(1, size=6)
    learn(model, still, renewer, (x.expand(1, 6, 4), y))
    before = copy.deepcopy(model)
    births = renewer.traces[0].birth.clone()
    means = renewer.traces[0].activation.clone()
    h = before[1](before[0](x[0])).detach()
    learn(model, still, renewer, (x, y))
    gone = renewer.traces[0].birth == 2
    assert gone.sum() == 4
    mean = (0.8 * means + 0.2 * h.mean(0)) / (1 - 0.8 ** (2 - births))
    said = (h - mean)[:, gone] @ before[2].weight[:, gone].T
    # a sum of eight numbers around 1 in another order
    torch.testing.assert_close(model(x[0]), before(x[0]) - said, rtol=0, atol=1e-14)


def test_the_mean_output_of_the_batch_stays_where_its_mean_is_compensated():
    model, renewer = one_hidden(decay=0.0, compensate=True)
    x, y = stream(1, size=50)
    before = model(x[0]).detach().mean(0)
    learn(model, torch.optim.SGD(model.parameters(), lr=0.0), renewer, (x, y))
    assert (renewer.traces[0].birth == 1).sum() == 4
    torch.testing.assert_close(model(x[0]).mean(0), before, rtol=0, atol=1e-14)


@pytest.mark.parametrize("given", [{"compensate": False}, {"compensate": True, "variant": "released"}])
def test_without_compensation_no_bias_moves(given):
    model, renewer = one_hidden(decay=0.0, **given)
    x, y = stream(1, size=5)
    before = model[2].bias.clone()
    learn(model, torch.optim.SGD(model.parameters(), lr=0.0), renewer, (x, y))
    assert (renewer.traces[0].birth == 1).any() and torch.equal(model[2].bias, before)


def test_new_weights_lie_within_their_bound_and_outgoing_ones_are_zero():
    model, renewer = one_hidden(decay=0.9, compensate=True)
    learn(model, torch.optim.SGD(model.parameters(), lr=0.0), renewer, stream(1))
    new = renewer.traces[0].birth == 1
    largest = math.sqrt(2) * math.sqrt(3 / 4)
    assert (model[0].weight[new].abs() <= largest).all() and model[0].weight[new].abs().max() > 0.8 * largest
    assert not model[0].bias[new].any() and not model[2].weight[:, new].any()


def test_the_order_of_units_does_not_matter():
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    model = mlp(activation=nn.Tanh)  # silent units of ReLU would be ties, of which the first are taken
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.body[3].parameters():
            parameter.copy_(parameter[order])
        other.head.weight.copy_(model.head.weight[:, order])
    # A rate at which units are renewed one at a time: which new weights a unit gets depends on its rank.
    renewers = [ContinualBackprop(m, 0.01, maturity=5, seed=1) for m in (model, other)]
    for m, renewer in zip((model, other), renewers):
        learn(m, torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9), renewer, stream(200))
    assert (renewers[0].traces[1].birth > 0).sum() > 3
    assert torch.equal(renewers[0].traces[1].birth[order], renewers[1].traces[1].birth)
    # Sums over units in another order, through 200 steps.
    torch.testing.assert_close(model.body[3].weight[order], other.body[3].weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.head.weight[:, order], other.head.weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make_optimizer", [sgd, lambda m: Adam(m.parameters(), lr=0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("given", [{}, {"accumulate": False}, {"utility": "random"}, {"running": False}])
def test_a_state_round_trip_continues_bit_for_bit(given, make_optimizer):
    data = stream(120)
    whole = mlp()
    optimizer = make_optimizer(whole)
    renewer = ContinualBackprop(whole, 0.02, maturity=5, seed=3, **given)
    learn(whole, optimizer, renewer, [part[:70] for part in data])
    saved = io.BytesIO()
    parts = {"model": whole.state_dict(), "optimizer": optimizer.state_dict(), "renewer": renewer.state_dict()}
    torch.save(parts, saved)
    learn(whole, optimizer, renewer, [part[70:] for part in data])

    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed = mlp(seed=9)
    resumed_optimizer = make_optimizer(resumed)
    resumed_renewer = ContinualBackprop(resumed, 0.02, maturity=5, seed=4, **given)
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed_renewer.load_state_dict(state["renewer"])
    learn(resumed, resumed_optimizer, resumed_renewer, [part[70:] for part in data])
    assert same(whole, resumed)
    for one, other in zip(renewer.traces, resumed_renewer.traces):
        assert torch.equal(one.utility, other.utility) and torch.equal(one.birth, other.birth)
    assert renewer.state_dict()["schedule"] == resumed_renewer.state_dict()["schedule"]


def test_a_state_is_a_copy():
    model = mlp()
    renewer = ContinualBackprop(model, 0.02, maturity=5)
    state = renewer.state_dict()
    learn(model, sgd(model), renewer, stream(3))
    assert not state["utility"][0].any()
    renewer.load_state_dict(state)
    learn(model, sgd(model), renewer, stream(3))
    assert not state["utility"][0].any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("birth"), "continual backprop has"),
        (lambda s: s.update(layers=["other"]), r"is that of layers \['other'\], here there are \['body.1', 'body.3'\]"),
        (lambda s: s["utility"].reverse(), r"utility is that of layers of \[\(6,\), \(8,\)\] units"),
        (lambda s: s["schedule"][0].append(s["schedule"][0][0]), r"of \[2, 1\] replicas"),
    ],
)
def test_a_state_of_another_renewer_is_refused_before_any_change(change, reason):
    model = mlp()
    renewer = ContinualBackprop(model)
    learn(model, sgd(model), renewer, stream(3))
    state = ContinualBackprop(mlp()).state_dict()
    change(state)
    before = copy.deepcopy(renewer.state_dict())
    with pytest.raises(CheckpointError, match=reason):
        renewer.load_state_dict(state)
    assert str(renewer.state_dict()) == str(before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_of_model_optimizer_and_renewer_continues_alike(copied):
    data = stream(80)
    model = mlp()
    optimizer, renewer = sgd(model), ContinualBackprop(model, 0.05, maturity=5)
    learn(model, optimizer, renewer, [part[:40] for part in data])
    before = copy.deepcopy(model.state_dict())
    other, other_optimizer, other_renewer = copied((model, optimizer, renewer))
    learn(other, other_optimizer, other_renewer, [part[40:] for part in data])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    learn(model, optimizer, renewer, [part[40:] for part in data])
    assert same(model, other)


def test_predictions_do_not_count():
    data = stream(60)
    asked, left_alone = mlp(), mlp()
    for model in (asked, left_alone):
        renewer = ContinualBackprop(model, 0.05, maturity=5)

        def predict(model=model):
            if model is asked:
                with torch.no_grad():
                    model(torch.rand(7, 4, dtype=torch.float64))

        for x, y in zip(*data):
            optimizer = sgd(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            predict()
            renewer.renew(model, optimizer)
    assert same(asked, left_alone)


def test_it_is_a_part_of_a_gradient_learner():
    x, y = stream(80)
    model, other = mlp(), mlp()
    learner = GradientLearner(
        model, torch.optim.SGD(model.parameters(), lr=0.05), renewers=[ContinualBackprop(model, 0.05, maturity=5)]
    )
    for one, label in zip(x, y):
        learner.observe(one, label)
    learn(other, sgd(other), ContinualBackprop(other, 0.05, maturity=5), (x, y))
    assert same(model, other)


def test_renewing_twice_after_one_step_is_refused_before_any_change():
    model = mlp()
    renewer, optimizer = ContinualBackprop(model), sgd(model)
    learn(model, optimizer, renewer, stream(3))
    before = str(renewer.state_dict())
    with pytest.raises(ConfigError, match="no forward pass with gradients has used the units of 'body.1'"):
        renewer.renew(model, optimizer)
    assert str(renewer.state_dict()) == before


def test_closed_it_leaves_no_hooks():
    model = mlp()
    renewer = ContinualBackprop(model)
    renewer.close()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_do_not_stop_it(value):
    model = mlp()
    renewer, optimizer = ContinualBackprop(model, 0.25, maturity=2), sgd(model)
    x, y = stream(20)
    learn(model, optimizer, renewer, (x[:5], y[:5]))
    model(x[5])
    model.body[1].weight.grad = torch.full_like(model.body[1].weight, value)
    optimizer.step()
    for one in x[6:]:
        model(one)
        renewer.renew(model, optimizer)
    ages = renewer.step - renewer.traces[0].birth
    counter = renewer.schedule.counters[0][0]
    assert int((ages > 2).sum()) >= counter.eligible and counter.eligible >= 0


def test_a_unit_whose_utility_is_not_finite_is_renewed_last():
    model = mlp()
    renewer = ContinualBackprop(model, 0.5, maturity=0)
    with torch.no_grad():
        model.body[3].weight[:, :4] = math.nan
        model.body[3].weight[:, 2] = math.inf
    model(torch.rand(2, 4, dtype=torch.float64))
    renewer.renew(model, sgd(model))
    assert renewer.traces[0].birth.tolist() == [0] * 4 + [1] * 4


def test_gradients_of_zero_are_no_special_case():
    model = mlp()
    renewer, optimizer = ContinualBackprop(model, 0.25, maturity=2), sgd(model)
    for x in stream(10)[0]:
        optimizer.zero_grad()
        (0 * model(x)).sum().backward()
        optimizer.step()
        renewer.renew(model, optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (renewer.traces[0].birth > 0).any()


def test_sparse_gradients_of_other_layers_do_not_matter():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.first, self.last = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(torch.relu(self.first(self.words(x))))

    model = Words()
    with pytest.raises(ConfigError, match="'words': it is a Embedding"):
        ContinualBackprop(model)
    renewer = ContinualBackprop(model, 0.25, maturity=1, groups=find_unit_groups(model, skip=["words"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randint(0, 9, (20, 2), generator=torch.Generator().manual_seed(0))
    learn(model, optimizer, renewer, (x, stream(20)[1]))
    assert (renewer.traces[0].birth > 0).any()


def test_layers_without_bias_are_renewed():
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    renewer = ContinualBackprop(model, 0.25, maturity=1)
    learn(model, sgd(model), renewer, stream(20))
    assert (renewer.traces[0].birth > 0).any()


def test_sequences_count_each_position_as_a_sample():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    other = copy.deepcopy(model)
    renewers = [ContinualBackprop(m) for m in (model, other)]
    x = stream(1, size=6)[0][0]
    model(x)
    other(x.view(2, 3, 4))
    for m, renewer in zip((model, other), renewers):
        renewer.renew(m, sgd(m))
    assert torch.equal(renewers[0].traces[0].utility, renewers[1].traces[0].utility)


def test_under_autocast_averages_keep_the_weights_dtype():
    model = models.mlp(4, classes=3, hidden=(8,))
    renewer = ContinualBackprop(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(2, 4))
    renewer.renew(model, sgd(model))
    assert renewer.traces[0].utility.dtype == torch.float32 and renewer.traces[0].utility.any()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"replacement_rate": -0.1}, "replacement_rate=-0.1"),
        ({"replacement_rate": 1.5}, "replacement_rate=1.5: must be a number of at least 0 and at most 1"),
        ({"maturity": -1}, "maturity=-1"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"decay": [0.9, 0.99]}, "decay has 2 values, but there are no replicas"),
        ({"utility": "contributions"}, "unknown utility 'contributions'; did you mean 'contribution'"),
        ({"initialization": "he"}, "unknown initialization 'he'"),
        ({"variant": "code"}, "unknown variant 'code'"),
        ({"groups": []}, "groups is empty"),
        ({"replicas": 3}, "replicas=3, but the model has none"),
    ],
)
def test_bad_settings_are_refused_before_hooks_are_put_on(given, reason):
    model = mlp()
    with pytest.raises(ConfigError, match=reason):
        ContinualBackprop(model, **given)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"seed": 0}, "seed=0 for 3 replicas"),
        ({"seed": [0, 1]}, "seed has 2 values"),
        ({"seed": [0, 1, 2], "replacement_rate": [0.1, 0.2]}, "replacement_rate has 2 values, but there are 3"),
        ({"seed": [0, 1, 2], "replicas": 2}, "replicas=2, but the model has 3"),
    ],
)
def test_settings_of_replicas_are_one_for_each(given, reason):
    with pytest.raises(ConfigError, match=reason):
        ContinualBackprop(stack_models([mlp(seed) for seed in range(3)]), **given)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_no_device():
    model = mlp().float().cuda()
    optimizer = Adam(model.parameters(), lr=0.01)
    renewer = ContinualBackprop(model, 0.25, maturity=1)
    x, y = (part.cuda() for part in stream(10))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        learn(model, optimizer, renewer, (x.float(), y))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (renewer.traces[0].birth > 0).any()
