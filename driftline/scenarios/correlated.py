"""Streams in which labels come in runs, by Dirichlet draws (Gong et al., NeurIPS 2022; Yuan et al., CVPR 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.scenarios.checks import above, choice, classes_in, whole
from driftline.scenarios.class_incremental import evenly
from driftline.stream.segment import Segment

RULES = ("note", "rotta")
ATTEMPTS = 1000


def correlate(
    segment: Segment, rng: torch.Generator, rule: str = "note", concentration: float = 0.1, smallest: int | None = None
) -> Segment:
    """Return the samples of a segment in an order in which labels come in runs: a word of the scenario language.

    Parameters
    ----------
    segment : Segment
        With classes. Every sample is played once.
    rng : torch.Generator
        Draws.
    rule : "note" or "rotta"
        Both divide each class over slots in shares drawn from a Dirichlet distribution and play slot by slot, each slot
        class by class in a random order. "note": as many slots as classes; a slot that holds its part of all samples
        gets no more, and all is drawn again until the smallest holds ``smallest``. "rotta": as many slots as classes,
        at most 100, not balanced.
    concentration : float
        Of the Dirichlet distribution; small: runs are long, large: all slots are alike.
    smallest : int, optional
        Samples in the smallest slot, for "note". Default: 10 as published, or a third of an even part if that is less.

    Raises
    ------
    ScenarioError
        For data without classes, a setting out of range, or slots that cannot be filled.

    Notes
    -----
    Sources: Gong et al., *NOTE: robust continual test-time adaptation against temporal correlation*, NeurIPS 2022;
    Yuan, Xie & Li, *Robust test-time adaptation in dynamic scenarios*, CVPR 2023.

    Examples
    --------
    >>> import driftline
    >>> data = Segment.of(driftline.load("digits"))
    >>> labels = correlate(data, torch.Generator().manual_seed(0), concentration=0.01).labels()
    >>> int((labels[1:] != labels[:-1]).sum()) < 100
    True
    """
    choice("rule", rule, RULES)
    above("concentration", concentration, 0)
    present = classes_in(segment).tolist()
    labels = segment.class_labels()
    slots = min(len(present), 100) if rule == "rotta" else len(present)
    least = min(10, len(segment) // (3 * slots)) if smallest is None else smallest
    whole("smallest", least, 0)
    for _ in range(ATTEMPTS):
        shares = _divide(labels, present, slots, rng, concentration, balanced=rule == "note")
        if rule == "rotta" or min(sum(len(part) for part in slot) for slot in shares) >= least:
            break
    else:
        raise ScenarioError(
            f"correlate: no slot of at least {least} samples came about in {ATTEMPTS} draws; raise concentration "
            f"(now {concentration}) or lower smallest"
        )
    places = []
    for slot in shares:
        places += [slot[number] for number in torch.randperm(len(slot), generator=rng).tolist()]
    return segment.at(torch.cat(places))


def shift_labels(segment: Segment, rng: torch.Generator, ratio: float = 500_000.0) -> Segment:
    """Return draws from a segment in phases, one for each class, which dominates it: a word of the scenario language.

    Parameters
    ----------
    segment : Segment
        With classes.
    rng : torch.Generator
        Of the classes' order and of the draws.
    ratio : float
        How much likelier a phase's class is than each other class, at least 1, however many samples either has.
        Infinite: a phase has its class alone.

    Returns
    -------
    Segment
        As many samples as the segment has, in phases of even length; drawn with replacement, since a phase can need
        more samples of its class than there are.

    Raises
    ------
    ScenarioError
        For data without classes, or a ratio below 1.

    Notes
    -----
    Source: Niu et al., *Towards stable test-time adaptation in dynamic wild world*, ICLR 2023: 1000 phases of 100 draws
    for the 1000 classes of ImageNet-C, ratio 500 000 by default; here phases share the segment's length.

    Examples
    --------
    >>> import driftline
    >>> data = Segment.of(driftline.load("digits"))
    >>> labels = shift_labels(data, torch.Generator().manual_seed(0), ratio=math.inf).labels()
    >>> int((labels[1:] != labels[:-1]).sum())
    9
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio >= 1:
        raise ScenarioError(f"ratio={ratio!r}: must be a number of at least 1")
    present = classes_in(segment)
    labels = segment.class_labels()
    places = [(labels == label).nonzero().flatten() for label in present.tolist()]
    order = torch.randperm(len(present), generator=rng).tolist()
    drawn = []
    for dominant, size in zip(order, evenly(len(segment), len(present))):
        weights = torch.full((len(present),), 0.0 if math.isinf(ratio) else 1 / ratio, dtype=torch.float64)
        weights[dominant] = 1.0
        for which in torch.multinomial(weights, size, replacement=True, generator=rng).tolist():
            mine = places[which]
            drawn.append(mine[torch.randint(len(mine), (1,), generator=rng)])
    return segment.at(torch.cat(drawn))


def _divide(
    labels: Tensor, present: list[int], slots: int, rng: torch.Generator, concentration: float, balanced: bool
) -> list[list[Tensor]]:
    """Return the places of each class in each slot."""
    shares: list[list[Tensor]] = [[] for _ in range(slots)]
    held = torch.zeros(slots)
    for label in present:
        mine = (labels == label).nonzero().flatten()
        mine = mine[torch.randperm(len(mine), generator=rng)]
        share = _dirichlet(slots, concentration, rng)
        if balanced:
            share = share * (held < len(labels) / slots)
            share = share / share.sum() if share.sum() > 0 else (held < len(labels) / slots).double()
            share = share / share.sum()
        cuts = (share.cumsum(0) * len(mine)).floor().long()[:-1]
        for slot, part in zip(shares, mine.tensor_split(cuts), strict=True):
            slot.append(part)
        held += torch.tensor([float(len(slot[-1])) for slot in shares])
    return shares


def _dirichlet(size: int, concentration: float, rng: torch.Generator) -> Tensor:
    """Draw from a symmetric Dirichlet distribution, by way of gamma variables in logarithms.

    Of a small shape, gamma variables are too small for floating point: G(a) = G(a + 1) U^(1/a) says their logarithm.
    """
    draws = torch._standard_gamma(torch.full((size,), concentration + 1.0, dtype=torch.float64), generator=rng)
    uniform = torch.rand(size, generator=rng, dtype=torch.float64).clamp_min(1e-300)
    return torch.softmax(draws.log() + uniform.log() / concentration, 0)
