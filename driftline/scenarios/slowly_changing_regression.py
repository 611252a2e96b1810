"""A real number to be predicted from bits, most of which change rarely (Dohare et al., 2021, 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from driftline.scenarios.checks import between, choice, whole
from driftline.stream.dataset import Dataset
from driftline.stream.recipe import Recipe
from driftline.stream.scenario import scenario
from driftline.stream.segment import Segment

FORMS = ("flip_one", "redraw")
VARIANTS = ("paper", "released")
ROWS = 65_536
"""Distinct inputs whose targets are computed together."""


@scenario
def slowly_changing_regression(
    rng: torch.Generator,
    samples: int = 1_000_000,
    period: int = 10_000,
    form: str | None = None,
    bits: int = 20,
    slow: int = 15,
    features: int = 100,
    beta: float = 0.7,
    variant: str = "paper",
) -> Iterator[Segment]:
    """Predict a number from bits, most of which change rarely: the loss of plasticity of a tiny network in a minute.

    Also known as the bit-flipping problem. Makes its own data: called without a dataset.

    Parameters
    ----------
    rng : seed
        Of the target network and of the bits.
    samples : int
        Length of the stream.
    period : int
        Samples after which slow bits change; each period is a segment.
    form : "flip_one" or "redraw", optional
        What happens then: one slow bit flips, or all of them are drawn anew. Default: as ``variant`` has it.
    bits : int
        Length of an input, 1 to 62; each bit is 0 or 1.
    slow : int
        How many of them, the first ones, are slow, 1 to ``bits``; the others are drawn anew for each sample.
    features : int
        Threshold units of the target network.
    beta : float
        Sets their thresholds: a unit is on when more than this share of its inputs are as the signs of its weights are.
    variant : "paper" or "released"
        "paper": one bit flips; a unit's threshold counts all of its negative weights. "released": all bits are
        redrawn; in the count, the weight of the constant input enters as half of it.

    Raises
    ------
    ScenarioError
        For numbers out of range.

    Notes
    -----
    Source: Dohare, Sutton & Mahmood, *Continual backprop: stochastic gradient descent with persistent randomness*,
    2021; Dohare et al., *Loss of plasticity in deep continual learning*, Nature 2024: the defaults, with 100 seeds.

    The target is ``y = sum_i w_i [v_i x + b_i > beta (m + 1) - S_i] + c`` with every weight -1 or 1, m bits and S_i the
    number of -1 among v_i and b_i; the released code has ``(m - sum(v_i) + b_i) / 2`` for S_i. It never changes, and is
    not scaled. The constant input of the paper is not part of x: here, as in the released code, it is the target's b
    and the bias of the learner.

    Of a 20-5-1 network trained sample by sample with step size 0.01, the squared error over the 100 000 samples that
    end at 100 000, 300 000 and 1 000 000 is 0.72, 1.00 and 1.30 (100 seeds, standard error up to 0.05), of a linear one
    0.90, 0.88 and 0.89, with ``variant="released"``; with the paper's text, 0.95, 1.12, 1.40 and 1.21, 1.14, 1.18.

    Examples
    --------
    >>> import driftline
    >>> stream = driftline.scenarios.slowly_changing_regression(seed=0, samples=25_000)
    >>> [len(segment) for segment in stream.segments], stream.input_shape, stream.classes
    ([10000, 10000, 5000], (20,), ())
    >>> x, y = stream.read(0, 3)
    >>> torch.equal(x[0, :15], x[1, :15]), y.shape
    (True, torch.Size([3]))
    """
    for name, value in (("samples", samples), ("period", period), ("features", features)):
        whole(name, value, 1)
    # An input is also a whole number of 64 bits with a sign.
    whole("bits", bits, 1, 62)
    whole("slow", slow, 1, bits, f"an input has {bits} bits")
    between("beta", beta, -1, 2)
    choice("variant", variant, VARIANTS)
    form = {"paper": "flip_one", "released": "redraw"}[variant] if form is None else form
    choice("form", form, FORMS)

    target = Target(bits, features, beta, variant, rng)
    patterns = _slow_bits(-(-samples // period), slow, form, rng)
    rest = torch.randint(2 ** (bits - slow), (samples,), generator=rng)
    numbers = (_as_number(patterns) << (bits - slow)).repeat_interleave(period)[:samples] | rest
    distinct, rows = torch.unique(numbers, return_inverse=True)
    x = _as_bits(distinct, bits)
    recipe = Recipe(Dataset(x, torch.cat([target(part) for part in torch.split(x, ROWS)]), name=f"{bits} bits"))
    # Copies: parts of one tensor would each pickle all of it.
    for i, part in enumerate(torch.split(rows.to(torch.int32), period)):
        yield Segment(part.clone(), (recipe,), name=f"period {i}")


class Target:
    """The network of threshold units that gives the targets, as :func:`slowly_changing_regression` says."""

    def __init__(self, bits: int, features: int, beta: float, variant: str, rng: torch.Generator) -> None:
        def signs(*shape: int) -> Tensor:
            return torch.randint(2, shape, generator=rng).mul_(2).sub_(1).float()

        self.weight, self.bias = signs(features, bits), signs(features)
        self.out, self.constant = signs(features), signs(1)
        if variant == "paper":
            negative = (self.weight < 0).sum(1) + (self.bias < 0).float()
        else:
            negative = (bits - self.weight.sum(1) + self.bias) / 2
        self.threshold = beta * (bits + 1) - negative

    def __call__(self, x: Tensor) -> Tensor:
        """Return the targets (n,) of inputs (n, bits)."""
        on = (x @ self.weight.T + self.bias > self.threshold).float()
        return on @ self.out + self.constant


def _slow_bits(periods: int, slow: int, form: str, rng: torch.Generator) -> Tensor:
    """Return the slow bits of each period, (periods, slow)."""
    if form == "redraw":
        return torch.randint(2, (periods, slow), generator=rng)
    first = torch.randint(2, (1, slow), generator=rng)
    flips = torch.nn.functional.one_hot(torch.randint(slow, (periods - 1,), generator=rng), slow)
    return torch.cat([first, flips]).cumsum(0) % 2


def _as_number(bits: Tensor) -> Tensor:
    """Read each row of bits as a binary number."""
    return (bits << torch.arange(bits.shape[1] - 1, -1, -1)).sum(1)


def _as_bits(numbers: Tensor, bits: int) -> Tensor:
    """Write each number in so many binary digits."""
    return (numbers.unsqueeze(1) >> torch.arange(bits - 1, -1, -1)).bitwise_and_(1).float()
