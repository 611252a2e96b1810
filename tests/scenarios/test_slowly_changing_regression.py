import itertools
import pickle

import pytest
import torch

from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios import slowly_changing_regression
from driftline.scenarios.slowly_changing_regression import Target
from driftline.stream.seeds import generator
from tests.scenarios.toy import toy


def slow_bits(stream, slow=15):
    """The slow bits of each period, which must not change within it."""
    patterns = []
    for segment in stream.segments:
        x = segment.dataset.x[segment.rows][:, :slow]
        assert bool((x == x[0]).all())
        patterns.append(x[0])
    return torch.stack(patterns)


def test_by_the_paper_one_slow_bit_flips_each_period():
    patterns = slow_bits(slowly_changing_regression(samples=30_000, period=300))
    changed = (patterns[1:] != patterns[:-1]).sum(1)
    assert changed.tolist() == [1] * 99
    assert (patterns[1:] != patterns[:-1]).any(0).all()


@pytest.mark.parametrize("given", [{"form": "redraw"}, {"variant": "released"}])
def test_in_the_released_form_all_slow_bits_are_drawn_anew(given):
    patterns = slow_bits(slowly_changing_regression(samples=30_000, period=300, **given))
    changed = (patterns[1:] != patterns[:-1]).float().mean()
    # Half of 99 * 15, give or take 0.013: five deviations.
    assert abs(float(changed) - 0.5) < 0.065


def test_the_other_bits_are_drawn_evenly_for_each_sample():
    stream = slowly_changing_regression(samples=20_000)
    x, _ = stream.read(0, 20_000)
    codes = (x[:, 15:] @ (2.0 ** torch.arange(5))).long()
    # 625 of each of 32, give or take 25: six deviations.
    assert bool(((torch.bincount(codes, minlength=32) - 625).abs() < 150).all())
    same = (codes[1:] == codes[:-1]).float().mean()
    assert abs(float(same) - 1 / 32) < 0.008  # 0.0012 is one deviation.


def on_by_hand(x, weights, bias, beta=0.7):
    """A unit as the paper defines it: m + 1 inputs, the last of which is always 1."""
    signs, values = [*weights, bias], [*x, 1]
    negative = sum(sign < 0 for sign in signs)
    return sum(sign * value for sign, value in zip(signs, values)) > beta * len(values) - negative


def test_targets_are_those_of_the_papers_network():
    target = Target(20, 100, 0.7, "paper", generator(5))
    x = torch.randint(2, (200, 20), generator=generator(6)).float()
    expected = []
    for row in x.tolist():
        on = [on_by_hand(row, w, b) for w, b in zip(target.weight.tolist(), target.bias.tolist())]
        expected.append(sum(o * w for o, w in zip(on, target.out.tolist())) + float(target.constant))
    assert target(x).tolist() == expected
    assert {abs(v) for v in target.weight.unique().tolist() + target.out.unique().tolist()} == {1.0}


def test_the_released_threshold_differs_where_the_constant_input_has_weight_minus_one():
    paper, released = (Target(20, 100, 0.7, variant, generator(5)) for variant in ("paper", "released"))
    x = torch.randint(2, (500, 20), generator=generator(6)).float()
    on = [x @ t.weight.T + t.bias > t.threshold for t in (paper, released)]
    assert torch.equal(on[0][:, paper.bias > 0], on[1][:, paper.bias > 0])
    often = [float(units[:, paper.bias < 0].float().mean()) for units in on]
    # At least 15 of 21 inputs must fit, against 17: more than ten times as likely.
    assert often[0] > 5 * often[1]


def test_one_target_network_holds_for_the_whole_stream_and_another_for_another_seed():
    first, again, other = (slowly_changing_regression(seed=s, samples=40_000) for s in (1, 1, 2))
    pairs = [dict(zip(map(tuple, s.datasets[0].x.tolist()), s.datasets[0].y.tolist())) for s in (first, again, other)]
    assert pairs[0] == pairs[1]
    x = torch.randint(2, (50, 20), generator=generator(0)).float()
    a, b = (Target(20, 100, 0.7, "paper", generator(s))(x) for s in (1, 2))
    assert not torch.equal(a, b)
    played = zip(*(part.tolist() for part in first.read(0, 40_000)))
    assert all(pairs[0][tuple(bits)] == number for bits, number in played)


