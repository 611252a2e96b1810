import pytest
import torch

from driftline.errors import ScenarioError
from driftline.scenarios import fade, gradual
from driftline.stream import Segment, Stream
from tests.golden import golden
from tests.scenarios.toy import class_sets, rows, toy


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def two(length=400):
    everything = Segment.of(toy(samples=2 * length, classes=2))
    return everything.classes(0).named("old"), everything.classes(1).named("new")


@pytest.mark.parametrize("shape", ["linear", "sigmoid"])
def test_each_sample_is_played_once_and_each_segment_in_its_own_order(shape):
    old, new = two()
    played = torch.cat([s.rows for s in fade(old, new, width=0.7, rng=rng(), shape=shape)])
    assert sorted(played.tolist()) == sorted([*old.rows.tolist(), *new.rows.tolist()])
    for segment in (old, new):
        assert torch.equal(played[torch.isin(played, segment.rows)], segment.rows)


def test_three_segments_have_two_transitions_of_the_stated_width():
    parts = [Segment.of(toy()).take(20, 20 * i).named("abc"[i]) for i in range(3)]
    played = fade(*parts, width=0.4, rng=rng())
    assert [(s.name, len(s)) for s in played] == [("a", 16), ("a > b", 8), ("b", 12), ("b > c", 8), ("c", 16)]


def test_full_width_leaves_no_inner_segment_pure():
    parts = [Segment.of(toy()).take(20, 20 * i) for i in range(3)]
    assert [len(s) for s in fade(*parts, width=1, rng=rng())] == [10, 20, 0, 20, 10]


def test_zero_width_is_a_cut():
    old, new = two()
    assert [s.rows.tolist() for s in fade(old, new, width=0, rng=rng())] == [old.rows.tolist(), new.rows.tolist()]


def share_of_new(shape, repeats=200, length=100):
    """Mean share of the second segment at each place of a transition as long as both."""
    old, new = two(length)
    total = torch.zeros(length)
    for seed in range(repeats):
        transition = fade(old, new, width=1, rng=rng(seed), shape=shape)[1]
        total += transition.labels()
    return total / repeats


def test_a_linear_share_grows_evenly():
    share = share_of_new("linear")
    ideal = (torch.arange(100) + 0.5) / 100
    # Five deviations of a mean of 200 draws at most, of probability near one half.
    assert float((share - ideal).abs().max()) < 5 * (0.25 / 200) ** 0.5


def test_a_sigmoid_share_is_steep_in_the_middle():
    share = share_of_new("sigmoid")
    ideal = torch.sigmoid(10 * ((torch.arange(100) + 0.5) / 100 - 0.5))
    assert float((share - ideal).abs().max()) < 5 * (0.25 / 200) ** 0.5
    assert float(share[:10].max()) < 0.1 < 0.9 < float(share[-10:].min())


def test_the_share_is_that_of_the_published_fuzzy_label_stream():
    arrays, config = golden("scenarios", "labelstream_c5_i40_f8_b4_s3")
    batch, iterations, fuzziness = config["batch_size"], config["iters_per_context"], config["fuzziness"]
    n = batch * iterations
    boundary = iterations * 3 // 2
    published = torch.as_tensor(arrays["fuzzy_probs"])[boundary - fuzziness : boundary + fuzziness, 2]
    old, new = two(n)
    repeats = 400
    total = torch.zeros(len(published))
    for seed in range(repeats):
        transition = fade(old, new, width=2 * fuzziness / iterations, rng=rng(seed))[1]
        total += transition.labels().view(-1, batch).float().mean(1)
    # Five deviations of a mean of 400 x 4 draws.
    assert float((total / repeats - published).abs().max()) < 5 * (0.25 / (repeats * batch)) ** 0.5


def test_classes_of_gradual_tasks_are_disjoint_outside_transitions():
    stream = gradual(toy(samples=200, classes=4), tasks=2, order=[3, 1, 0, 2])
    sets = {s.name: c for s, c in zip(stream.segments, class_sets(stream))}
    assert sets == {"task 0": {1, 3}, "task 0 > task 1": {0, 1, 2, 3}, "task 1": {0, 2}}
    assert sorted(rows(stream)) == list(range(200))


def test_domains_fade_too():
    stream = gradual(toy(), by="domains", domains="inversion", width=0.5)
    assert [(s.name, len(s)) for s in stream.segments] == [("as is", 45), ("as is > inverted", 30), ("inverted", 45)]
    transition = stream.segments[1]
    x = Stream([transition]).read(0, 30)[0]
    data = transition.dataset.x[transition.rows]
    inverted = transition.which == 1
    assert torch.equal(x[inverted], 1 - data[inverted])
    assert torch.equal(x[~inverted], data[~inverted])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 1.5}, r"width=1.5: must be a number from 0 to 1"),
        ({"shape": "cosine"}, r"must be one of 'linear', 'sigmoid'"),
        ({"by": "labels"}, r"by='labels': must be one of 'classes', 'domains'"),
        ({"tasks": 9}, r"toy has 5 classes"),
    ],
)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(ScenarioError, match=message):
        gradual(toy(), **given)
    with pytest.raises(ScenarioError, match="at least one segment"):
        fade(width=0.5, rng=rng())
