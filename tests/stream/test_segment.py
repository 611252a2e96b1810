from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.errors import ConfigError, DataError, ScenarioError
from driftline.stream import NEVER, Dataset, Segment, Stream, concatenate, interleave
from driftline.stream.batch import Batch
from driftline.stream.join import in_order
from tests.stream.players import add_draw, numbered


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(samples=12, **given):
    return Segment.of(numbered(samples, **given))


def shown(segment):
    """First value of every sample, as a learner sees it."""
    return Stream([segment]).read(0, len(segment))[0][:, 0].tolist()


# --- which samples, in which order


def test_classes_keep_the_order_of_the_samples():
    assert everything().classes(2, 0).rows.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert len(everything().classes()) == 0


def test_classes_are_those_presented():
    assert everything().relabel([1, 2, 0]).classes(0).rows.tolist() == [2, 5, 8, 11]
    assert everything(4).with_labels(torch.tensor([0, 0, 1, 0])).classes(1).rows.tolist() == [2]


@pytest.mark.parametrize("start, count, rows", [(0, 3, [0, 1, 2]), (10, 5, [10, 11]), (12, 1, []), (99, 3, [])])
def test_take_gives_fewer_where_there_are_fewer(start, count, rows):
    assert everything().take(count, start).rows.tolist() == rows


def test_shuffle_is_a_permutation_that_only_the_generator_decides():
    segment = everything(50)
    one, same, other = (segment.shuffle(seeded(s)).rows for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.sort().values.tolist() == list(range(50))


def test_repeat_and_batched():
    assert everything(3).repeat(2).rows.tolist() == [0, 1, 2, 0, 1, 2]
    assert [part.rows.tolist() for part in everything(5).batched(2)] == [[0, 1], [2, 3], [4]]


def test_at_takes_places_of_the_segment_and_allows_repeats():
    assert everything().classes(1).at([3, 0, 0]).rows.tolist() == [10, 1, 1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s.classes(0, 3), r"no class 3 in numbered; classes are 0\.\.2"),
        (lambda s: s.classes(-1), r"no class -1 in numbered"),
        (lambda s: s.judged_on(7), r"no class 7 in numbered"),
        (lambda s: s.take(-1), r"take\(-1, start=0\)"),
        (lambda s: s.take(1, start=-2), r"take\(1, start=-2\)"),
        (lambda s: s.repeat(0), r"repeat\(0\): must be at least 1"),
        (lambda s: s.batched(0), r"batched\(0\): must be at least 1"),
        (lambda s: s.named("a").at([12]), r"place out of range 0\.\.11 in segment 'a'"),
        (lambda s: s.at([-1]), "place out of range"),
        (lambda s: s.at(s.labels() == 1), "takes places, not a mask"),
        (lambda s: s.relabel([0, 1]), r"relabel needs 3 classes in 0\.\.2"),
        (lambda s: s.relabel([0, 1, 3]), r"relabel needs 3 classes in 0\.\.2"),
        (lambda s: s.with_labels(torch.zeros(5, dtype=torch.long)), "one label for each of the 12 rows"),
        (lambda s: s.delay_labels(-1), r"delay_labels\(-1\): a label cannot arrive before its sample"),
        (lambda s: s.label_fraction(1.1), r"label_fraction\(1\.1\): must be between 0 and 1"),
        (lambda s: s.label_fraction(float("nan")), r"label_fraction\(nan\)"),
        (lambda s: concatenate(), "concatenate needs at least one segment"),
        (lambda s: concatenate(s, everything(classes=4)), "4 classes and numbered 3; a stream has one label space"),
        (lambda s: concatenate(s, everything(width=3)), r"shape \(3,\) and torch\.float32, numbered of \(2,\)"),
        (lambda s: interleave(s, Segment.of(Dataset(s.dataset.x, None, list("abc")))), "some have labels and some"),
        (lambda s: in_order(torch.tensor([0, 1, 1]), [1, 1]), "part 1 has 1 samples, but 2 were asked for"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(ScenarioError, match=message):
        call(everything())


def test_an_unknown_corruption_is_refused_when_the_segment_is_made():
    with pytest.raises(ConfigError, match="unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'"):
        everything().corrupt("gausian_noise")


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([0, 1, 3, 0]), r"label 3 in row 2 is out of range; labels must be 0\.\.2"),
        (torch.tensor([0, -1, 0, 0]), "label -1 in row 1"),
        (torch.tensor([0.0, 1.0, 1.0, 0.0]), "class indices must be integers"),
    ],
)
def test_new_labels_are_checked_like_those_of_a_dataset(labels, message):
    with pytest.raises(DataError, match=message):
        everything(4).with_labels(labels)


