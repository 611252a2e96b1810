"""What an environment gives for a state, as the label of that state: for learners that predict values."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from driftline.errors import InputError


class Transitions(NamedTuple):
    """What followed each of the states ``x`` (B, S): a stream's labels ``y`` (B, 3 + S) hold it in this order.

    Attributes
    ----------
    rewards : Tensor, shape (B,)
        Of the step that was made.
    discounts : Tensor, shape (B,)
        What the next state's value counts: gamma, or 0 after the last step of an episode.
    returns : Tensor, shape (B,)
        The discounted sum of the rewards that did follow (Monte Carlo return): for metrics only.
    following : Tensor, shape (B, S)
        The next states.

    Examples
    --------
    >>> made = Transitions(torch.ones(2), torch.tensor([0.9, 0.0]), torch.tensor([1.9, 1.0]), torch.zeros(2, 4))
    >>> y = made.packed()
    >>> y.shape, Transitions.of(y).discounts
    (torch.Size([2, 7]), tensor([0.9000, 0.0000]))
    """

    rewards: Tensor
    discounts: Tensor
    returns: Tensor
    following: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Self:
        """Read labels.

        Raises
        ------
        InputError
            When they cannot be transitions.
        """
        if y.dim() < 2 or y.shape[-1] < 4 or not y.is_floating_point():
            raise InputError(
                f"labels of shape {tuple(y.shape)} and {y.dtype} are no transitions; give (samples, 3 + state size): "
                "reward, discount, return and next state, as scenarios.policy_evaluation does"
            )
        return cls(y[..., 0], y[..., 1], y[..., 2], y[..., 3:])

    def packed(self) -> Tensor:
        """Return them as labels (B, 3 + S)."""
        return torch.cat((torch.stack((self.rewards, self.discounts, self.returns), -1), self.following), -1)
