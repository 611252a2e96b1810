from __future__ import annotations

import io

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin

import driftline
from driftline.errors import ConfigError
from driftline.interop.avalanche import DriftlineStrategy, to_avalanche
from driftline.learners import GradientLearner, NearestClassMean, ReservoirReplay, StreamingLDA, in_lockstep
from driftline.metrics import HeldOut, OnlineAccuracy
from tests.interop.avalanche.digits import network, stream


def replaying():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return GradientLearner(model, sgd, replay=ReservoirReplay(50))


def quiet(*metrics):
    return EvaluationPlugin(*metrics, loggers=[])


@pytest.mark.parametrize("make", [NearestClassMean, replaying])
def test_a_learner_gets_there_what_it_gets_here(make):
    made = stream()
    metrics = [OnlineAccuracy(), HeldOut(every=None, compete="all")]
    list(driftline.play(made, make(), batch_size=10, metrics=metrics))
    evaluator = quiet(accuracy_metrics(epoch=True, experience=True), forgetting_metrics(experience=True))
    strategy = DriftlineStrategy(make(), train_mb_size=10, evaluator=evaluator)
    benchmark = to_avalanche(made)
    online, rows = [], []
    for experience in benchmark.train_stream:
        online.append(strategy.train(experience, shuffle=False)["Top1_Acc_Epoch/train_phase/train_stream"])
        found = strategy.eval(benchmark.test_stream)
        rows.append([found[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{i:03d}"] for i in range(5)])
    sizes = [len(segment) for segment in made.segments]
    assert sum(a * n for a, n in zip(online, sizes)) / 300 == pytest.approx(metrics[0].value()["online_accuracy"])
    ours = metrics[1].matrix
    for i in range(5):
        assert rows[i][: i + 1] == pytest.approx(ours[i][: i + 1], abs=1e-6)


def test_metrics_and_loggers_of_avalanche_work():
    said = io.StringIO()
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, stream=True), loss_metrics(epoch=True), loggers=[TextLogger(said)]
    )
    strategy = DriftlineStrategy(StreamingLDA(), train_mb_size=20, eval_every=0, evaluator=evaluator)
    benchmark = to_avalanche(stream())
    strategy.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    assert evaluator.get_last_metrics()["Top1_Acc_Stream/eval_phase/test_stream"] > 0.8
    assert "Top1_Acc_MB/train_phase/train_stream" in said.getvalue()
    assert strategy.clock.train_iterations == sum(-(-len(s) // 20) for s in stream().segments)


def test_plugins_that_change_which_batches_come_work():
    seen = []

    class Counting(NearestClassMean):
        def observe(self, x, y):
            seen.append(len(x))
            return super().observe(x, y)

    strategy = DriftlineStrategy(Counting(), train_mb_size=10, plugins=[ReplayPlugin(mem_size=30)], evaluator=quiet())
    experiences = list(to_avalanche(stream()).train_stream)[:2]
    strategy.train(experiences)
    assert seen[:3] == [10, 10, 10] and 20 in seen


def test_modes_that_were_frozen_on_purpose_stay():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64).eval(), torch.nn.Linear(64, 10))
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    strategy = DriftlineStrategy(learner, train_mb_size=10, evaluator=quiet())
    benchmark = to_avalanche(stream(100))
    strategy.train(next(iter(benchmark.train_stream)))
    strategy.eval(benchmark.test_stream)
    assert [module.training for module in model] == [True, False, True]
    assert not model[1].running_mean.any()


def test_what_would_have_no_effect_is_refused():
    with pytest.raises(ConfigError, match=r"EWCPlugin acts on the strategy's loss or gradients \(before_backward\)"):
        DriftlineStrategy(replaying(), plugins=[EWCPlugin(1.0)])
    with pytest.raises(ConfigError, match="give a learner without replicas"):
        DriftlineStrategy(in_lockstep([replaying(), replaying()], [0, 1]))
