import pytest
import torch

from driftline.errors import ScenarioError
from driftline.scenarios import drifting_regression


def truth(stream, start, stop):
    """Coefficients by least squares, which is exact without noise where they do not move."""
    x, y = stream.read(start, stop)
    return torch.linalg.lstsq(x.double(), y.double().unsqueeze(1)).solution.squeeze(1)


def test_without_shift_the_coefficients_stay_and_have_the_norm_asked_for():
    stream = drifting_regression(samples=300, dimension=6, shift=0.0, noise=0.0, distance=2.5)
    first, last = truth(stream, 0, 100), truth(stream, 200, 300)
    assert torch.allclose(first, last, atol=1e-5)
    assert float(first.norm()) == pytest.approx(2.5, abs=1e-5)


def test_coefficients_move_as_far_as_is_said_in_each_segment():
    """In one dimension every sample tells the coefficient."""
    stream = drifting_regression(samples=90, dimension=1, shift=[0.0, 0.5, 0.25], noise=0.0)
    x, y = stream.read(0, 90)
    moves = y / x.squeeze(1)
    steps = moves.diff().abs()
    # A quotient of float32 numbers loses digits where the input is small.
    assert steps[:29].max() < 1e-3
    assert torch.allclose(steps[30:59], torch.tensor(0.5), atol=5e-3)
    assert torch.allclose(steps[60:], torch.tensor(0.25), atol=5e-3)
    assert [len(segment) for segment in stream.segments] == [30, 30, 30]


def test_a_random_walk_goes_as_far_as_its_squares_add_up_to():
    ends = []
    for seed in range(40):
        stream = drifting_regression(seed=seed, samples=600, dimension=4, shift=0.1, noise=0.0, distance=0.0)
        x, y = stream.read(592, 600)
        ends.append(float((truth_near(x, y) ** 2).sum()))
    # 600 moves of 0.1: an expected squared distance of 6; with 40 walks a standard error of 0.7.
    assert sum(ends) / 40 == pytest.approx(6, abs=2.8)


def truth_near(x, y):
    return torch.linalg.lstsq(x.double(), y.double().unsqueeze(1)).solution.squeeze(1)


def test_noise_is_what_is_asked_for():
    stream = drifting_regression(samples=20_000, dimension=2, shift=0.0, noise=0.3)
    x, y = stream.read(0, 20_000)
    residual = y - x @ truth(stream, 0, 20_000).float()
    assert float(residual.std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"samples": 2, "shift": [0.1, 0.2, 0.3]}, "there are 3 segments"),
        ({"dimension": 0}, "dimension=0"),
        ({"shift": -1.0}, "shift=-1"),
        ({"shift": []}, "give one for each segment"),
        ({"shift": "much"}, "shift='much'"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"distance": -1}, "distance=-1"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(ScenarioError, match=message.replace("[", r"\[")):
        drifting_regression(**given)
