"""In Avalanche's training loop: a learner of ours as a strategy, and parts of ours inside one of its own."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Replay

import driftline
from driftline.interop.avalanche import DriftlineStrategy, as_plugin, to_avalanche
from driftline.learners import StreamingLDA
from driftline.learners.optimizers import UPGD
from driftline.learners.penalties import L2Init
from driftline.learners.renewers import ContinualBackprop


def evaluator() -> EvaluationPlugin:
    # All of Avalanche's metrics and loggers work, such as loggers=[avalanche.logging.InteractiveLogger()].
    return EvaluationPlugin(accuracy_metrics(stream=True), forgetting_metrics(stream=True), loggers=[])


def main() -> None:
    stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5, seed=1)
    benchmark = to_avalanche(stream)

    lda = DriftlineStrategy(StreamingLDA(), train_mb_size=10, evaluator=evaluator())

    model = driftline.models.mlp(stream.input_shape, len(stream.classes), seed=1)
    parts = [L2Init(model, strength=1e-3), ContinualBackprop(model, replacement_rate=1e-3)]
    replay = Replay(
        model=model,
        optimizer=UPGD(model.parameters(), lr=0.2, sigma=0.001),
        criterion=torch.nn.CrossEntropyLoss(),
        mem_size=200,
        train_mb_size=10,
        train_epochs=3,
        plugins=[as_plugin(part) for part in parts],
        evaluator=evaluator(),
    )
    for name, strategy in (("streaming LDA", lda), ("replay with parts", replay)):
        for experience in benchmark.train_stream:
            strategy.train(experience)
            found = strategy.eval(benchmark.test_stream)
        accuracy, forgetting = (found[f"{m}/eval_phase/test_stream"] for m in ("Top1_Acc_Stream", "StreamForgetting"))
        print(f"{name}: accuracy on all experiences {accuracy:.2f}, forgetting {forgetting:.2f}")


if __name__ == "__main__":
    main()
