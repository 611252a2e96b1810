"""A run's numbers in TensorBoard, MLflow and Weights & Biases, all of them kept on this machine."""

import os
import tempfile
from pathlib import Path

# MLflow keeps its runs in files, and Weights & Biases sends nothing, when they are told so.
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"

import driftline
from driftline.learners import StreamingLDA
from driftline.metrics import OnlineAccuracy
from driftline.stream.trackers import MLflowTracker, TensorBoardTracker, WandbTracker


def main() -> None:
    out = Path(tempfile.mkdtemp())
    trackers = [
        TensorBoardTracker(out / "tensorboard"),  # tensorboard --logdir ...
        MLflowTracker((out / "mlflow").as_uri()),  # mlflow ui --backend-store-uri ...
        WandbTracker(mode="offline", dir=str(out)),  # wandb sync ...
    ]
    stream = driftline.scenarios.iid(driftline.load("digits"))[:500]
    metrics = [OnlineAccuracy(window=None)]
    driftline.run(stream, StreamingLDA(), metrics=metrics, record_every=100, trackers=trackers)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = EventAccumulator(str(out / "tensorboard")).Reload().Scalars("online_accuracy")
    print("TensorBoard:", [(point.step, round(point.value, 3)) for point in points])
    for pattern in ("mlflow/*/*/metrics/online_accuracy", "wandb/offline-run-*/*.wandb"):
        for file in out.glob(pattern):
            print(file.relative_to(out), file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
