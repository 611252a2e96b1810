from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import driftline
from driftline.errors import ConfigError
from driftline.learners import GradientLearner, in_lockstep, squared_error
from driftline.learners.schedules import StepSizes, convex_step_sizes, regression_step_sizes
from driftline.metrics import OnlineError
from driftline.models import mlp


def linear(**given):
    model = mlp(3, 2, (), seed=0)
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=1.0), **given)


def data(step, size=4):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(size, 3, generator=draw), torch.randint(2, (size,), generator=draw)


def lr(learner):
    return learner.optimizer.param_groups[0]["lr"]


def test_each_update_takes_the_next_step_size_and_the_last_one_stays():
    learner = linear(schedule=partial(StepSizes, rates=[0.5, 0.25, 0.125]))
    seen = []
    for step in range(5):
        before = learner.model.head.weight.clone()
        learner.learn(*data(step))
        weight = learner.model.head.weight
        seen.append(((before - weight) / weight.grad).mean().item())
    assert seen == pytest.approx([0.5, 0.25, 0.125, 0.125, 0.125], rel=1e-4)  # differences in float32


@pytest.mark.parametrize("make", [partial(StepSizes, rates=[0.5, 0.2, 0.1]), partial(CosineAnnealingLR, T_max=7)])
def test_a_learner_with_a_schedule_resumes_bit_identically(make):
    whole, first, second = (linear(schedule=make) for _ in range(3))
    for one in (whole, first):
        for step in range(3):
            one.learn(*data(step))
    second.load_state_dict(first.state_dict())
    for one in (whole, second):
        for step in range(3, 8):
            one.learn(*data(step))
    assert lr(whole) == lr(second)
    assert torch.equal(whole.model.head.weight, second.model.head.weight)


def test_a_constant_schedule_is_no_schedule():
    plain, scheduled = linear(), linear(schedule=partial(StepSizes, rates=[1.0]))
    for one in (plain, scheduled):
        for step in range(4):
            one.learn(*data(step))
    assert torch.equal(plain.model.head.weight, scheduled.model.head.weight)


@pytest.mark.parametrize("make", [lambda: StepSizes(linear().optimizer, []), lambda: regression_step_sizes([], 1.0, 3)])
def test_a_schedule_with_no_steps_is_refused(make):
    with pytest.raises(ConfigError, match="a schedule with no steps"):
        make()


def test_a_convex_schedule_with_no_steps_is_refused():
    with pytest.raises(ConfigError, match="a schedule with no steps"):
        convex_step_sizes([], 1.0, 1.0)


@pytest.mark.parametrize("rates", [[0.1, float("nan")], [-0.1], [float("inf")]])
def test_step_sizes_that_are_none_are_refused_and_the_optimizer_is_left_alone(rates):
    learner = linear()
    with pytest.raises(ConfigError, match="StepSizes: step"):
        StepSizes(learner.optimizer, rates)
    assert lr(learner) == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shift": [-0.1]}, "shift=-0.1"),
        ({"noise": -1.0}, "noise=-1"),
        ({"dimension": 0}, "dimension=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"distance": float("nan")}, "distance=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        regression_step_sizes(**{"shift": [0.1], "noise": 1.0, "dimension": 3, **given})


def test_another_optimizers_schedule_is_refused():
    with pytest.raises(ConfigError, match="another optimizer's"):
        linear(schedule=StepSizes(linear().optimizer, [0.1]))


def test_learners_with_schedules_are_stepped_side_by_side_and_say_so():
    with pytest.warns(RuntimeWarning, match="schedule"):
        both = in_lockstep([linear(schedule=partial(StepSizes, rates=[0.5, 0.1])) for _ in range(2)])
    alone = linear(schedule=partial(StepSizes, rates=[0.5, 0.1]))
    for step in range(3):
        x, y = data(step)
        both.learn(x.expand(2, -1, -1), y.expand(2, -1))
        alone.learn(x, y)
    assert torch.equal(both.predict(x.expand(2, -1, -1))[1], alone.predict(x))


def test_a_schedule_keeps_steps_from_being_compiled():
    learner = linear(schedule=partial(StepSizes, rates=[0.5]), compile=True)
    with pytest.warns(RuntimeWarning, match="a schedule has no compiled form"):
        learner.observe_each(*data(0), batch_size=2)


def test_without_shift_step_sizes_fall_like_one_over_t():
    rates = regression_step_sizes([0.0] * 2000, noise=1.0, dimension=5)
    assert all(b < a for a, b in zip(rates, rates[1:]))
    assert rates[-1] * 2000 == pytest.approx(1.0, rel=0.05)


def test_with_more_shift_step_sizes_are_larger_throughout():
    schedules = [regression_step_sizes([moved] * 300, noise=1.0, dimension=5) for moved in (0.0, 0.05, 0.2, 1.0)]
    for lower, higher in zip(schedules, schedules[1:]):
        assert all(a < b for a, b in zip(lower[1:], higher[1:]))


def test_a_burst_of_shift_raises_the_step_size_which_then_falls_again():
    rates = regression_step_sizes([0.0] * 100 + [1.0] + [0.0] * 100, noise=1.0, dimension=5)
    assert rates[101] > 3 * rates[100]
    assert rates[-1] < rates[101] / 3


def test_the_squared_distance_from_the_truth_is_as_the_recursion_says():
    """The formula's v after eight steps, against 20 000 runs of SGD."""
    d, batch, noise, moved, runs = 4, 2, 0.7, 0.3, 20_000
    rates = regression_step_sizes([moved] * 8, noise, d, batch, distance=1.0)
    draw = torch.Generator().manual_seed(0)
    error = torch.zeros(runs, d)
    error[:, 0] = 1.0
    expected = 1.0
    for rate in rates:
        x = torch.randn(runs, batch, d, generator=draw)
        residual = (x @ error.unsqueeze(2)).squeeze(2) - noise * torch.randn(runs, batch, generator=draw)
        error = error - rate * (x * residual.unsqueeze(2)).mean(1)
        direction = torch.nn.functional.normalize(torch.randn(runs, d, generator=draw), dim=1)
        error = error + moved * direction
        expected = (
            expected * (1 - 2 * rate + rate**2 * (batch + d + 1) / batch) + rate**2 * d * noise**2 / batch + moved**2
        )
    # The standard error of the mean is about 0.5 %.
    assert float((error**2).sum(1).mean()) == pytest.approx(expected, rel=0.03)


def regret(rates, shift, steps=400, dimension=8, seeds=6):
    """Mean squared error above the noise over a drifting regression, for one schedule."""
    total = 0.0
    for seed in range(seeds):
        stream = driftline.scenarios.drifting_regression(
            seed=seed, samples=steps, dimension=dimension, shift=shift, noise=0.5
        )
        model = torch.nn.Linear(dimension, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        learner = GradientLearner(model, optimizer, squared_error, schedule=partial(StepSizes, rates=rates))
        metric = OnlineError()
        for _ in driftline.play(stream, learner, metrics=[metric]):
            pass
        total += metric.value()["online_squared_error"] / seeds
    return total


def test_the_best_constant_step_size_rises_with_the_shift_and_the_schedule_is_as_good():
    grid, best = (0.0025, 0.01, 0.04, 0.12), []
    for shift in (0.0, 0.03, 0.4):
        found = {rate: regret([rate / 2], shift) for rate in grid}
        best.append(min(found, key=found.get))
        schedule = [rate / 2 for rate in regression_step_sizes([shift] * 400, noise=0.5, dimension=8)]
        assert regret(schedule, shift) < min(found.values()) * 1.02
    assert best == sorted(best)
    assert best[0] < best[-1]
