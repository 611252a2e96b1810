"""Dynamic evaluation: a sequence model learns from the sequence it has just predicted (Krause et al., ICML 2018)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.choosing import Parameters, choose
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.settings import above, between, one_of
from driftline.errors import ConfigError, InputError
from driftline.stream.modules import evaluate

Rule = Literal["rms", "sgd"]


class DynamicEvaluation(ModelAdapter):
    """After predicting a segment, step down the model's own loss on it, and drift back towards the source.

    Parameters
    ----------
    model : nn.Module
        The source: maps tokens (B, T) to the scores of each next token (B, T, C).
    lr : float
        Step size; above 0.
    decay : float
        How strongly parameters are drawn to the source's at each step, 0 to 1.
    rule : "rms" or "sgd"
        "rms": gradients are divided by their root mean square on source data, plus ``eps``, and parameters that have
        large gradients there return faster. "sgd": neither.
    source : Tensor, optional
        Segments (N, T) of source tokens, by which "rms" is scaled.
    eps : float
        Above 0. The smaller, the larger the steps of parameters that hardly matter on source data.
    parameters : str, sequence of str, or callable
        What is trained, see :data:`driftline.adapters.choosing.Parameters`.
    inplace : bool
        Adapt the model itself.

    Attributes
    ----------
    loss : float
        Mean loss of the last segment's tokens but the first, in nats, before the step: its exponential is the
        perplexity. NaN before the first.

    Raises
    ------
    ConfigError
        For a setting out of range, "rms" without ``source``, or segments shorter than 2.

    Notes
    -----
    Sources: Krause, Kahembwe, Murray & Renals, *Dynamic evaluation of neural sequence models*, ICML 2018, and *Dynamic
    evaluation of transformer language models*, 2019. A batch is a segment, or several side by side. Its target is the
    sequence itself, shifted by one, so no label is needed. Scores (B, C) are those of the token that follows the
    segment, from before the step. The model sees each segment by itself: no recurrent state is carried over. The mean
    squares are taken over batches of 16 source segments, as the authors take them over mini-batches.
    Single samples: a single sequence is what the method is made for. A segment of one token has nothing to learn from.

    Examples
    --------
    >>> class Bigram(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scores = nn.Embedding(4, 4)
    ...     def forward(self, x):
    ...         return self.scores(x)
    >>> adapter = DynamicEvaluation(Bigram(), lr=1.0, rule="sgd", decay=0.0)
    >>> x = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    >>> losses = [(adapter.adapt(x), adapter.loss)[1] for _ in range(10)]
    >>> adapter.adapt(x).shape, losses[-1] < losses[0]
    (torch.Size([1, 4]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-4,
        decay: float = 1e-3,
        rule: Rule = "rms",
        source: Tensor | None = None,
        eps: float = 1e-5,
        parameters: Parameters = "all",
        inplace: bool = False,
    ) -> None:
        above("lr", lr, 0)
        above("eps", eps, 0)
        between("decay", decay, 0, 1)
        one_of("rule", rule, ("rms", "sgd"))
        if rule == "rms" and (source is None or source.dim() != 2 or source.shape[1] < 2 or len(source) == 0):
            raise ConfigError('source: rule="rms" needs tokens (N, T), T at least 2, by which gradients are scaled')
        super().__init__(model, inplace)
        self.lr, self.decay, self.rule, self.eps, self.parameters = lr, decay, rule, eps, parameters
        self.chosen = [*choose(self.model, parameters).values()]
        self.origin = [p.detach().clone() for p in self.chosen]
        # Not held: they are the source's, which stays.
        self.scale, self.pull = self._source_statistics(source if rule == "rms" else None)
        self.loss = float("nan")
        self.remember()

    def _source_statistics(self, source: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Return by what gradients are divided, and how fast each value returns to the source."""
        if source is None:
            ones = [torch.ones_like(p) for p in self.chosen]
            return ones, [self.decay * one for one in ones]
        batches = source.to(self.device).split(16)  # type: ignore[no-untyped-call]
        squares = [torch.zeros_like(p) for p in self.chosen]
        for batch in batches:
            gradients = self._gradients(self._loss(self._all_scores(batch), batch))
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 / len(batches))
        roots = [square.sqrt() for square in squares]
        mean = torch.cat([root.flatten() for root in roots]).mean()
        if not bool(torch.isfinite(mean)):
            raise ConfigError("source: the model's gradients on it are NaN or Inf")
        pull = [(self.decay * root / mean.clamp(min=1e-30)).clamp(max=1.0) for root in roots]
        return [root + self.eps for root in roots], pull

    def adapted_parameters(self) -> list[nn.Parameter]:
        """Return the chosen ones."""
        return self.chosen

    def update(self, x: Tensor) -> Tensor:
        """Predict the segment; then step down its loss and back towards the source."""
        scores = self._all_scores(x)
        if x.shape[1] > 1:
            loss = self._loss(scores, x)
            demand_finite(loss, "the loss of this segment")
            gradients = self._gradients(loss)
            self.loss = float(loss.detach())
            with torch.no_grad():
                weights: list[Tensor] = [*self.chosen]
                back = torch._foreach_sub(self.origin, weights)
                torch._foreach_addcmul_(weights, back, self.pull)
                torch._foreach_addcdiv_(weights, gradients, self.scale, value=-self.lr)
        return scores[:, -1]

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, C) of the token that follows each segment (B, T); changes nothing."""
        self.check(x)
        return evaluate(self.model, x)[:, -1]

    def _all_scores(self, x: Tensor) -> Tensor:
        with torch.enable_grad(), _trainable_in_evaluation(self.model):
            scores: Tensor = self.model(x)
            return scores

    def _loss(self, scores: Tensor, x: Tensor) -> Tensor:
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.chosen, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.chosen, found, strict=True)]

    def check(self, x: Tensor) -> None:
        """Raise if a batch cannot be used: tokens must be whole numbers below the number of scores."""
        if self.trusted:
            return
        if isinstance(x, Tensor) and x.is_floating_point():
            raise InputError(f"DynamicEvaluation, x: tokens must be integers (B, T), got {x.dtype}")
        super().check(x)
        if self.num_classes is not None and (int(x.min()) < 0 or int(x.max()) >= self.num_classes):
            raise InputError(f"DynamicEvaluation, x: tokens must be 0..{self.num_classes - 1}, found {int(x.max())}")

    def verify(self, x: Tensor) -> None:
        """Raise unless the model gives scores for each token."""
        scores = evaluate(self.model, x[:1])
        if scores.dim() != 3 or scores.shape[:2] != x[:1].shape:
            raise InputError(
                f"the model maps tokens {tuple(x[:1].shape)} to {tuple(scores.shape)}; it must give the scores of each "
                "next token, (B, T, C)"
            )


def _trainable_in_evaluation(model: nn.Module) -> AbstractContextManager[object]:
    """CuDNN's recurrent layers have no gradients in evaluation mode; torch's own have."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
