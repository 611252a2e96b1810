"""PyTorch's own pieces: a dataset with augmentation as a stream, any torch optimizer, metrics of torchmetrics."""

import torch
from torch.utils.data import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

import driftline
from driftline.interop.pytorch import from_torch
from driftline.interop.torch_metrics import TorchMetric
from driftline.learners import GradientLearner

DIGITS = driftline.load("digits")


class Shaky(Dataset):
    """Digits, moved by a pixel at random each time they are looked at."""

    def __len__(self) -> int:
        return len(DIGITS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        shift = torch.randint(-1, 2, (2,)).tolist()
        return DIGITS.x[index].roll(shift, (-2, -1)), int(DIGITS.y[index])


def main() -> None:
    stream = from_torch(Shaky(), seed=1)  # read as it is played: the shifts are keyed by seed and position
    model = driftline.models.mlp(stream.input_shape, len(stream.classes), seed=1)
    learner = GradientLearner(model, torch.optim.NAdam(model.parameters(), lr=0.005))
    both = MetricCollection([MulticlassAccuracy(10, average="micro"), MulticlassCalibrationError(10)])
    for step in driftline.play(stream, learner, batch_size=10, metrics=[TorchMetric(both)]):
        if step.position % 400 == 0:
            print(step.position, {name: round(value, 3) for name, value in step.metrics().items()})


if __name__ == "__main__":
    main()