def test_only_distinct_inputs_are_kept_and_rows_are_small_numbers():
    stream = slowly_changing_regression(samples=100_000)
    [data] = stream.datasets
    assert len(data) <= 10 * 32
    assert len(torch.unique(data.x, dim=0)) == len(data)
    assert data.y.shape == (len(data),) and data.y.dtype == torch.float32
    assert {s.rows.dtype for s in stream.segments} == {torch.int32}
    # 4 bytes a sample and the distinct inputs, give or take what pickling adds: no period carries all rows with it.
    assert len(pickle.dumps(stream)) < 100_000 * 4 + len(data) * 21 * 4 + 20_000


def test_the_last_period_may_be_shorter_and_a_shorter_stream_is_a_beginning_of_no_other():
    stream = slowly_changing_regression(samples=25, period=10)
    assert [(s.name, len(s)) for s in stream.segments] == [("period 0", 10), ("period 1", 10), ("period 2", 5)]


def test_all_bits_may_be_slow_and_inputs_may_be_long():
    x, y = slowly_changing_regression(samples=40, period=10, bits=8, slow=8).read(0, 40)
    assert len(torch.unique(x, dim=0)) <= 4 and y.shape == (40,)
    x, _ = slowly_changing_regression(samples=500, period=250, bits=62, slow=1).read(0, 500)
    assert x.shape == (500, 62)
    assert abs(float(x[:, 1:].mean()) - 0.5) < 0.02  # 0.003 is one deviation.


def test_it_takes_no_data():
    assert not slowly_changing_regression.needs_data
    with pytest.raises(ConfigError, match=r"makes its own data; call it as slowly_changing_regression\(seed=0, ...\)"):
        slowly_changing_regression(toy())
    with pytest.raises(ConfigError, match="its parameters are: samples, period, form"):
        slowly_changing_regression(sample=5)


def test_parameters_are_recorded():
    described = slowly_changing_regression(seed=4, samples=20).describe()
    assert described["seed"] == 4
    assert described["data"] == [{"name": "20 bits"}]
    assert described["parameters"]["samples"] == 20 and described["parameters"]["form"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"period": 0}, "period=0"),
        ({"bits": 63}, "bits=63: must be a whole number from 1 to 62"),
        ({"slow": 21}, "slow=21: .*an input has 20 bits"),
        ({"slow": 0}, "slow=0"),
        ({"features": 0}, "features=0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"form": "flip"}, "form='flip': must be one of 'flip_one', 'redraw'"),
        ({"variant": "fixed"}, "variant='fixed'"),
    ],
)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(ScenarioError, match=message):
        slowly_changing_regression(**given)


def test_the_best_linear_guess_leaves_what_the_released_problem_leaves():
    """The published benchmark's linear learner ends at a mean squared error of about 0.9 over 30 seeds.

    Here by least squares on 10 periods, which fits a little better than learning online does.
    """
    errors = []
    for seed in range(30):
        stream = slowly_changing_regression(seed=seed, samples=2_000, period=200, variant="released")
        x, y = stream.read(0, 2_000)
        for xs, ys in zip(x.split(200), y.split(200)):
            inputs = torch.cat([xs[:, 15:], torch.ones(200, 1)], 1)
            fit = torch.linalg.lstsq(inputs, ys.unsqueeze(1)).solution
            errors.append(float((inputs @ fit - ys.unsqueeze(1)).square().mean()))
    # 300 periods; their spread is about 0.45, so 0.1 is four deviations of the mean.
    assert 0.65 < sum(errors) / len(errors) < 0.95


def test_flips_walk_through_many_patterns():
    patterns = slow_bits(slowly_changing_regression(samples=3_000, period=30))
    assert len({tuple(p.tolist()) for p in patterns}) > 50
    assert all(len(set(group)) for _, group in itertools.groupby(patterns[:, 0].tolist()))