def test_class_labels_need_a_dataset_with_classes():
    with pytest.raises(ScenarioError, match="class labels need classes"):
        Segment.of(Dataset(torch.zeros(2, 1))).with_labels(torch.tensor([0, 1]))
    targets = Segment.of(Dataset(torch.zeros(2, 1))).with_labels(torch.tensor([0.5, 1.5]))
    assert targets.labels().tolist() == [0.5, 1.5]


def test_scenarios_of_classes_refuse_data_without_them():
    with pytest.raises(ScenarioError, match="has no labels, which this scenario needs"):
        Segment.of(Dataset(torch.zeros(2, 1), None, ["a", "b"])).classes(1)
    with pytest.raises(ScenarioError, match="regression targets"):
        Segment.of(Dataset(torch.zeros(2, 1), torch.zeros(2))).class_labels()


# --- merging


def test_concatenate_lets_each_sample_keep_its_looks_and_label_policy():
    a, b = everything(2).transform(torch.neg), everything(2).delay_labels(5).relabel([2, 0, 1])
    joined = concatenate(a, b)
    assert shown(joined) == [0.0, -1.0, 0.0, 1.0]
    assert joined.labels().tolist() == [0, 1, 2, 0]
    assert dues(joined) == [0, 1, 7, 8]


def test_concatenate_joins_names_and_what_the_parts_are_judged_on():
    a, b = everything().named("a").judged_on(2, 0), everything().named("b").judged_on(0, 1)
    assert concatenate(a, b).name == "a+b"
    assert concatenate(a, b).judged == (2, 0, 1)


def test_interleave_spreads_each_part_evenly_in_its_own_order():
    a, b = everything(12).take(8), everything(12).take(4, start=8)
    assert interleave(a, b).rows.tolist() == [0, 8, 1, 2, 9, 3, 4, 10, 5, 6, 11, 7]


def test_interleave_at_random_keeps_each_parts_order_and_draws_in_proportion():
    a, b = everything(900).take(600), everything(900).take(300, start=600)
    rows = interleave(a, b, rng=seeded()).rows
    from_a = rows < 600
    assert rows[from_a].tolist() == list(range(600))
    assert rows[~from_a].tolist() == list(range(600, 900))
    assert abs(from_a[:300].float().mean() - 2 / 3) < 0.1  # about four standard deviations
    assert not torch.equal(rows, interleave(a, b, rng=seeded(1)).rows)


def test_an_empty_part_does_not_matter():
    whole = everything(6)
    assert interleave(whole, whole.take(0)).rows.tolist() == list(range(6))
    assert concatenate(whole.take(0), whole).rows.tolist() == list(range(6))


# --- how they look


def test_transforms_are_applied_in_the_order_given():
    segment = everything(3).transform(torch.neg).transform(torch.exp)
    assert shown(segment) == pytest.approx([1.0, 0.36787945, 0.13533528])


def test_relabelling_twice_is_the_composition():
    assert everything(3).relabel([1, 2, 0]).relabel([0, 0, 1]).labels().tolist() == [0, 1, 0]


