"""Linear regression whose coefficients move: the neighbourhood in which best step sizes are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from driftline.errors import ScenarioError
from driftline.scenarios.checks import between, whole
from driftline.stream.dataset import Dataset
from driftline.stream.recipe import Recipe
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment


@scenario
def drifting_regression(
    rng: torch.Generator,
    samples: int = 10_000,
    dimension: int = 10,
    shift: float | Sequence[float] = 0.01,
    noise: float = 1.0,
    distance: float = 1.0,
) -> Iterator[Segment]:
    """Predict a linear function of normal inputs, whose coefficients move after each sample.

    Makes its own data: called without a dataset.

    Parameters
    ----------
    rng : seed
        Of inputs, noise and moves.
    samples : int
        Length of the stream.
    dimension : int
        Number of inputs, each standard normal.
    shift : float or list of float
        Euclidean norm of each move, in a direction of its own; 0: the function stays. A list divides the stream into
        as many equal segments (the first ones a sample longer where it must be), each with its shift.
    noise : float
        Standard deviation of what is added to the targets.
    distance : float
        Euclidean norm of the first coefficients, which have a random direction.

    Raises
    ------
    ScenarioError
        For numbers out of range, or an empty list of shifts.

    Notes
    -----
    The stream of online linear regression under shift in Fahrbach et al., "Learning Rate Schedules in the Presence of
    Distribution Shift" (ICML 2023), with normal inputs; the step sizes that are best for it are given by
    :func:`driftline.learners.schedules.regression_step_sizes`.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.drifting_regression(seed=0, samples=300, shift=[0, 0.5, 0])
    >>> [segment.name for segment in stream.segments], stream.input_shape, stream.classes
    (['shift 0', 'shift 0.5', 'shift 0'], (10,), ())
    """
    for name, value in (("samples", samples), ("dimension", dimension)):
        whole(name, value, 1)
    between("noise", noise, 0)
    between("distance", distance, 0)
    shifts = list(shift) if isinstance(shift, Sequence) and not isinstance(shift, str) else [shift]
    if not shifts:
        raise ScenarioError("shift=[]: give one for each segment")
    for moved in shifts:
        between("shift", moved, 0)
    whole("samples", samples, len(shifts), None, f"there are {len(shifts)} segments")

    parts = torch.tensor_split(torch.arange(samples), len(shifts))
    norms = torch.cat([torch.full((len(part),), float(moved)) for part, moved in zip(parts, shifts)])
    # Each sample's coefficients: the first ones, and all moves before it.
    lengths = torch.cat([torch.tensor([float(distance)]), norms[:-1]])
    directions = torch.nn.functional.normalize(torch.randn(samples, dimension, generator=rng), dim=1)
    truth = (lengths.unsqueeze(1) * directions).double().cumsum(0)
    x = torch.randn(samples, dimension, generator=rng)
    y = (x.double() * truth).sum(1).float() + noise * torch.randn(samples, generator=rng)
    recipe = Recipe(Dataset(x, y, name=f"{dimension} normal inputs"))
    for part, moved in zip(parts, shifts):
        yield Segment(part.to(torch.int32).clone(), (recipe,), name=f"shift {moved:g}")
