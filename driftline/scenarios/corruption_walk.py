"""A walk through pairs of corruptions at a steady difficulty (Press et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios import corruptions
from driftline.scenarios.checks import between, images, unit_range, whole
from driftline.scenarios.draws import task_samples
from driftline.stream.modules import evaluate
from driftline.stream.reader import BLOCK
from driftline.stream.recipe import Transform
from driftline.stream.scenario import scenario
from driftline.stream.seeds import derive_seed, generator
from driftline.stream.segment import Segment

LEVELS = (0.0, *(1 + k / 4 for k in range(17)))
"""Severities of the walk: none, and from 1 to 5 in quarters."""

Table = NDArray[np.float64]
"""Accuracy, 0 to 1, of a model at every pair of :data:`LEVELS` of two corruptions: (first's level, second's level)."""

DIFFICULTIES = {"hard": 0.0, "medium": 0.5, "easy": 0.9}
"""Where between the least and the greatest accuracy of a pair the walk is held."""

RESOLUTION = 1 / 500


@scenario
def corruption_walk(
    data: Segment,
    rng: torch.Generator,
    difficulty: str | float = "medium",
    speed: int = 1000,
    steps: int = 50,
    order: Sequence[str] = ("gaussian_noise", "shot_noise", "impulse_noise", "contrast"),
    accuracy: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Iterator[Segment]:
    """Two corruptions at a time: one fades while the next grows, in small steps at nearly the same difficulty.

    Parameters
    ----------
    data : Dataset
        Images in [0, 1] or bytes; they are shown in passes, each in a new order.
    rng : seed
        Of the corruptions' turns, of the images' order and of the corruptions themselves.
    difficulty : "easy", "medium", "hard" or float
        Accuracy at which the source model is held, 0 to 1. A name: that share of the way from the least to the greatest
        accuracy in the tables, see :data:`DIFFICULTIES`.
    speed : int
        Images at each step: a small number is a fast change.
    steps : int
        Steps of the walk.
    order : sequence of str
        Corruptions to choose from, at least two.
    accuracy : mapping, optional
        A :data:`Table` for each ordered pair, under ``"first+second"``, as :func:`measure_accuracy` gives. Default:
        accuracy is taken to fall in proportion to the sum of both severities, whatever the corruptions.

    Raises
    ------
    ScenarioError
        For data that is no images in [0, 1], or a number out of range.
    ConfigError
        For an unknown corruption or difficulty, or a table that is missing or has another size.

    Notes
    -----
    Source: Press, Schneider, Kümmerer & Bethge, *RDumb: a simple approach that questions our progress in continual
    test-time adaptation*, NeurIPS 2023. A path goes from (s, 0) to (0, t) by steps that weaken the first corruption or
    strengthen the second, such that its mean accuracy is nearest the target; then the second becomes the first. Theirs
    is for ImageNet: severities from 0.25, tables of a ResNet-50, and the names of difficulties are accuracies of 0, 20
    and 40 %.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.corruption_walk(driftline.load("digits"), difficulty=0.4, speed=20, steps=4)
    >>> [segment.name for segment in stream.segments][:3]
    ['gaussian_noise 5', 'gaussian_noise 5 + shot_noise 1', 'gaussian_noise 4.75 + shot_noise 1']
    """
    images(data, "corruptions")
    unit_range(data, "corruptions")
    whole("speed", speed, 1)
    whole("steps", steps, 1)
    if isinstance(order, str) or len(order) < 2:
        raise ConfigError(f"order={order!r}: name at least two corruptions")
    for name in order:
        corruptions.get(name, 0)
    tables = {pair: _table(accuracy, pair) for pair in permutations(order, 2)}
    target = _target(difficulty, tables)
    shown = task_samples(data, rng, speed, "passes")
    first = order[int(torch.randint(len(order), (1,), generator=rng))]
    level, walked = -1, 0
    while walked < steps:
        others = [name for name in order if name != first]
        second = others[int(torch.randint(len(others), (1,), generator=rng))]
        table = tables[first, second]
        if level < 0:
            # The walk begins where the first corruption alone is as hard as is wanted.
            level = 1 + int(np.abs(table[1:, 0] - target).argmin())
        path = best_path(table, level, target)
        for number, (i, j) in enumerate(path):
            # The end of one path is the beginning of the next.
            if walked < steps and (number or not walked):
                walked += 1
                yield _under(next(shown), {first: LEVELS[i], second: LEVELS[j]})
        first, level = second, path[-1][1]


def best_path(table: Table, start: int, target: float) -> list[tuple[int, int]]:
    """Return the path from (start, 0) to (0, j), j > 0, whose mean accuracy is nearest a target.

    Parameters
    ----------
    table : array, shape (levels, levels)
        Accuracies.
    start : int
        Level of the first corruption, at least 1.
    target : float
        Mean accuracy that is wanted.

    Returns
    -------
    list of (int, int)
        Pairs of levels, each with the first one lower or the second one higher than the one before.

    Examples
    --------
    >>> table = np.full((3, 3), 0.5)
    >>> table[0] = 0.1
    >>> best_path(table, 1, 0.1)
    [(1, 0), (0, 0), (0, 1), (0, 2)]
    """
    costs = np.rint(table / RESOLUTION).astype(int)
    span = int(costs.max()) * (start + len(table)) + 1
    # reached[i, j, s]: whether a path to (i, j) has accuracies that sum up to s; a place fixes a path's length.
    reached = np.zeros((start + 1, len(table), span), dtype=bool)
    reached[start, 0, costs[start, 0]] = True
    for i in range(start, -1, -1):
        for j in range(len(table)):
            cost = costs[i, j]
            for before in ([reached[i + 1, j]] if i < start else []) + ([reached[i, j - 1]] if j else []):
                reached[i, j, cost:] |= before[: span - cost]
    best, end = math.inf, (0, 0)
    for j in range(1, len(table)):
        sums = reached[0, j].nonzero()[0]
        gaps = np.abs(sums * RESOLUTION / (start + j + 1) - target)
        if len(gaps) and gaps.min() < best:
            best, end = float(gaps.min()), (j, int(sums[gaps.argmin()]))
    place, total = (0, end[0]), end[1]
    path = [place]
    while place != (start, 0):
        total -= int(costs[place])
        i, j = place
        place = (i + 1, j) if i < start and total >= 0 and reached[i + 1, j, total] else (i, j - 1)
        path.append(place)
    return path[::-1]


def measure_accuracy(
    model: nn.Module, data: Segment, order: Sequence[str], samples: int = 200, every: int = 4, seed: int = 0
) -> dict[str, list[list[float]]]:
    """Measure a model's accuracy under every pair of corruptions, for :func:`corruption_walk`.

    Parameters
    ----------
    model : nn.Module
        Maps images (B, C, H, W) in [0, 1] to scores (B, classes).
    data : Segment
        Labelled images; the first ``samples`` are used.
    order : sequence of str
        Corruptions.
    samples : int
        Images for each measurement.
    every : int
        Measure at every so many levels; between them accuracies are interpolated.
    seed : int
        Of the corruptions.

    Returns
    -------
    dict of str to list
        A :data:`Table` for each ordered pair, under ``"first+second"``: JSON values.

    Examples
    --------
    >>> import driftline
    >>> data = Segment.of(driftline.load("digits"))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> tables = measure_accuracy(model, data, ["fog", "contrast"], samples=20, every=17)
    >>> list(tables), len(tables["fog+contrast"]), len(tables["fog+contrast"][0])
    (['fog+contrast', 'contrast+fog'], 18, 18)
    """
    whole("samples", samples, 1)
    whole("every", every, 1, len(LEVELS) - 1)
    shown = data.take(samples)
    measured = sorted({*range(0, len(LEVELS), every), len(LEVELS) - 1})
    x, y = shown.dataset.rows(shown.rows.to(shown.dataset.x.device)), shown.class_labels().to(shown.dataset.x.device)
    tables = {}
    for pair in permutations(order, 2):
        coarse = np.empty((len(measured), len(measured)))
        for row, i in enumerate(measured):
            for column, j in enumerate(measured):
                scores = evaluate(model, _corrupted(x, {pair[0]: LEVELS[i], pair[1]: LEVELS[j]}, seed))
                coarse[row, column] = float((scores.argmax(1) == y).double().mean())
        grid = np.arange(len(LEVELS))
        across = np.stack([np.interp(grid, measured, line) for line in coarse])
        tables["+".join(pair)] = np.stack([np.interp(grid, measured, line) for line in across.T], axis=1).tolist()
    return tables


def _corrupted(x: Tensor, levels: Mapping[str, float], seed: int) -> Tensor:
    for number, (name, level) in enumerate(levels.items()):
        transform = Transform(corruptions.get(name, level), random=True)
        parts = torch.split(x, BLOCK)
        x = torch.cat(
            [transform(part, generator(derive_seed(seed, number, k), x.device)) for k, part in enumerate(parts)]
        )
    return x


def _under(segment: Segment, levels: Mapping[str, float]) -> Segment:
    shown = {name: level for name, level in levels.items() if level}
    for name, level in shown.items():
        segment = segment.corrupt(name, level)
    return segment.in_domain(" + ".join(f"{name} {level:g}" for name, level in shown.items()) or "clean")


def _table(accuracy: Mapping[str, Sequence[Sequence[float]]] | None, pair: tuple[str, str]) -> Table:
    if accuracy is None:
        severities: Table = np.array(LEVELS)
        fallen: Table = 1 - np.add.outer(severities, severities) / 10
        return fallen
    if "+".join(pair) not in accuracy:
        raise ConfigError(f"accuracy has no table for {'+'.join(pair)!r}; measure_accuracy gives one for every pair")
    table = np.asarray(accuracy["+".join(pair)], dtype=np.float64)
    if table.shape != (len(LEVELS), len(LEVELS)) or not ((table >= 0) & (table <= 1)).all():
        raise ConfigError(
            f"accuracy[{'+'.join(pair)!r}]: must be {len(LEVELS)} rows of {len(LEVELS)} accuracies from 0 to 1, "
            f"got shape {table.shape}"
        )
    return table


def _target(difficulty: str | float, tables: Mapping[tuple[str, str], Table]) -> float:
    if isinstance(difficulty, str):
        if difficulty not in DIFFICULTIES:
            raise ConfigError(
                f"difficulty={difficulty!r}: must be {', '.join(DIFFICULTIES)}, or an accuracy from 0 to 1"
            )
        values = np.concatenate([table.ravel() for table in tables.values()])
        return float(values.min() + DIFFICULTIES[difficulty] * (values.max() - values.min()))
    try:
        between("difficulty", difficulty, 0, 1)
    except ScenarioError as error:
        raise ConfigError(str(error)) from None
    return difficulty