def test_given_labels_replace_the_truth_and_earlier_relabelling():
    segment = everything(3).relabel([1, 2, 0]).with_labels(torch.tensor([2, 2, 0]))
    assert segment.labels().tolist() == [2, 2, 0]
    assert segment.relabel([1, 1, 0]).labels().tolist() == [0, 0, 1]


def test_a_corruption_is_a_random_transform_of_its_severity():
    images = Segment.of(Dataset(torch.full((40, 1, 4, 4), 0.5), torch.arange(40) % 2))
    weak, strong = (Stream([images.corrupt("gaussian_noise", s)]).read(0, 40)[0].std() for s in (1, 5))
    assert 0 < weak < strong


# --- held-out samples


def with_test():
    return everything(12, splits={"test": numbered(6, first=100, name="test")})


def test_held_out_samples_are_those_of_the_classes_that_occur_shown_in_the_same_way():
    held = with_test().classes(0, 2).transform(torch.neg).relabel([0, 2, 1]).delay_labels(9).held_out()
    assert shown(held) == [-100.0, -102.0, -103.0, -105.0]
    assert held.labels().tolist() == [0, 1, 0, 1]
    assert dues(held) is None


def test_judged_on_names_the_classes_of_the_held_out_samples():
    assert shown(with_test().classes(0).judged_on(1).held_out()) == [101.0, 104.0]
    assert with_test().judged_on().held_out() is None


def test_held_out_samples_are_undefined_without_a_split_or_with_labels_given_by_row():
    assert everything().held_out() is None
    assert with_test().held_out("validation") is None
    assert with_test().with_labels(torch.zeros(12, dtype=torch.long)).held_out() is None


def test_held_out_samples_of_mixed_domains_are_shown_in_each():
    mixed = interleave(with_test().classes(0), with_test().classes(1).transform(torch.neg))
    assert sorted(shown(mixed.held_out())) == [-104.0, -101.0, 100.0, 103.0]


def test_parts_that_differ_only_in_when_labels_come_share_their_held_out_samples():
    data = with_test()
    late = concatenate(data.classes(0, 1), data.classes(1, 2).delay_labels(3), data.label_fraction(0.5).take(0))
    assert sorted(shown(late.held_out())) == [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]


def test_a_test_split_that_lacks_the_last_class_is_no_obstacle():
    data = numbered(12, splits={"test": Dataset(torch.zeros(2, 2), torch.tensor([0, 1]))})
    assert Segment.of(data).held_out().labels().tolist() == [0, 1]


# --- all words together


def dues(segment, seed=0):
    """When the label of each sample arrives, or None when all come at once."""
    stream = Stream([segment], seed)
    due = stream.due(Batch(*stream.read(0, len(stream)), 0, stream.infos()[0], len(stream)))
    return None if due is None else due.tolist()


class Story:
    """The scenario language again, on plain lists: (row, what was added to x, label, delay, whether it comes)."""

    def __init__(self, lines):
        self.lines = lines

    @classmethod
    def of(cls, samples):
        return cls([(i, 0.0, i % 3, 0, True) for i in range(samples)])

    def classes(self, *wanted):
        return Story([line for line in self.lines if line[2] in wanted])

    def take(self, count, start):
        return Story(self.lines[start : start + count])

    def repeat(self, times):
        return Story(self.lines * times)

    def at(self, index):
        return Story([self.lines[i] for i in index])

    def add(self, amount):
        return Story([(i, x + amount, y, d, c) for i, x, y, d, c in self.lines])

    def relabel(self, mapping):
        return Story([(i, x, mapping[y], d, c) for i, x, y, d, c in self.lines])

    def with_labels(self, labels):
        return Story([(i, x, labels[i], d, c) for i, x, y, d, c in self.lines])

    def delay_labels(self, samples):
        return Story([(i, x, y, samples, c) for i, x, y, d, c in self.lines])

    def label_fraction(self, fraction):
        return Story([(i, x, y, d, fraction == 1) for i, x, y, d, c in self.lines])

    def concatenate(self, other):
        return Story(self.lines + other.lines)

    def interleave(self, other):
        spread = [((k + 0.5) / len(self.lines), 0, line) for k, line in enumerate(self.lines)]
        spread += [((k + 0.5) / len(other.lines), 1, line) for k, line in enumerate(other.lines)]
        return Story([line for _, _, line in sorted(spread, key=lambda entry: entry[:2])])


