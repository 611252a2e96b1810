import pytest
import torch
from torch import nn

from driftline.adapters import SlidingWindow, Source, Tent
from driftline.errors import CheckpointError, ConfigError, InputError
from tests.adapters.recorded import Recorded
from tests.adapters.trained import shifted, source_model

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_it_adapts_once_all_samples_are_new():
    adapter = SlidingWindow(Tent(Recorded(), lr=0.01), size=4)
    adapted = []
    for x in X:
        adapter.adapt(x[None])
        adapted.append(adapter.adapted)
    assert adapted == [False, False, False, True] * 3


def test_single_samples_adapt_the_model_as_batches_do():
    singly, together = SlidingWindow(Tent(Recorded(), lr=0.01), size=4), None
    together = Tent(singly.network(), lr=0.01)
    for batch in X.split(4):
        scores = [singly.adapt(x[None]) for x in batch]
        expected = together.adapt(batch)
        torch.testing.assert_close(scores[-1], expected[-1:])
    torch.testing.assert_close(singly.network().state_dict(), together.model.state_dict())


def test_large_batches_are_handed_on():
    adapter = SlidingWindow(Tent(Recorded(), lr=0.01), size=4)
    expected = Tent(adapter.network(), lr=0.01).adapt(X)
    adapter.adapt(X[:1])
    torch.testing.assert_close(adapter.adapt(X), expected)
    assert adapter.window.shape == X[:4].shape


def test_reset_empties_the_window():
    adapter = SlidingWindow(Tent(Recorded()), size=4)
    adapter.adapt(X[:1])
    adapter.reset()
    assert adapter.window is None and adapter.fresh == 0


def test_tent_on_single_samples_is_better_in_a_window():
    x, y = shifted()
    x, y = x[:600], y[:600]
    bare, windowed = Tent(source_model(), lr=0.01), SlidingWindow(Tent(source_model(), lr=0.01), size=50)
    wrong = {}
    for name, adapter in {"bare": bare, "windowed": windowed}.items():
        found = torch.cat([adapter.adapt(sample[None]).argmax(1) for sample in x])
        wrong[name] = float((found != y)[-300:].float().mean())
    # Measured: 0.18 and 0.09. An image of 8x8 is normalised by itself without a window.
    assert wrong["windowed"] < 0.7 * wrong["bare"], wrong


def test_tent_collapses_on_single_samples_and_not_in_a_window():
    x, y = (part[:600] for part in shifted())
    right = {}
    for name, adapter in {
        "bare": Tent(source_model(), lr=0.03),
        "windowed": SlidingWindow(Tent(source_model(), lr=0.03), size=50),
    }.items():
        found = torch.cat([adapter.adapt(sample[None]).argmax(1) for sample in x]) == y
        right[name] = float(found[-300:].float().mean())
    # Measured: 0.11 and 0.90.
    assert right["bare"] < 0.3 and right["windowed"] > 0.85, right


def test_what_it_says_of_itself_does_not_change_as_it_meets_samples():
    adapter = SlidingWindow(Source(nn.Linear(4, 3)), size=8)
    before = adapter.describe()
    adapter.adapt(torch.randn(3, 4))
    assert adapter.describe() == before
    assert set(before["parameters"]) == {"size", "inner"} and before["parameters"]["size"] == 8


def test_a_refused_batch_leaves_the_window_alone():
    adapter = SlidingWindow(Tent(Recorded()), size=4)
    adapter.adapt(X[:2])
    with torch.no_grad():
        adapter.network().fc.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X[2:4])
    assert torch.equal(adapter.window, X[:2]) and adapter.fresh == 2


def test_a_state_of_a_larger_window_is_refused():
    model = nn.Linear(4, 3)
    large, small = SlidingWindow(Source(model), 8), SlidingWindow(Source(model), 4)
    large.adapt(torch.randn(6, 4))
    with pytest.raises(CheckpointError, match="window"):
        small.load_state_dict(large.state_dict())


@pytest.mark.parametrize("size", [1, 2.5])
def test_settings_out_of_range_are_refused(size):
    with pytest.raises(ConfigError, match="size"):
        SlidingWindow(Source(nn.Linear(4, 3)), size)
