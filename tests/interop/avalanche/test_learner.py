from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin, SynapticIntelligencePlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import AGEM, EWC, Naive, Replay

import driftline
from driftline.errors import CheckpointError, ConfigError
from driftline.interop.avalanche import AvalancheLearner, to_avalanche
from driftline.metrics import HeldOut, Plasticity
from driftline.stream import checkpoint
from driftline.testing import blobs, check_learner
from driftline.testing.learners import LEARNER_LAWS
from tests.interop.avalanche.digits import network, settings, stream

STRATEGIES = {
    "naive": lambda **made: Naive(**made),
    "replay": lambda **made: Replay(mem_size=40, **made),
    "ewc": lambda **made: EWC(ewc_lambda=1.0, **made),
    "online ewc": lambda **made: EWC(ewc_lambda=1.0, mode="online", decay_factor=0.9, **made),
    "lwf": lambda **made: Naive(plugins=[LwFPlugin()], **made),
    "si": lambda **made: Naive(plugins=[SynapticIntelligencePlugin(si_lambda=0.1)], **made),
}


def alone(make, made):
    """What Avalanche measures of a strategy that it trains itself, at the end of each experience."""
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = make(**settings(network(), train_epochs=2, evaluator=evaluator))
    benchmark, rows = to_avalanche(made), []
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        with torch.random.fork_rng():  # an evaluation draws a seed for its loader
            found = strategy.eval(benchmark.test_stream)
        rows.append([found[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{i:03d}"] for i in range(5)])
    return np.array(rows), strategy.model


@pytest.mark.parametrize("name", ["naive", "replay", "ewc"])
def test_a_strategy_gives_here_what_it_gives_there(name):
    make, made = STRATEGIES[name], stream()
    expected, model = alone(make, made)
    learner = AvalancheLearner(make(**settings(network(), train_epochs=2)), seed=3)
    metric = HeldOut(every=None, compete="all")
    list(driftline.play(made, learner, batch_size=1000, metrics=[metric]))
    for i in range(5):
        np.testing.assert_allclose(metric.matrix[i, : i + 1], expected[i, : i + 1], atol=1e-6)
    for a, b in zip(model.parameters(), learner.network().parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stopped_run_goes_on_to_the_same_bits(name, tmp_path):
    def build():
        return AvalancheLearner(STRATEGIES[name](**settings(network())), seed=1)

    batches = [(b.x, b.y) for b in stream(150).batches(15)]
    whole, first, second = build(), build(), build()
    for x, y in batches:
        whole.learn(x, y)
    for x, y in batches[:5]:
        first.learn(x, y)
    checkpoint.save(tmp_path / "state", first.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "state"))
    for x, y in batches[5:]:
        second.learn(x, y)
    for a, b in zip(whole.network().parameters(), second.network().parameters()):
        assert torch.equal(a, b)


def test_a_class_balanced_memory_is_saved_too():
    def build():
        memory = ReplayPlugin(mem_size=20, storage_policy=ClassBalancedBuffer(20))
        return AvalancheLearner(Naive(plugins=[memory], **settings(network())), seed=1)

    giver, taker = build(), build()
    for batch in stream(100).batches(20):
        giver.learn(batch.x, batch.y)
    taker.load_state_dict(giver.state_dict())
    memories = [
        sorted(int(item[1]) for item in learner.strategy.plugins[0].storage_policy.buffer) for learner in (giver, taker)
    ]
    assert memories[0] == memories[1] and len(memories[0]) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name, flat", [("naive", True), ("replay", False)])
def test_the_laws_of_learners_hold(name, flat):
    shape = blobs().input_shape

    def make():
        model = driftline.models.mlp(shape, 3, hidden=(8,), seed=0)
        return AvalancheLearner(STRATEGIES[name](**settings(model)))

    memory = {"memory is flat over a long stream"}  # of replay it is not: a buffer is kept for each experience
    check_learner(make, steps=100, laws=memory if flat else set(LEARNER_LAWS) - memory)


def test_global_randomness_is_lent_and_put_back():
    learner = AvalancheLearner(STRATEGIES["replay"](**settings(network())))
    batch = next(stream(100).batches(50))
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    learner.learn(batch.x, batch.y)
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_our_metrics_look_at_its_model():
    learner = AvalancheLearner(Naive(**settings(network())))
    report = driftline.run(stream(150), learner, batch_size=10, metrics=[Plasticity(every=50)])
    assert report.results["effective_rank"] > 1
    assert report.record["learner"]["parameters"]["optimizer"]["lr"] == 0.1


def test_a_head_that_grows_with_the_classes_is_played():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), IncrementalClassifier(16, 2)
    )
    metric = HeldOut(every=None)
    learner = AvalancheLearner(Replay(mem_size=50, **settings(model, train_epochs=3)))
    [*_, step] = driftline.play(stream(), learner, batch_size=1000, metrics=[metric])
    assert step.metrics()["average_accuracy"] > 0.4


def test_what_cannot_be_played_or_saved_is_refused_by_name():
    with pytest.raises(ConfigError, match="plays a strategy of Avalanche, got Linear"):
        AvalancheLearner(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="MTSimpleMLP has a head for each task"):
        AvalancheLearner(Naive(**settings(MTSimpleMLP())))

    class Odd(LwFPlugin):
        def __init__(self):
            super().__init__()
            self.trick = lambda: None

    batch = next(stream(100).batches(20))
    agem = AvalancheLearner(AGEM(patterns_per_exp=10, sample_size=10, **settings(network())))
    agem.learn(batch.x, batch.y)
    with pytest.raises(CheckpointError, match=r"AGEMPlugin\..*: a function; a checkpoint cannot hold that"):
        agem.state_dict()
    odd = AvalancheLearner(Naive(plugins=[Odd()], **settings(network())))
    with pytest.raises(CheckpointError, match=r"Odd\.trick: a function; a checkpoint cannot hold that"):
        odd.state_dict()


def test_a_state_of_another_strategy_is_refused_and_nothing_changed():
    naive = AvalancheLearner(Naive(**settings(network())))
    replay = AvalancheLearner(STRATEGIES["replay"](**settings(network(seed=1))))
    before = [p.clone() for p in replay.network().parameters()]
    with pytest.raises(CheckpointError, match="the state is that of Naive"):
        replay.load_state_dict(naive.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, replay.network().parameters()))
    forged = naive.state_dict()
    forged["strategy"]["own"]["extra"] = {"kind": "object", "class": "subprocess:Popen", "state": {}}
    with pytest.raises(CheckpointError, match="the state has an object of subprocess:Popen"):
        naive.load_state_dict(forged)
