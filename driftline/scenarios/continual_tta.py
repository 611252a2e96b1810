"""Corruptions one after the other, without labels: continual test-time adaptation (Wang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios import corruptions
from driftline.scenarios.checks import choice, images, samples_per_task, unit_range, whole
from driftline.scenarios.class_incremental import evenly
from driftline.scenarios.correlated import RULES, correlate, shift_labels
from driftline.stream.join import concatenate
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment

COTTA = (
    (10, 13, 0, 5, 6, 4, 2, 14, 3, 12, 1, 8, 7, 9, 11),
    (14, 1, 6, 8, 11, 9, 3, 12, 0, 10, 4, 2, 13, 7, 5),
    (11, 3, 0, 1, 7, 8, 4, 6, 12, 14, 13, 10, 2, 5, 9),
    (1, 9, 4, 13, 7, 12, 10, 2, 3, 8, 11, 0, 5, 14, 6),
    (13, 4, 6, 7, 9, 2, 10, 5, 8, 14, 0, 1, 11, 3, 12),
    (5, 7, 9, 1, 3, 11, 6, 10, 8, 12, 4, 0, 13, 14, 2),
    (8, 2, 14, 11, 6, 4, 13, 7, 3, 5, 10, 12, 1, 9, 0),
    (4, 6, 2, 9, 7, 14, 0, 8, 1, 10, 11, 5, 13, 3, 12),
    (3, 5, 6, 1, 0, 4, 14, 9, 11, 13, 8, 7, 10, 12, 2),
    (11, 0, 3, 6, 8, 4, 14, 9, 13, 12, 1, 2, 7, 5, 10),
)
"""CoTTA's ten random orders, by number in the standard one."""

ORDERS: dict[str, tuple[str, ...]] = {
    "standard": corruptions.STANDARD,
    "rotta": (
        *("motion_blur", "snow", "fog", "shot_noise", "defocus_blur", "contrast", "zoom_blur", "brightness", "frost"),
        *("elastic_transform", "glass_blur", "gaussian_noise", "pixelate", "jpeg_compression", "impulse_noise"),
    ),
    **{f"cotta-{n}": tuple(corruptions.STANDARD[i] for i in order) for n, order in enumerate(COTTA)},
}
"""Orders of the fifteen corruptions: of the benchmark, RoTTA's, and the ten of CoTTA's means on ImageNet-C."""

CORRELATIONS = ("none", *RULES, "sar")


@scenario
def continual_tta(
    data: Segment,
    rng: torch.Generator,
    order: str | Sequence[str] = "standard",
    severity: float = 5,
    samples: int | None = None,
    shuffle: bool = True,
    correlation: str = "none",
    concentration: float = 0.1,
    fresh: bool = False,
) -> Iterator[Segment]:
    """Corruptions one after the other, the same images under each: for adapters, which see no labels.

    Parameters
    ----------
    data : Dataset
        Images in [0, 1] or bytes, which the source model has not been trained on.
    rng : seed
        Of the images' order, of a random order of corruptions, and of the corruptions themselves.
    order : str or sequence of str
        "standard", "rotta", "cotta-0" to "cotta-9": see :data:`ORDERS`. "random": the fifteen in an order drawn from
        the seed. Or names of corruptions, in order.
    severity : float
        1 to 5, or 0 for clean images.
    samples : int, optional
        The first so many images are played under each corruption. Default: all.
    shuffle : bool
        Play each domain in a new order. False keeps the dataset's.
    correlation : "none", "note", "rotta" or "sar"
        Labels in runs, in place of a shuffle: see :func:`correlate`; "sar": :func:`shift_labels`, in which one class
        after another fills nearly a whole phase, drawn with replacement.
    concentration : float
        Of the Dirichlet draws of "note" and "rotta".
    fresh : bool
        Deal the images out over the corruptions at random, so that none is seen twice; ``samples`` is then what each
        corruption gets. False: every corruption shows the same images.

    Raises
    ------
    ScenarioError
        For data that is no images in [0, 1], or a setting out of range.
    ConfigError
        For an unknown corruption or order, or a severity out of range.

    Notes
    -----
    Source: Wang, Fink, Van Gool & Dai, *Continual test-time domain adaptation*, CVPR 2022. Labels stay in the stream
    for metrics; adapters cannot reach them, and learners should be given ``stream.without_labels()``.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.continual_tta(driftline.load("digits"), order=["fog", "contrast"], samples=100)
    >>> stream.domain_names
    ('fog 5', 'contrast 5')
    """
    dealt = corrupted(data, rng, order, severity, None if fresh else samples)
    if fresh:
        sizes = evenly(len(data), len(dealt))
        each = min(sizes)
        if samples is not None or each < 1:
            whole("samples", samples, 1, each, f"{len(data)} images for {len(dealt)} corruptions")
            sizes = [each if samples is None else samples] * len(dealt)
        starts = [sum(sizes[:i]) for i in range(len(dealt))]
        places = torch.randperm(len(data), generator=rng)
        dealt = [domain.at(places[start : start + n]) for domain, start, n in zip(dealt, starts, sizes)]
    for domain in dealt:
        yield arranged(domain, rng, shuffle, correlation, concentration)


