"""Strategies of Avalanche, played here: recorded, resumable, and measured by our metrics."""

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import EWC, Naive, Replay

import driftline
from driftline.interop.avalanche import AvalancheLearner
from driftline.metrics import HeldOut, OnlineAccuracy


def main() -> None:
    stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5, seed=1)
    for name, kind, own in (
        ("Naive", Naive, {}),
        ("EWC", EWC, {"ewc_lambda": 10.0}),
        ("Replay", Replay, {"mem_size": 200}),
    ):
        model = driftline.models.mlp(stream.input_shape, len(stream.classes), seed=1)
        strategy = kind(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=10,
            train_epochs=3,
            evaluator=EvaluationPlugin(loggers=[]),
            **own,
        )
        # A batch is an experience, and ends where a segment does: a whole segment at a time, as in Avalanche.
        learner = AvalancheLearner(strategy, seed=1)
        report = driftline.run(
            stream,
            learner,
            batch_size=1000,
            metrics=[OnlineAccuracy(), HeldOut(every=None)],
            out=f"runs/{name}",
            overwrite=True,
        )
        results = report.results
        print(f"{name:7} average accuracy {results['average_accuracy']:.2f}, forgetting {results['forgetting']:.2f}")


if __name__ == "__main__":
    main()
