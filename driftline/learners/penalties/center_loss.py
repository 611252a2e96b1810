"""Centre loss: features are pulled to the centre of their class, so that classes stay compact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners.penalties.base import State, check_tensors, factor, nothing
from driftline.learners.penalties.features import FeaturePenalty
from driftline.learners.replicas import Setting, check_setting


class CenterLoss(FeaturePenalty):
    """λ/2 mean ‖f − c_y‖² over a batch: f are the features, c_y the running centre of the class; for ``penalties``.

    A :class:`GradientLearner` gives it the labels of each update; in a loop of one's own, :meth:`see` does.

    Parameters
    ----------
    model : nn.Module
        The model that will be trained, with one score for each class.
    strength : float or sequence of float
        λ, at least 0; one number, or one for each replica.
    rate : float or sequence of float
        α, within [0, 1]: how far a centre moves in a step, by α Σ (f − c) / (1 + n) over its class's n samples.
    layer : str, optional
        Name of the linear layer whose inputs are the features, and whose outputs are the classes. Default: the last.
    replicas : int, optional
        How many runs the model holds in lockstep.

    Raises
    ------
    ConfigError
        For a setting out of range, a model without linear layers, or none of that name; in a step without labels.

    Notes
    -----
    Wen, Zhang, Li & Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition" (ECCV 2016), with a
    mean over the batch in place of a sum. Centres begin at 0, and move after the term has been taken.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2))
    >>> _ = model[0].weight.data.fill_(1.0)
    >>> penalty = CenterLoss(model, strength=1.0)
    >>> scores = model(torch.tensor([[2.0], [4.0]]))
    >>> penalty.see(torch.tensor([0, 1]))
    >>> penalty(model).item()
    5.0
    >>> penalty.centres
    tensor([[0.5000],
            [1.0000]])
    """

    def __init__(
        self,
        model: nn.Module,
        strength: Setting,
        *,
        rate: Setting = 0.5,
        layer: str | None = None,
        replicas: int | None = None,
    ) -> None:
        check_setting("rate", rate, replicas, low=0, high=1)
        super().__init__(model, strength, layer, replicas)
        self.rate = rate
        self.classes = int(self._tapped.out_features)
        shape = (self.classes, int(self._tapped.in_features))
        like = next(self._tapped.parameters())
        lead = () if replicas is None else (replicas,)
        self.centres = torch.zeros((*lead, *shape), dtype=like.dtype, device=like.device)
        self._labels: Tensor | None = None

    def see(self, y: Tensor) -> None:
        """Take the labels (R?, samples) of the batch that the model sees next.

        Raises
        ------
        InputError
            For what are no labels of classes.
        """
        if y.is_floating_point() or y.dim() != self.centres.dim() - 1:
            raise InputError(
                f"CenterLoss needs labels of classes, one for each sample; got {tuple(y.shape)}, {y.dtype}"
            )
        # Elsewhere this would wait for the device, and a learner has checked them.
        if y.device.type == "cpu" and y.numel() and not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise InputError(
                f"CenterLoss: labels must lie in 0 .. {self.classes - 1}, got {int(y.min())} .. {int(y.max())}"
            )
        self._labels = y

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the term for the last forward pass and its labels, then move the centres."""
        total = nothing(model)
        if self.off:
            return total
        features, y = self.take(model), self._labels
        self._labels = None
        if y is None or y.shape != features.shape[:-1]:
            found = "none" if y is None else f"{tuple(y.shape)} for features {tuple(features.shape)}"
            raise ConfigError(f"CenterLoss: no labels for this batch ({found}); call see(y) before each step")
        index = y.long().unsqueeze(-1).expand_as(features)
        away = features - self.centres.gather(-2, index)
        term = away.square().sum(-1).mean(-1)
        self._move(y, index, away.detach())
        return total + (term * factor(self.strength, term)).sum() * 0.5

    def _move(self, y: Tensor, index: Tensor, away: Tensor) -> None:
        """Move each centre towards its samples."""
        sums = torch.zeros_like(self.centres).scatter_add_(-2, index, away)
        ones = torch.ones_like(away[..., 0])
        counts = torch.zeros_like(self.centres[..., 0]).scatter_add_(-1, y.long(), ones)
        self.centres = self.centres + sums / (1.0 + counts).unsqueeze(-1) * factor(self.rate, sums)

    def to(self, device: torch.device | str) -> Self:
        """Move centres to ``device``."""
        self.centres = self.centres.to(device)
        return self

    def state_dict(self) -> State:
        """Return the centres."""
        return {"centres": self.centres}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is of other centres; nothing has been changed then.
        """
        if set(state) != {"centres"}:
            raise CheckpointError(f"the state has parts {sorted(state)}, CenterLoss ['centres']")
        self.centres = check_tensors({"centres": self.centres}, state, "centres")["centres"]