@scenario
def mixed_tta(
    data: Segment,
    rng: torch.Generator,
    order: str | Sequence[str] = "standard",
    severity: float = 5,
    samples: int | None = None,
    correlation: str = "none",
    concentration: float = 0.1,
) -> Iterator[Segment]:
    """All corruptions at once: every batch mixes domains; parameters as in :func:`continual_tta`.

    Each sample keeps its domain, for metrics that tell them apart.

    Notes
    -----
    Source: the mixed domains of Marsden, Döbler & Yang, *Universal test-time adaptation through weight ensembling,
    diversity weighting, and prior correction*, WACV 2024, and of Niu et al. (2023).

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.mixed_tta(driftline.load("digits"), order=["fog", "contrast"], samples=100)
    >>> len(stream.segments), sorted(stream.domain_names)
    (1, ['contrast 5', 'fog 5'])
    """
    whole = concatenate(*corrupted(data, rng, order, severity, samples)).named("mixed")
    yield arranged(whole, rng, True, correlation, concentration)


@scenario
def gradual_tta(
    data: Segment,
    rng: torch.Generator,
    order: str | Sequence[str] = "standard",
    schedule: str = "cotta",
    samples: int | None = None,
    shuffle: bool = True,
    correlation: str = "none",
    concentration: float = 0.1,
) -> Iterator[Segment]:
    """Corruptions whose severity rises and falls, one after the other; other parameters as in :func:`continual_tta`.

    Parameters
    ----------
    data : Dataset
        Images in [0, 1] or bytes.
    rng : seed
        Of all draws.
    schedule : "cotta" or "each"
        "cotta": the first corruption at 5, 4, 3, 2, 1, each later one at 1, 2, 3, 4, 5, 4, 3, 2, 1. "each": every one
        at 1, 2, 3, 4, 5, 4, 3, 2, 1.
    samples : int, optional
        Images at each severity. Default: all.

    Raises
    ------
    ScenarioError, ConfigError
        As :func:`continual_tta`.

    Notes
    -----
    Sources: "cotta": Wang et al., CVPR 2022; "each": Marsden, Döbler & Yang, WACV 2024.

    Examples
    --------
    >>> import driftline
    >>> data = driftline.load("digits")
    >>> stream = driftline.scenarios.gradual_tta(data, order=["fog", "contrast"], samples=20)
    >>> [segment.name for segment in stream.segments][:7]
    ['fog 5', 'fog 4', 'fog 3', 'fog 2', 'fog 1', 'contrast 1', 'contrast 2']
    """
    choice("schedule", schedule, ("cotta", "each"))
    rising = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    for number, name in enumerate(in_order(order, rng)):
        for severity in rising[4:] if schedule == "cotta" and number == 0 else rising:
            for domain in corrupted(data, rng, [name], severity, samples):
                yield arranged(domain, rng, shuffle, correlation, concentration)


@scenario
def recurring_tta(
    data: Segment,
    rng: torch.Generator,
    visits: int = 20,
    order: str | Sequence[str] = "rotta",
    severity: float = 5,
    samples: int | None = None,
    correlation: str = "rotta",
    concentration: float = 0.1,
) -> Iterator[Segment]:
    """The same row of corruptions over and over, with labels in runs, to see whether adapters last.

    Parameters
    ----------
    data : Dataset
        Images in [0, 1] or bytes.
    rng : seed
        Of all draws; every visit plays the same samples in the same order, corrupted by draws of its own.
    visits : int
        Times that each corruption comes, at least 1.
    order, severity, samples, correlation, concentration
        As in :func:`continual_tta`.

    Notes
    -----
    Source: Hoang, Vo & Do, *Persistent test-time adaptation in recurring testing scenarios*, NeurIPS 2024.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.recurring_tta(driftline.load("digits"), visits=2, order=["fog"], samples=100)
    >>> [segment.name for segment in stream.segments], stream.domain_names
    (['fog 5, visit 0', 'fog 5, visit 1'], ('fog 5',))
    """
    if isinstance(visits, bool) or not isinstance(visits, int) or visits < 1:
        raise ScenarioError(f"visits={visits!r}: must be a whole number of at least 1")
    domains = corrupted(data, rng, order, severity, samples)
    row = [arranged(domain, rng, True, correlation, concentration) for domain in domains]
    for visit in range(visits):
        for domain in row:
            yield domain.named(f"{domain.name}, visit {visit}")


def corrupted(
    data: Segment, rng: torch.Generator, order: str | Sequence[str], severity: float, samples: int | None
) -> list[Segment]:
    """Return the first images of the data under each corruption, in the dataset's order and in domains of their own."""
    images(data, "corruptions")
    unit_range(data, "corruptions")
    shown = data.take(samples_per_task(data, samples))
    names = in_order(order, rng)
    return [shown.corrupt(name, severity).in_domain(f"{name} {severity:g}") for name in names]


def in_order(order: str | Sequence[str], rng: torch.Generator) -> list[str]:
    """Return names of corruptions in an order.

    Raises
    ------
    ConfigError
        For an order that has no name here, or an unknown corruption.
    """
    if order == "random":
        standard = ORDERS["standard"]
        return [standard[i] for i in torch.randperm(len(standard), generator=rng).tolist()]
    if isinstance(order, str):
        if order in ORDERS:
            return list(ORDERS[order])
        if order not in corruptions.CORRUPTIONS:
            raise ConfigError(f"order={order!r}: must be {', '.join(ORDERS)}, random, or names of corruptions")
        return [order]
    if not order:
        raise ConfigError("order=[]: name at least one corruption")
    for name in order:
        corruptions.get(name, 0)
    return list(order)


def arranged(domain: Segment, rng: torch.Generator, shuffle: bool, correlation: str, concentration: float) -> Segment:
    """Return a domain's samples shuffled, in runs of labels, or as they are."""
    choice("correlation", correlation, CORRELATIONS)
    if correlation == "sar":
        return shift_labels(domain, rng)
    if correlation != "none":
        return correlate(domain, rng, correlation, concentration)
    return domain.shuffle(rng) if shuffle else domain
