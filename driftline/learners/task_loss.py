"""Cross-entropy among the classes of a sample's own task: one network, and a head for each task (task-incremental)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from driftline.errors import CheckpointError, ConfigError

State = dict[str, object]


class TaskCrossEntropy:
    """Cross-entropy in which only classes that share a task with the label compete.

    The outputs of a task's classes are a head of their own: those of other tasks get no gradient. Replayed samples and
    late labels of earlier tasks compete with the classes of theirs. A label of which no task is known yet competes
    with all, so without tasks this is plain cross-entropy. ``HeldOut(compete="task")`` evaluates in the same way.

    Parameters
    ----------
    replicas : int, optional
        Number of runs in lockstep: scores are then (R, B, C), and the loss is the sum of each one's.

    Attributes
    ----------
    competing : Tensor or None
        bool (R?, C, C): which classes compete with a label; None before the first task.

    Notes
    -----
    Van de Ven, Tuytelaars & Tolias, "Three types of incremental learning" (Nature Machine Intelligence 2022): the
    multi-headed output of task-incremental learning.

    Examples
    --------
    >>> loss = TaskCrossEntropy()
    >>> scores, y = torch.zeros(2, 4), torch.tensor([0, 1])
    >>> round(loss(scores, y).exp().item())
    4
    >>> loss.begin_task(0, torch.tensor([True, True, False, False]))
    >>> round(loss(scores, y).exp().item())
    2
    """

    def __init__(self, replicas: int | None = None) -> None:
        self.replicas = replicas
        self.competing: Tensor | None = None

    def begin_task(self, task: int, classes: Tensor | None = None) -> None:
        """Let the classes of a task compete with each other from now on.

        Parameters
        ----------
        task : int
            Not looked at: a class may be in several tasks, and then competes with all their classes.
        classes : Tensor, shape (C,)
            Bool: which classes occur in it; with replicas (R, C).

        Raises
        ------
        ConfigError
            Where the classes are unknown, or fewer or more than before; nothing has been changed then.
        """
        if classes is None:
            raise ConfigError("TaskCrossEntropy: the classes of the task are unknown; the stream has no known labels")
        together = classes.unsqueeze(-1) & classes.unsqueeze(-2)
        if self.competing is None:
            self.competing = together
        elif self.competing.shape != together.shape:
            before, now = tuple(self.competing.shape[:-1]), tuple(classes.shape)
            raise ConfigError(f"TaskCrossEntropy: classes of shape {now}, but before there were {before}")
        else:
            self.competing = self.competing | together.to(self.competing.device)

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the mean over the batch, a scalar; of scores (R, B, C), the sum over replicas of each one's."""
        if self.competing is not None:
            scores = scores.masked_fill(~self._rivals(y, scores), float("-inf"))
        if scores.dim() == 2:
            return F.cross_entropy(scores, y)
        return F.cross_entropy(scores.flatten(0, 1), y.flatten(0, 1)) * len(scores)

    def _rivals(self, y: Tensor, scores: Tensor) -> Tensor:
        """Return which scores compete: (R?, B, outputs)."""
        assert self.competing is not None
        self.competing = self.competing.to(scores.device)
        # Outputs beyond the stream's classes are of no task.
        table = F.pad(self.competing, (0, scores.shape[-1] - self.competing.shape[-1]))
        rows = table[y] if table.dim() == 2 else table[torch.arange(len(table), device=y.device).unsqueeze(1), y]
        return rows | ~rows.any(-1, keepdim=True)

    def to(self, device: torch.device | str) -> Self:
        """Move what is known of tasks to ``device``."""
        self.competing = None if self.competing is None else self.competing.to(device)
        return self

    def state_dict(self) -> State:
        """Return which classes compete."""
        return {"competing": None if self.competing is None else self.competing.clone()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it is not one; nothing has been changed then.
        """
        saved = state.get("competing", ...)
        if saved is not None and not isinstance(saved, Tensor):
            raise CheckpointError(f"the state has {sorted(state)}, TaskCrossEntropy has ['competing']")
        self.competing = None if saved is None else saved.clone()
