"""Error of a critic: the values that it predicts, beside the returns that followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from driftline.metrics.online_error import OnlineError
from driftline.stream.transitions import Transitions


class CriticError(OnlineError):
    """Squared and absolute error of predicted values against Monte Carlo returns, predicted before they are learned.

    For streams of :class:`~driftline.stream.transitions.Transitions`. Returns are noisy, so even a perfect critic has
    an error: the variance of the returns from a state.

    Parameters
    ----------
    window : int, optional
        Samples in the window; None: no windowed values.

    Raises
    ------
    InputError
        As for :class:`OnlineError`; for labels that are no transitions.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.learners import GradientLearner, SlidingReplay, TDLoss
    >>> stream = driftline.scenarios.policy_evaluation(seed=0, samples=1000, gamma=0.9)
    >>> critic = driftline.models.mlp(stream.input_shape, 1, (32,))
    >>> adam = torch.optim.Adam(critic.parameters(), lr=1e-3)
    >>> learner = GradientLearner(critic, adam, TDLoss(critic), replay=SlidingReplay(500), replay_batch=32)
    >>> results = driftline.run(stream, learner, metrics=[CriticError(window=200)]).results
    >>> results["critic_squared_error_window"] < results["critic_squared_error"]
    True
    """

    prefix: ClassVar[str] = "critic"
    definitions: ClassVar[Mapping[str, str]] = {
        "critic_squared_error": "mean of (predicted value - Monte Carlo return)^2 of states before they are learned "
        "from, since the start",
        "critic_absolute_error": "the same with the absolute difference",
        "critic_squared_error_window": "the squared error over the most recent states",
        "critic_absolute_error_window": "the absolute error over the most recent states",
    }

    def truth(self, y: Tensor) -> Tensor:
        """Return the returns among a batch's labels."""
        return Transitions.of(y).returns
