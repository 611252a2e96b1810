"""Shifts that nobody made: the parts of a dataset, such as its writers or origins, as domains one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from driftline.errors import ScenarioError
from driftline.scenarios.checks import choice, samples_per_task
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def dataset_shift(
    data: Segment,
    rng: torch.Generator,
    parts: Sequence[str] | str | None = None,
    samples: int | None = None,
    shuffle: bool = True,
) -> Iterator[Segment]:
    """Parts of a dataset one after the other, each a domain: for data whose splits differ in where they come from.

    Parameters
    ----------
    data : Dataset
        Its splits are the domains. ``load("mnist-usps")`` has "test" (MNIST's), "usps_test" and "usps"; datasets of
        one's own are joined with ``Dataset(..., splits={"night": Dataset(...)})``, of one form.
    rng : seed
        Of which samples are played, and of their order.
    parts : sequence of str, optional
        Names of splits, in order; "train" is the data itself. Default: every split, but not "train", on which a source
        model has usually been trained.
    samples : int, optional
        How many samples each domain plays, drawn without replacement. Default: all it has.
    shuffle : bool
        Shuffle each domain; False keeps the part's order (and its first ``samples``).

    Raises
    ------
    ScenarioError
        For a part that the data does not have, or too many samples.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.dataset_shift(driftline.load("digits"), parts=["train", "test"], samples=100)
    >>> stream.domain_names, len(stream)
    (('train', 'test'), 200)
    """
    splits = data.dataset.splits
    named = [parts] if isinstance(parts, str) else list(splits if parts is None else parts)
    if not named:
        raise ScenarioError(
            f"parts={parts!r}: {data.dataset.name} has the splits {_names(data)}; name at least one part"
        )
    for name in named:
        if name != "train" and name not in splits:
            raise ScenarioError(f"parts: {data.dataset.name} has no part {name!r}; it has {_names(data)}")
        part = data if name == "train" else Segment.of(splits[name])
        yield _played(part, rng, samples, shuffle).in_domain(name)


@scenario
def by_writer(
    data: Segment,
    rng: torch.Generator,
    order: Sequence[int] | None = None,
    part: str = "test",
    samples: int | None = None,
    shuffle: bool = True,
) -> Iterator[Segment]:
    """Digits by who wrote them: first one group of people, then another, with ``load("qmnist")``.

    A source model is trained on one group, as with ``load("qmnist", writers=0)``, and meets them all.

    Parameters
    ----------
    data : Dataset
        With splits called "hsf_0" or "test_hsf_0" and so on, as QMNIST has.
    rng : seed
        Of which samples are played, and of their order.
    order : sequence of int, optional
        Series to play, in order; one may come again. Default: all that the part has, ascending.
    part : "test" or "train"
        Which images: MNIST's test part, or those that a source model may have been trained on.
    samples : int, optional
        How many samples each domain plays, drawn without replacement. Default: all it has.
    shuffle : bool
        Shuffle each domain; False keeps the data's order (and its first ``samples``).

    Raises
    ------
    ScenarioError
        For data without such splits, a series it does not have, or too many samples.

    Notes
    -----
    Source of the series: Yadav & Bottou, *Cold case: the lost MNIST digits*, NeurIPS 2019. MNIST's images are of two:
    hsf_0, written by staff of the census, and hsf_4, by pupils.

    Examples
    --------
    >>> import driftline
    >>> pages = {f"test_hsf_{i}": driftline.Dataset(torch.rand(5, 4), torch.arange(5)) for i in (0, 4)}
    >>> data = driftline.Dataset(torch.rand(9, 4), torch.arange(9) % 5, splits=pages)
    >>> driftline.scenarios.by_writer(data, order=[4, 0, 4], samples=3).domain_names
    ('hsf_4', 'hsf_0')
    """
    choice("part", part, ("test", "train"))
    start = "test_hsf_" if part == "test" else "hsf_"
    series = {int(name.removeprefix(start)): s for name, s in data.dataset.splits.items() if _is_series(name, start)}
    if not series:
        raise ScenarioError(
            f"{data.dataset.name} has no writers: no split is called {start}0, {start}1, ...; it has {_names(data)}; "
            'load("qmnist") has them'
        )
    played = sorted(series) if order is None else list(order)
    if not played:
        raise ScenarioError("order=[]: name at least one series")
    for one in played:
        if one not in series:
            raise ScenarioError(f"order: no series {one!r} in the {part} part; it has {sorted(series)}")
        yield _played(Segment.of(series[one]), rng, samples, shuffle).in_domain(f"hsf_{one}")


def _played(part: Segment, rng: torch.Generator, samples: int | None, shuffle: bool) -> Segment:
    size = samples_per_task(part, samples)
    return (part.shuffle(rng) if shuffle else part).take(size)


def _is_series(name: str, start: str) -> bool:
    return name.startswith(start) and name.removeprefix(start).isdigit()


def _names(data: Segment) -> str:
    return ", ".join(["train", *data.dataset.splits])
