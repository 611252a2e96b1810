"""One replica of a lockstep learner, as metrics see it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from driftline.errors import ConfigError
from driftline.learners.base import Learner, State
from driftline.stream.modules import evaluate

if TYPE_CHECKING:
    from driftline.learners.gradient import GradientLearner


class ReplicaView(Learner):
    """Replica ``number`` of a learner: predicts as it would alone, and shows its model, whose tensors are views.

    It cannot be trained: the replicas are trained together.
    """

    def __init__(self, whole: GradientLearner, number: int) -> None:
        self.whole, self.number = whole, number
        self.num_classes, self.input_shape = whole.num_classes, whole.input_shape
        self._model = unstacked(whole.model, number)

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss that the learner minimises."""
        return self.whole.loss

    def network(self) -> nn.Module:
        """Return the replica's model, with the gradients of the last update."""
        for own, all_of_them in zip(self._model.parameters(), self.whole.model.parameters()):
            own.grad = None if all_of_them.grad is None else all_of_them.grad[self.number]
        return self._model

    def predict(self, x: Tensor) -> Tensor:
        """Return scores (B, classes) for samples (B, *input)."""
        if self.whole.normalizer is not None:
            x = self.whole.normalizer.replica(self.number)(x)
        return evaluate(self._model, x)

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Return scores (B, classes) with the model for a task."""
        with self.whole.as_task(task):
            return self.predict(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Raise: the replicas learn together."""
        raise ConfigError("one replica cannot learn alone; train the lockstep learner")

    def state_dict(self) -> State:
        """Return the model's state."""
        return {"model": self._model.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Raise: the replicas' state is loaded together."""
        raise ConfigError("one replica cannot be loaded alone; load the lockstep learner")


def unstacked(model: nn.Module, number: int) -> nn.Module:
    """Return one of the models that were stacked, its parameters and buffers views of the stacked ones."""
    from driftline.learners.lockstep.modules import Replicated

    def single(module: nn.Module) -> nn.Module:
        if isinstance(module, Replicated):
            return module.single(number).train(module.training)
        one = copy.copy(module)
        one._modules = {name: None if m is None else single(m) for name, m in module._modules.items()}
        one.__dict__.pop("replicas", None)
        return one

    return single(model)
