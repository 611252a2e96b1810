"""A learner of your own in one class, held to the laws that every learner obeys."""

from collections.abc import Mapping

import torch
from torch import Tensor

import driftline
from driftline.errors import CheckpointError
from driftline.learners import Learner
from driftline.testing import check_learner


class Perceptron(Learner):
    """The multi-class perceptron: wrong predictions move two weight vectors."""

    def __init__(self, inputs: int, classes: int) -> None:
        self.num_classes = classes
        self.weight = torch.zeros(classes, inputs)

    def predict(self, x: Tensor) -> Tensor:
        self.check(x)
        return x.flatten(1) @ self.weight.T

    def learn(self, x: Tensor, y: Tensor) -> None:
        self.check(x, y)
        self.input_shape = tuple(x.shape[1:])
        guess = self.predict(x).argmax(1)
        towards = torch.nn.functional.one_hot(y, self.num_classes) - torch.nn.functional.one_hot(
            guess, self.num_classes
        )
        self.weight = self.weight + towards.to(x.dtype).T @ x.flatten(1)

    def state_dict(self) -> dict[str, object]:
        return {"weight": self.weight, "input_shape": self.input_shape and list(self.input_shape)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        if set(state) != set(self.state_dict()) or state["weight"].shape != self.weight.shape:
            raise CheckpointError("this is not the state of such a perceptron")
        self.weight = state["weight"]
        self.input_shape = state["input_shape"] and tuple(state["input_shape"])

    def to(self, device: torch.device | str) -> "Perceptron":
        self.weight = self.weight.to(device)
        return self


def main() -> None:
    check_learner(lambda: Perceptron(inputs=4, classes=3))
    print("the perceptron obeys the laws")
    stream = driftline.scenarios.iid(driftline.load("digits"), seed=1)
    report = driftline.run(stream, Perceptron(64, 10), batch_size=1)
    print(f"online accuracy on digits: {report.results['online_accuracy']:.3f}")


if __name__ == "__main__":
    main()
