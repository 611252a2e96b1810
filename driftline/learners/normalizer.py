"""An input normaliser that stands in front of a model: subtracts a running mean, divides by a running deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError, ConfigError, InputError, unknown
from driftline.learners.replicas import Setting, check_setting, spread

State = dict[str, object]
FORMS = ("ema", "welford")


class InputNormalizer:
    """Running mean and variance of each input feature, and samples normalised by them.

    A sample is normalised by the statistics as they would be with this one sample included, so what is new to a
    feature that has hardly varied cannot explode: with n samples seen, no value exceeds √n, nor √(d / (1 − d)) with
    decay d. Normalising changes nothing and does not depend on the rest of the batch; :meth:`update` takes samples
    in. Before the first update a batch is normalised by its own statistics (a single sample: to zeros).

    Parameters
    ----------
    form : {"ema", "welford"}
        "ema": exponential moving averages, which follow a stream that changes; sample n comes in with the share
        1 − min(d, 1 − 1/n), so the first ones are plainly averaged. "welford": mean and variance of all samples so far.
    decay : float or sequence of float
        d, above 0 and below 1, for "ema"; one number, or one for each replica. It remembers about 1 / (1 − d) samples.
    eps : float or sequence of float
        Added to the variance, above 0, in the inputs' squared unit; one number, or one for each replica.
    replicas : int, optional
        How many runs in lockstep: samples are (R, B, *input), statistics (R, *input).

    Raises
    ------
    ConfigError
        For a setting out of range, or not one for each replica.

    Notes
    -----
    Samples are taken in one by one, in their order, whatever the batch size: in one formula for the whole batch, which
    is exact for both forms (Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, with
    weights). Variances are those of the population (divided by n). For a batch of one it is the usual observation
    normaliser of streaming reinforcement learning, which updates first and normalises then (Elsayed, Vasan & Mahmood,
    "Streaming Deep Reinforcement Learning Finally Works", 2024, with Welford's form).

    In a learner, predicting and learning both see the statistics before the batch, and :meth:`update` comes last:
    then observing is predicting followed by learning, and one forward pass can serve both.

    Examples
    --------
    >>> normalizer = InputNormalizer(decay=0.9)
    >>> x = torch.tensor([[10.0, 5.0], [14.0, 5.0]])
    >>> normalizer(x)
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    >>> normalizer.update(x)
    >>> normalizer.mean, normalizer.variance
    (tensor([12.,  5.]), tensor([4., 0.]))
    >>> normalizer(torch.tensor([[12.0, 1000.0]]))
    tensor([[0.0000, 1.4142]])
    """

    def __init__(
        self,
        form: Literal["ema", "welford"] = "ema",
        *,
        decay: Setting = 0.99,
        eps: Setting = 1e-8,
        replicas: int | None = None,
    ) -> None:
        if form not in FORMS:
            raise unknown("form", str(form), FORMS)
        for name, value, below in (("decay", decay, 1.0), ("eps", eps, float("inf"))):
            check_setting(name, value, replicas)
            if not all(0 < number < below for number in (value if isinstance(value, Sequence) else [value])):
                raise ConfigError(f"{name}={value}: must be above 0" + (" and below 1" if name == "decay" else ""))
        self.form, self.decay, self.eps, self.replicas = form, decay, eps, replicas
        self.seen = 0
        self._axis = 0 if replicas is None else 1
        # With a dimension of one in the samples' place, so that they meet samples as they are.
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None
        self._known: tuple[object, ...] = ()
        self._epsilon: dict[tuple[object, ...], Tensor] = {}
        self._steady: dict[tuple[object, ...], tuple[float | Tensor, float | Tensor]] = {}

    @property
    def mean(self) -> Tensor | None:
        """Mean of each feature, (*input) or (R, *input); None before the first update."""
        return None if self._mean is None else self._mean.squeeze(self._axis)

    @property
    def variance(self) -> Tensor | None:
        """Variance of each feature, like the mean."""
        return None if self._variance is None else self._variance.squeeze(self._axis)

    def __call__(self, x: Tensor) -> Tensor:
        """Return samples normalised; changes no state.

        Parameters
        ----------
        x : Tensor, shape (B, *input) or (R, B, *input)
            Of a floating dtype.

        Returns
        -------
        Tensor
            Of the same shape and dtype.

        Raises
        ------
        InputError
            For another shape than seen so far, no samples, or integers.
        """
        self._check(x)
        if self._mean is None or self._variance is None:
            mean, variance = self._including(x)
            return ((x - mean) * (variance + self._eps(variance)).rsqrt_()).to(x.dtype)
        away = x - self._mean
        share = spread(self._share(), away)
        # With the sample included, away shrinks by (1 - share), the variance is (1 - share) (variance + share away²).
        if isinstance(share, Tensor):
            including = (self._variance + share * away.square()) / (1.0 - share) + self._eps(away)
        else:
            including = torch.addcmul(self._variance, away, away, value=share)
            including = torch.add(self._eps(away), including, alpha=1.0 / (1.0 - share))
        return (away * including.rsqrt_()).to(x.dtype)

    def update(self, x: Tensor) -> None:
        """Take in samples, in their order.

        Parameters
        ----------
        x : Tensor, shape (B, *input) or (R, B, *input)
            As they came, finite, of a floating dtype.

        Raises
        ------
        InputError
            As for :meth:`__call__`; nothing has been changed then.
        """
        self._check(x)
        self._mean, self._variance = self._including(x.detach())
        self.seen += x.shape[self._axis]

    def replica(self, number: int) -> InputNormalizer:
        """Return one of the replicas' normaliser, as it stands.

        Raises
        ------
        ConfigError
            When there are no replicas.
        """
        if self.replicas is None:
            raise ConfigError("InputNormalizer has no replicas")
        decay, eps = (v[number] if isinstance(v, Sequence) else v for v in (self.decay, self.eps))
        one = InputNormalizer(self.form, decay=decay, eps=eps)
        one.seen = self.seen
        if self._mean is not None and self._variance is not None:
            one._mean, one._variance = self._mean[number], self._variance[number]
        return one

    def to(self, device: torch.device | str) -> Self:
        """Move the statistics to ``device``."""
        if self._mean is not None and self._variance is not None:
            self._mean, self._variance = self._mean.to(device), self._variance.to(device)
        self._known = ()
        return self

    def state_dict(self) -> State:
        """Return form, number of samples, mean and variance (None before the first sample)."""
        return {"form": self.form, "seen": self.seen, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            For another form, or statistics of another shape; nothing has been changed then.
        """
        if set(state) != set(self.state_dict()) or state["form"] != self.form:
            raise CheckpointError(
                f"the state has parts {sorted(state)} and form {state.get('form')!r}, this normaliser "
                f"{sorted(self.state_dict())} and {self.form!r}"
            )
        mean, variance = cast("tuple[Tensor | None, Tensor | None]", (state["mean"], state["variance"]))
        shape = None if mean is None else tuple(mean.shape)
        known = None if self.mean is None else tuple(self.mean.shape)
        of_others = shape is not None and self.replicas is not None and shape[:1] != (self.replicas,)
        if of_others or (shape is not None and known is not None and shape != known):
            raise CheckpointError(
                f"the state has statistics of shape {shape}, this normaliser of {known or (self.replicas, '...')}"
            )
        copies = (None if t is None else t.detach().clone().unsqueeze(self._axis) for t in (mean, variance))
        self.seen, self._known = cast(int, state["seen"]), ()
        self._mean, self._variance = copies

    def _check(self, x: Tensor) -> None:
        """Raise if samples cannot be used; statistics follow them to their device."""
        kind = (x.shape, x.dtype, x.device)
        if kind == self._known:
            return
        shape, axis = tuple(x.shape), self._axis
        if not x.is_floating_point():
            raise InputError(f"InputNormalizer: samples of {x.dtype}; convert to float32")
        if len(shape) <= axis or not shape[axis] or (axis and shape[0] != self.replicas):
            wanted = "(samples, ...)" if self.replicas is None else f"({self.replicas}, samples, ...)"
            raise InputError(f"InputNormalizer: samples of shape {shape}, expected {wanted} with at least one sample")
        if self._mean is None:
            return
        known = tuple(self._mean.shape[axis + 1 :])
        if shape[axis + 1 :] != known:
            raise InputError(f"InputNormalizer: samples of shape {shape[axis + 1 :]}, so far of {known}")
        if x.device != self._mean.device:
            self.to(x.device)
        self._known = kind

    def _eps(self, like: Tensor) -> Tensor:
        key = (like.dim(), like.dtype, like.device)
        if key not in self._epsilon:
            self._epsilon[key] = torch.as_tensor(spread(self.eps, like), dtype=like.dtype, device=like.device)
        return self._epsilon[key]

    def _share(self) -> Setting:
        """Return how much the next sample counts."""
        first = 1.0 / (self.seen + 1)
        if self.form == "welford":
            return first
        if isinstance(self.decay, Sequence):
            return [max(1.0 - d, first) for d in self.decay]
        return max(1.0 - self.decay, first)

    def _including(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance with samples included."""
        if x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        if self._mean is None or self._variance is None:
            # Counts for nothing; near the samples, so that differences are exact.
            mean, variance = x.narrow(self._axis, 0, 1), torch.zeros_like(x.narrow(self._axis, 0, 1))
        else:
            mean, variance = self._mean, self._variance
        away = x - mean
        share = self._share()
        if x.shape[self._axis] == 1 and not isinstance(share, Sequence):
            mean = torch.add(mean, away, alpha=share)
            return mean, torch.addcmul(variance, away, away, value=share).mul_(1.0 - share)
        rest, shares = self._batch_shares(away)
        step = (away * shares).sum(self._axis, keepdim=True)
        spreads = (away - step).square_().mul_(shares).sum(self._axis, keepdim=True)
        return mean + step, (variance + step.square()).mul_(rest).add_(spreads)

    def _batch_shares(self, away: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return how much the past counts after a batch, and how much each of its samples."""
        count = away.shape[self._axis]
        if self.form == "welford":
            return self.seen / (self.seen + count), 1.0 / (self.seen + count)
        decays = list(self.decay) if isinstance(self.decay, Sequence) else [self.decay]
        steady = all(1.0 - d >= 1.0 / (self.seen + 1) for d in decays)
        key = (count, away.dim(), away.dtype, away.device)
        if steady and key in self._steady:
            return self._steady[key]
        rests, shares = zip(*(_one_by_one(d, self.seen, count) for d in decays))
        ones = (1,) * (away.dim() - 1 - self._axis)
        each = torch.tensor(shares, dtype=away.dtype, device=away.device).view(-1, count, *ones)
        if isinstance(self.decay, Sequence):
            found: tuple[float | Tensor, Tensor] = spread(rests, away), each
        else:
            found = rests[0], each if self._axis else each[0]
        if steady:
            self._steady[key] = found
        return found


def _one_by_one(decay: float, seen: int, count: int) -> tuple[float, list[float]]:
    """Return what is left of the past after samples taken in one by one, and how much each of them counts then."""
    left, shares = 1.0, [0.0] * count
    for i in reversed(range(count)):
        share = max(1.0 - decay, 1.0 / (seen + i + 1))
        shares[i] = left * share
        left *= 1.0 - share
    return left, shares