class Add:
    def __init__(self, amount):
        self.amount = amount

    def __call__(self, x):
        return x + self.amount


MAPPINGS = st.permutations([0, 1, 2])
WORDS = st.one_of(
    st.tuples(st.just("classes"), st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)),
    st.tuples(st.just("take"), st.integers(0, 30), st.integers(0, 30)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("at"), st.lists(st.integers(0, 10_000), max_size=20)),
    st.tuples(st.just("transform"), st.integers(1, 9)),
    st.tuples(st.just("relabel"), MAPPINGS),
    st.tuples(st.just("with_labels"), st.lists(st.integers(0, 2), min_size=15, max_size=15)),
    st.tuples(st.just("delay_labels"), st.integers(0, 40)),
    st.tuples(st.just("label_fraction"), st.sampled_from([0.0, 1.0])),
    st.tuples(st.sampled_from(["concatenate", "interleave"]), st.integers(0, 10_000)),
    st.tuples(st.just("shuffle"), st.integers(0, 9)),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(WORDS, max_size=8))
def test_any_sentence_means_what_its_words_mean_one_by_one(sentence):
    said = [(Segment.of(numbered(15)), Story.of(15))]
    for word, *rest in sentence:
        segment, story = said[-1]
        if word in ("concatenate", "interleave"):
            other = said[rest[0] % len(said)]
            if len(segment) + len(other[0]) > 300:
                continue
            join = concatenate if word == "concatenate" else interleave
            said.append((join(segment, other[0]), getattr(story, word)(other[1])))
        elif word == "at":
            index = [i % len(segment) for i in rest[0]] if len(segment) else []
            said.append((segment.at(index), story.at(index)))
        elif word == "shuffle":
            index = torch.randperm(len(segment), generator=seeded(rest[0])).tolist()
            said.append((segment.shuffle(seeded(rest[0])), story.at(index)))
        elif word == "transform":
            said.append((segment.transform(Add(rest[0])), story.add(rest[0])))
        elif word == "classes":
            said.append((segment.classes(*rest[0]), story.classes(*rest[0])))
        elif word == "with_labels":
            said.append((segment.with_labels(torch.tensor(rest[0])), story.with_labels(rest[0])))
        elif word != "repeat" or len(segment) < 100:
            said.append((getattr(segment, word)(*rest), getattr(story, word)(*rest)))
    segment, story = said[-1]
    assert len(segment) == len(story.lines)
    if not story.lines:
        return
    assert shown(segment) == [row + added for row, added, *_ in story.lines]
    assert segment.labels().tolist() == [line[2] for line in story.lines]
    expected = [p + delay if comes else NEVER for p, (*_, delay, comes) in enumerate(story.lines)]
    assert (dues(segment) or list(range(len(segment)))) == expected


def test_a_segment_with_every_word_pickles():
    segment = interleave(
        with_test().classes(0).transform(add_draw, random=True).delay_labels(3).label_fraction(0.5),
        with_test().classes(1).relabel([1, 0, 2]).transform(torch.neg),
        rng=seeded(),
    ).judged_on(0, 1)
    copy = pickle.loads(pickle.dumps(segment))
    assert torch.equal(copy.rows, segment.rows)
    assert copy.judged == (0, 1)
    assert shown(copy.take(4)) == shown(segment.take(4))


def test_words_about_classes_refuse_data_without_any():
    numbers = Segment.of(Dataset(torch.rand(6, 2), torch.rand(6)))
    for word in (lambda: numbers.classes(0), lambda: numbers.relabel([]), lambda: numbers.judged_on(1)):
        with pytest.raises(ScenarioError, match="has no classes"):
            word()
