"""The laws of scenarios, to be tried on any function that makes a :class:`driftline.stream.Stream`."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from driftline.stream.recipe import NEVER
from driftline.stream.seeds import generator
from driftline.stream.stream import Stream
from driftline.testing.laws import (
    Law,
    apart,
    demand,
    demand_close,
    demand_same,
    difference,
    enforce,
    no_global_draws,
    usable_devices,
)
from driftline.testing.reading import Played, ScenarioCase, arrivals, ranges, tables

SIZES = (1, 7, 64)
"""Batch sizes that must give the same samples."""


def check_scenario(
    make_stream: Callable[[int], Stream],
    *,
    seeded: bool = True,
    each_once: bool | int = False,
    devices: Sequence[str] | None = None,
    laws: Collection[str] | None = None,
) -> None:
    """Try the laws of scenarios on a stream of a few thousand samples; needs no test framework.

    Parameters
    ----------
    make_stream : callable
        ``make_stream(seed) -> Stream``, such as ``lambda seed: my_scenario(data, seed=seed)``.
    seeded : bool
        Whether another seed is to give another stream; False: the seed must make no difference.
    each_once : bool or int
        Declare that every row of the dataset is played exactly once; a number: exactly so many times.
    devices : sequence of str, optional
        Where to try the laws. Default: the CPU, and CUDA where there is one.
    laws : collection of str, optional
        Names of the laws to try, of :data:`SCENARIO_LAWS`. Default: all.

    Raises
    ------
    LawBroken
        Names the laws that do not hold, and what was found.
    ConfigError
        When there is no such law or device.

    Examples
    --------
    >>> import driftline
    >>> from driftline.testing import check_scenario
    >>> @driftline.scenario
    ... def halves(data, rng):
    ...     shuffled = data.shuffle(rng)
    ...     yield shuffled.take(700)
    ...     yield shuffled.take(len(data), start=700).delay_labels(10)
    >>> check_scenario(lambda seed: halves(driftline.load("digits"), seed=seed), each_once=True)
    """
    with apart():
        name = make_stream(0).name
    for device in usable_devices(devices):
        case = ScenarioCase(_on(device, make_stream), seeded, int(each_once))
        enforce(f"scenario {name} on {device.type}", SCENARIO_LAWS, case, laws)


def _on(device: torch.device, make_stream: Callable[[int], Stream]) -> Callable[[int], Stream]:
    return lambda seed: make_stream(seed).to(device)


def same_seed_same_stream(case: ScenarioCase) -> None:
    """Built twice with one seed, a stream plays and describes itself the same."""
    first, second = case.make(0), case.make(0)
    demand_same(first.describe(), second.describe(), "two streams of one seed", "description")
    demand_same(case.play(first), case.play(second), "two streams of one seed", "samples")


def another_seed_another_stream(case: ScenarioCase) -> None:
    """Another seed gives other samples or another order, unless the scenario is declared without a seed."""
    one = case.play(case.make(0))
    differs = [difference(one, case.play(case.make(seed))) is not None for seed in (1, 2)]
    if case.seeded:
        demand(any(differs), "seeds 0, 1 and 2 give the same stream; draw from the rng, or declare seeded=False")
    else:
        demand(not any(differs), "declared seeded=False, but another seed gives another stream")


def seek(case: ScenarioCase) -> None:
    """The sample at a position is the same tensor for every batch size, start, slice and reader."""
    stream = case.make(0)
    n = len(stream)
    x, y = case.play(stream)
    demand(len(x) == n, f"a stream of length {n} played {len(x)} samples")

    def expect(start: int, stop: int, found: Played, how: str) -> None:
        demand_same((x[start:stop], None if y is None else y[start:stop]), found, how, f"samples {start}..{stop}")

    for size in SIZES:
        expect(0, n, case.play(stream, size), f"played in batches of {size} and of 64")
    for place, (start, stop) in enumerate(ranges(stream)):
        size = SIZES[place % len(SIZES)]
        expect(start, stop, stream.read(start, stop), f"played, and read({start}, {stop})")
        expect(start, stop, case.make(0).read(start, stop), f"played, and read({start}, {stop}) of a new stream")
        resumed = next(stream.batches(size, start))
        demand(resumed.position == start, f"batches({size}, start={start}) began at {resumed.position}")
        expect(start, resumed.stop, (resumed.x, resumed.y), f"played, and batches({size}, start={start})")
        part = stream[start:stop]
        expect(start, stop, case.play(part, size), f"played, and stream[{start}:{stop}] in batches of {size}")
        expect(stop - 1, stop, part.read(len(part) - 1, len(part)), f"played, and the end of stream[{start}:{stop}]")
    reader = stream.reader()
    for position in reversed([start for start, _ in ranges(stream)]):
        expect(position, position + 1, reader.read(position, position + 1), "played, and read backwards one by one")


def batches_are_whole(case: ScenarioCase) -> None:
    """Positions follow each other without gaps, and a batch never crosses segments nor exceeds its size."""
    stream = case.make(0)
    for size in SIZES:
        position = 0
        for batch in stream.batches(size):
            demand(batch.position == position, f"batches of {size}: position {batch.position} after {position}")
            demand(1 <= len(batch) <= size, f"batches of {size}: one of {len(batch)} at {position}")
            stop = batch.segment.stop
            inside = batch.segment.start <= position and stop is not None and batch.stop <= stop
            demand(inside, f"batch {position}..{batch.stop} crosses the border of segment {batch.segment}")
            labelled = 0 if batch.y is None else len(batch)
            demand(batch.labelled == labelled, f"position {position}: labelled is {batch.labelled}, not {labelled}")
            position = batch.stop
        demand(position == len(stream), f"batches of {size} end at {position} of {len(stream)}")


def infos_agree(case: ScenarioCase) -> None:
    """Segment infos cover the stream in order, and are those that batches carry, in slices too."""
    whole = case.make(0)
    for stream in (whole, whole[len(whole) // 3 :], whole[len(whole) // 3 : 2 * len(whole) // 3 + 1]):
        infos = stream.infos()
        cuts = [0, *(info.stop for info in infos)]
        demand([info.start for info in infos] == cuts[:-1], f"segments start at {[i.start for i in infos]}")
        demand(cuts[-1] == len(stream), f"segments end at {cuts[-1]}, the stream at {len(stream)}")
        demand(all(info.name for info in infos), "a segment has no name")
        met = [(batch.segment, batch.ends_segment) for batch in stream.batches(64)]
        demand([info for info, ends in met if ends] == infos, "batches that end a segment do not match infos()")
        demand(list(dict.fromkeys(info for info, _ in met)) == infos, "segments of batches do not match infos()")


def labels_are_played(case: ScenarioCase) -> None:
    """``labels()`` is the truth that is played, of slices too; None exactly when some truth is unknown."""
    whole = case.make(0)
    for stream in (whole, whole[len(whole) // 2 :]):
        labels, played = stream.labels(), [batch.y for batch in stream.batches(64)]
        known = [y.cpu() for y in played if y is not None]
        if labels is None:
            demand(case.play(whole)[1] is None, "labels() is None, but every sample is played with its truth")
        else:
            demand(len(known) == len(played), "labels() is given, but some samples are played without truth")
            demand_same(labels, torch.cat(known), "labels(), then what is played", "truth")


def rows_are_played(case: ScenarioCase) -> None:
    """What is played is what the segments' tables say: untransformed rows, and each row's truth."""
    stream = case.make(0)
    for info, (rows, which) in zip(stream.infos(), tables(stream)):
        assert info.stop is not None
        x, y = stream.read(info.start, info.stop)
        for number, recipe in enumerate(stream.segments[info.index].recipes):
            places = (which == number).nonzero().flatten()
            mine, chosen = places.to(x.device), rows[places].to(x.device)
            where = f"segment {info.name!r}, recipe {number}"
            if not recipe.transforms:
                demand_same(recipe.data.rows(chosen), x[mine], where, "rows of the dataset, then samples")
            if recipe.truth is not None and y is not None:
                demand_same(recipe.truth[chosen], y[mine], where, "truth of the rows, then of the samples")


def rows_are_used_as_declared(case: ScenarioCase) -> None:
    """Every row of each dataset is played as many times as declared with ``each_once``."""
    if not case.times:
        return
    stream = case.make(0)
    played = {id(data): torch.zeros(len(data), dtype=torch.long) for data in stream.datasets}
    for info, (rows, which) in zip(stream.infos(), tables(stream)):
        for number, recipe in enumerate(stream.segments[info.index].recipes):
            played[id(recipe.data)] += torch.bincount(rows[which == number], minlength=len(recipe.data))
    for data in stream.datasets:
        wrong = (played[id(data)] != case.times).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            found = int(played[id(data)][row])
            raise AssertionError(
                f"{len(wrong)} of {len(data)} rows of {data.name} are not played {case.times} times; row {row}: {found}"
            )


def it_pickles(case: ScenarioCase) -> None:
    """After a pickle round trip it plays, describes itself and delays labels the same."""
    stream = case.make(0)
    try:
        copy = pickle.loads(pickle.dumps(stream))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"it does not pickle: {error}; define transforms at the top of a module") from error
    demand_same(stream.describe(), copy.describe(), "after a pickle round trip", "description")
    demand_same(case.play(stream), case.play(copy), "after a pickle round trip", "samples")
    demand_same(arrivals(stream, 64), arrivals(copy, 64), "after a pickle round trip", "label arrivals")


def labels_arrive_the_same(case: ScenarioCase) -> None:
    """When a label arrives does not depend on the batch size or the start, and is never before its sample."""
    stream = case.make(0)
    expected = arrivals(stream, 64)
    early = (expected < torch.arange(len(stream))) & (expected != NEVER)
    demand(not bool(early.any()), f"the label at {int(early.int().argmax())} arrives before its sample")
    for size in SIZES:
        demand_same(expected, arrivals(stream, size), f"due() in batches of 64 and of {size}", "label arrivals")
        middle = len(stream) // 2 + 1
        demand_same(expected[middle:], arrivals(stream, size, middle), f"due() from {middle} on", "label arrivals")
    for batch in stream.batches(64):
        if batch.y is None:
            demand(stream.due(batch) is not None, f"position {batch.position}: no truth, yet labels arrive at once")


def samples_fit_a_learner(case: ScenarioCase) -> None:
    """Samples are finite, of one shape and dtype, and labels are class indices in range."""
    stream = case.make(0)
    first = next(stream.batches(1)).x
    demand(tuple(first.shape[1:]) == stream.input_shape, f"input_shape is {stream.input_shape}")
    for batch in stream.batches(64):
        where = f"positions {batch.position}..{batch.stop}"
        demand(batch.x.shape[1:] == first.shape[1:], f"{where}: samples of shape {tuple(batch.x.shape[1:])}")
        demand(batch.x.dtype == first.dtype, f"{where}: {batch.x.dtype}, but the stream began with {first.dtype}")
        demand(batch.x.dtype != torch.uint8, f"{where}: bytes, not numbers in [0, 1]")
        demand(bool(torch.isfinite(batch.x).all()), f"{where}: NaN or Inf")
        if batch.y is not None and stream.classes:
            low, high = int(batch.y.min()), int(batch.y.max())
            demand(low >= 0 and high < len(stream.classes), f"{where}: labels {low}..{high}")
            demand(batch.y.dtype == torch.long and batch.y.dim() == 1, f"{where}: labels are {batch.y.dtype}")


def transforms_look_at_one_sample(case: ScenarioCase) -> None:
    """What a transform makes of a sample does not depend on the others in its batch (those before a random one)."""
    stream = case.make(0)
    for segment in stream.segments:
        for number, recipe in enumerate(segment.recipes):
            x = recipe.data.rows(segment.rows[:8].to(recipe.data.x.device))
            for step in itertools.takewhile(lambda step: not step.random, recipe.transforms):
                unused = generator(0, x.device)
                together = step(x.clone(), unused)
                singly = torch.cat([step(x[i : i + 1].clone(), unused) for i in range(len(x))])
                where = f"segment {segment.name!r}, recipe {number}: {len(x)} samples transformed together, and singly"
                demand_close(together, singly, where)
                x = together


def global_randomness_stays(case: ScenarioCase) -> None:
    """Building, playing, seeking and asking for labels leave the global random generators alone."""
    with no_global_draws("building the stream"):
        stream = case.make(0)
    with no_global_draws("playing the stream"):
        case.play(stream)
        stream[len(stream) // 2 :].read(0, 1)
        arrivals(stream, 64)
        stream.labels()


SCENARIO_LAWS: Mapping[str, Law[ScenarioCase]] = {
    "same seed, same stream": same_seed_same_stream,
    "another seed, another stream": another_seed_another_stream,
    "seek: a position always gives the same sample": seek,
    "batches are whole and follow each other": batches_are_whole,
    "segment infos agree with batches": infos_agree,
    "labels() is what is played": labels_are_played,
    "rows are played as the segments say": rows_are_played,
    "every sample is used as declared": rows_are_used_as_declared,
    "it pickles": it_pickles,
    "labels arrive the same for every batch size": labels_arrive_the_same,
    "samples fit a learner": samples_fit_a_learner,
    "transforms look at one sample at a time": transforms_look_at_one_sample,
    "global randomness is untouched": global_randomness_stays,
}
"""The laws of scenarios, by name."""
