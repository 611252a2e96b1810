import gzip
import json
from collections import Counter

import numpy as np
import pytest
import torch

from driftline.errors import CheckpointError, ConfigError, DataError, InputError
from driftline.metrics.blind import BlindClassifier, blind_accuracy, decorrelating_shift, floor_accuracy
from tests.golden import data_root, golden, golden_names

CASES = golden_names("scenarios", "blind_*")


def blocks(samples, mean, classes=10, seed=0):
    """Labels in runs of 1 to 2 * mean - 1, as a stream of short visits to random classes."""
    rng = np.random.default_rng(seed)
    labels = []
    while len(labels) < samples:
        labels += [int(rng.integers(classes))] * int(rng.integers(1, 2 * mean))
    return labels[:samples]


def shuffled(samples, classes=10, seed=0):
    return np.random.default_rng(seed).integers(classes, size=samples).tolist()


@pytest.mark.parametrize("name", CASES)
def test_released_predictions_equal_the_published_code(name):
    case, config = golden("scenarios", name)
    labels = case["labels"].tolist()
    for window, published in zip(case["ks"].tolist(), case["preds_shift0"]):
        predictions = BlindClassifier(window, config["num_classes"], variant="released").run(labels)
        assert predictions == published.tolist(), f"window {window}"


@pytest.mark.parametrize("name", CASES)
def test_released_accuracy_equals_the_recorded_near_future_accuracy(name):
    case, _ = golden("scenarios", name)
    windows = case["ks"].tolist()
    for shift, expected in zip(case["shifts"].tolist(), case["acc_near_future"].T):
        accuracy = blind_accuracy(case["labels"], shift, windows, variant="released")
        np.testing.assert_allclose([accuracy[w] for w in windows], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_default_accuracy_is_close_to_the_recorded_one_that_leaves_out_the_first_position(name):
    case, _ = golden("scenarios", name)
    labels, windows = case["labels"], case["ks"].tolist()
    for shift, expected in zip(case["shifts"].tolist(), case["acc_near_future_skip0"].T):
        accuracy = blind_accuracy(labels, shift, windows)
        for window, published in zip(windows, expected):
            # The published rule differs in the first `window` steps and on some ties of three, seldom to any effect.
            assert abs(accuracy[window] - published) <= 0.01 + window / (len(labels) - 1 - shift)


@pytest.mark.parametrize("classes", [2, 7, 200])
@pytest.mark.parametrize("window", [1, 3, 10, 64])
def test_a_prediction_is_always_among_the_most_frequent_of_the_last_labels(window, classes):
    labels = shuffled(400, classes, seed=window) + blocks(400, 5, classes, seed=window)
    predictions = BlindClassifier(window, classes).run(labels)
    for i, predicted in enumerate(predictions[1:], start=1):
        counts = Counter(labels[max(0, i - window) : i])
        assert counts[predicted] == max(counts.values())


@pytest.mark.parametrize("classes", [3, 200])
def test_ties_go_to_the_newest_label_then_stay_then_go_to_the_smallest(classes):
    def slow(labels, window):
        mode = 0
        for i, new in enumerate(labels):
            yield mode
            counts = Counter(labels[max(0, i + 1 - window) : i + 1])
            most = [c for c in counts if counts[c] == max(counts.values())]
            if new in most:
                mode = new
            elif i >= window and labels[i - window] == mode:
                mode = min(most)

    labels = shuffled(600, classes, seed=1) + blocks(600, 4, classes, seed=2) + [0, 1] * 60
    for window in (1, 2, 5, 12, 50):
        assert BlindClassifier(window, classes).run(labels) == list(slow(labels, window))


def test_the_released_variant_may_predict_a_label_that_is_not_the_most_frequent():
    paper, released = BlindClassifier(7, 3), BlindClassifier(7, 3, variant="released")
    for label in [0, 1, 1, 1, 0, 0, 2, 2]:  # the window ends as 1 1 1 0 0 2 2
        paper.learn(label)
        released.learn(label)
    assert (paper.predict(), released.predict()) == (1, 2)


def test_the_released_variant_looks_at_the_last_label_of_a_new_run_only():
    released = BlindClassifier(3, 5, variant="released")
    assert released.run([1, 2, 4])[0] == 4
    assert released.run([0, 0, 3])[0] == 4  # the window is 1 2 4


def test_learning_one_by_one_in_pieces_or_at_once_is_the_same():
    labels = shuffled(300, 4) + blocks(300, 6, 4)
    whole, pieces, single = (BlindClassifier(20, 4) for _ in range(3))
    expected = whole.run(labels)
    assert pieces.run(labels[:7]) + pieces.run([]) + pieces.run(labels[7:130]) + pieces.run(labels[130:]) == expected
    got = []
    for label in labels:
        got.append(single.predict())
        single.learn(label)
    assert got == expected
    assert single.state_dict() == pieces.state_dict() == whole.state_dict()


@pytest.mark.parametrize("stop", [0, 5, 333])
def test_a_restored_classifier_goes_on_where_the_saved_one_stopped(stop):
    labels = shuffled(500, 5)
    whole, first, second = (BlindClassifier(40, 5) for _ in range(3))
    second.run(blocks(90, 3, 5))
    start = first.run(labels[:stop])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert start + second.run(labels[stop:]) == whole.run(labels)
    assert second.state_dict() == whole.state_dict()


def test_states_of_other_classifiers_and_damaged_ones_are_refused():
    blind = BlindClassifier(4, 3)
    with pytest.raises(CheckpointError, match="window=5"):
        blind.load_state_dict(BlindClassifier(5, 3).state_dict())
    with pytest.raises(CheckpointError, match="damaged"):
        blind.load_state_dict({**blind.state_dict(), "recent": [0] * 5})
    with pytest.raises(CheckpointError, match="unknown classes"):
        blind.load_state_dict({**blind.state_dict(), "recent": [0, 3]})


def test_a_label_out_of_range_is_refused_and_changes_nothing():
    blind = BlindClassifier(4, 3)
    blind.run([1, 1, 2])
    before = blind.state_dict()
    with pytest.raises(InputError, match="label 3 at index 1"):
        blind.run([0, 3])
    with pytest.raises(InputError, match="label -1"):
        blind.learn(-1)
    assert blind.state_dict() == before


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        BlindClassifier(0, 3)
    with pytest.raises(ConfigError, match="unknown variant"):
        BlindClassifier(1, 3, variant="code")
    with pytest.raises(DataError, match="nothing to judge"):
        blind_accuracy([0, 1, 0], shift=2)
    with pytest.raises(DataError, match="nothing to judge"):
        blind_accuracy([0, 1, 0], shift=-1)
    for labels in ([], [0.5, 1.0], [[0, 1]], [0, -1]):
        with pytest.raises(DataError, match="class indices"):
            blind_accuracy(labels)


def test_a_shift_judges_the_label_that_much_further_ahead():
    labels = [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    assert blind_accuracy(labels, 0, windows=[1]) == {1: 5 / 9}
    assert blind_accuracy(labels, 1, windows=[1]) == {1: 0.0}
    assert blind_accuracy(torch.tensor(labels), 3, windows=[1]) == {1: 1.0}


def test_block_labels_decorrelate_at_about_twice_their_mean_length():
    for seed in range(5):
        labels = blocks(20_000, mean=20, seed=seed)
        assert max(blind_accuracy(labels).values()) > 0.94
        assert decorrelating_shift(labels) in (32, 64)


def test_short_streams_of_digits_like_blocks_decorrelate_at_the_same_shift():
    labels = blocks(1800, mean=20)
    assert decorrelating_shift(labels) in (32, 64)


def test_independent_labels_need_no_shift_even_when_one_class_dominates():
    assert decorrelating_shift(shuffled(5000)) == 0
    assert decorrelating_shift(torch.tensor([min(label, 3) for label in shuffled(5000)])) == 0


def test_the_shift_stays_decorrelated_at_the_next_grid_point_and_no_smaller_one_does():
    labels = blocks(6000, mean=60, seed=4)
    shift = decorrelating_shift(labels)
    limit = floor_accuracy(labels) + 0.01
    best = {s: max(blind_accuracy(labels, s).values()) for s in (shift // 4, shift // 2, shift, 2 * shift)}
    assert best[shift] <= limit and best[2 * shift] <= limit
    assert best[shift // 2] > limit


def test_only_the_prefix_counts():
    labels = shuffled(3000) + [0] * 3000
    assert decorrelating_shift(labels, prefix=3000) == 0
    assert decorrelating_shift(labels, prefix=3000) == decorrelating_shift(labels[:3000])


def test_labels_whose_runs_are_too_long_are_refused_with_what_to_do():
    with pytest.raises(DataError, match="prefix="):
        decorrelating_shift([0] * 900 + [1] * 1000)
    with pytest.raises(DataError, match="at least 4"):
        decorrelating_shift([0, 1] * 900, prefix=3)


def test_the_floor_depends_on_label_counts_only():
    labels = shuffled(2000, 4)
    assert floor_accuracy([0, 1, 1, 1]) == 0.75
    assert abs(floor_accuracy(sorted(labels)) - floor_accuracy(labels)) < 0.02  # another shuffle of the same labels
    twice = [floor_accuracy(labels, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert twice[0] == twice[1]


def test_class_sorted_real_labels_decorrelate_when_the_shift_reaches_another_class():
    path = data_root() / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    if not path.is_file():
        pytest.skip(f"MNIST labels not found at {path}")
    labels = np.frombuffer(gzip.decompress(path.read_bytes())[8:], dtype=np.uint8)[:6000]
    assert decorrelating_shift(labels) == 0
    assert decorrelating_shift(np.sort(labels)) == 1024  # about 600 samples of each class
