"""Learners in lockstep: replica i does what learner i does alone."""

from functools import partial

import pytest
import torch
from torch import nn

import driftline
from driftline import models
from driftline.errors import ConfigError
from driftline.learners import GradientLearner, NearestClassMean, ReservoirReplay, SlidingReplay, in_lockstep
from driftline.learners.lockstep.side_by_side import SideBySide
from driftline.learners.losses import squared_error
from driftline.learners.optimizers import TAG, UPGD
from driftline.learners.penalties import L2Init, OnlineEWC, WassersteinRegularization
from driftline.learners.renewers import ContinualBackprop
from driftline.metrics import HeldOut, NearFutureAccuracy, OnlineAccuracy
from driftline.stream.study import Study

R = 3


def make(seed, lr=0.1, optimizer=torch.optim.SGD, hidden=(8,), model=None, replay=None, **options):
    network = models.mlp(4, 3, hidden, seed=seed) if model is None else model(seed)
    memory = None if replay is None else replay(30, seed=seed)
    options = {"replay": memory, **options}
    return GradientLearner(network, lambda parameters: optimizer(parameters, lr=lr), **options)


def data(steps=12, batch=5, replicas=R, inputs=(4,)):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(steps, replicas, batch, *inputs, generator=rng)
    return list(zip(x, torch.randint(3, (steps, replicas, batch), generator=rng)))


def compare(build, batches, settings=({},) * R, atol=1e-5):
    """Scores of R learners in lockstep beside those of each alone."""
    singles = [build(i, **own) for i, own in enumerate(settings)]
    whole = in_lockstep([build(i, **own) for i, own in enumerate(settings)])
    for x, y in batches:
        expected = torch.stack([one.observe(x[i], y[i]) for i, one in enumerate(singles)])
        torch.testing.assert_close(whole.observe(x, y), expected, atol=atol, rtol=1e-4)
    x = batches[0][0]
    expected = torch.stack([one.predict(x[i]) for i, one in enumerate(singles)])
    torch.testing.assert_close(whole.predict(x), expected, atol=atol, rtol=1e-4)
    for i, one in enumerate(singles):
        torch.testing.assert_close(whole.replica(i).predict(x[i]), one.predict(x[i]), atol=atol, rtol=1e-4)
    return whole


OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rates", [(0.02,) * R, (0.01, 0.02, 0.05)], ids=["one rate", "a rate each"])
def test_a_replica_is_the_single_run_with_any_elementwise_optimizer(name, rates):
    settings = [{"lr": lr, "optimizer": OPTIMIZERS[name]} for lr in rates]
    assert isinstance(compare(make, data(), settings), GradientLearner)


MODELS = {
    "linear": lambda seed: models.mlp(4, 3, (), seed=seed),
    "deep, tanh": lambda seed: models.mlp(4, 3, (6, 5), nn.Tanh, seed=seed),
    "batch norm": lambda seed: _seeded(
        seed, lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    ),
    "layer norm": lambda seed: _seeded(
        seed, lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    ),
}


def _seeded(seed, build):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


@pytest.mark.parametrize("name", MODELS)
def test_a_replica_is_the_single_run_with_any_model_of_known_layers(name):
    whole = compare(lambda i: make(i, model=MODELS[name]), data())
    assert isinstance(whole, GradientLearner)


def test_a_convolutional_network_with_pooling_is_stepped_in_lockstep():
    whole = compare(
        lambda i: make(i, model=lambda seed: models.convnet((1, 8, 8), 3, width=4, seed=seed)),
        data(4, inputs=(1, 8, 8)),
    )
    assert isinstance(whole, GradientLearner)


def test_a_residual_network_with_batch_norm_is_stepped_in_lockstep():
    batches = data(3, inputs=(1, 8, 8))
    build = lambda i: make(i, lr=0.01, model=lambda seed: models.resnet18((1, 8, 8), 3, width=4, seed=seed))  # noqa: E731
    # Eighteen layers of batch normalisation over five samples amplify rounding.
    assert isinstance(compare(build, batches, atol=2e-3), GradientLearner)


@pytest.mark.parametrize("replay", [ReservoirReplay, SlidingReplay])
def test_each_replica_draws_from_a_memory_of_its_own(replay):
    whole = compare(lambda i: make(i, replay=replay, replay_ratio=2, replay_batch=4), data(20))
    assert isinstance(whole, GradientLearner)


def test_a_regression_loss_is_summed_over_replicas():
    batches = [(x, x.sum(-1)) for x, _ in data()]
    compare(lambda i: make(i, model=lambda seed: models.mlp(4, 1, (8,), seed=seed), loss=squared_error), batches)


def test_any_loss_of_ones_own_works():
    def own(scores, y):
        return (nn.functional.cross_entropy(scores, y, reduction="none").sort().values[1:]).mean()

    compare(lambda i: make(i, loss=own), data())


@pytest.mark.parametrize(
    ("what", "build"),
    [
        (
            "dropout",
            lambda i: make(i, model=lambda s: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))),
        ),
        ("does not know replicas", lambda i: make(i, penalties=[lambda m: m.head.weight.square().sum()])),
        ("of which replicas cannot be stacked", lambda i: make(i, model=lambda s: Odd())),
    ],
)
def test_what_cannot_be_batched_is_stepped_one_by_one_and_says_why(what, build):
    with pytest.warns(RuntimeWarning, match=what):
        assert isinstance(in_lockstep([build(i) for i in range(2)]), SideBySide)


class Odd(nn.Module):
    """Forward of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).flip(0)


def test_learners_without_gradients_are_stepped_one_by_one():
    compare(lambda i: NearestClassMean(classes=3), data())


def test_dropout_of_a_replica_draws_what_the_single_run_draws():
    stream = driftline.scenarios.iid(driftline.load("digits"))[:300]

    def build(seed):
        network = _seeded(
            seed, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))
        )
        return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.1))

    with pytest.warns(RuntimeWarning, match="dropout"):
        report = driftline.run(stream, build, seeds=[3, 5], batch_size=10)
    alone = [driftline.run(stream, build(s), seed=s, batch_size=10).results["online_accuracy"] for s in (3, 5)]
    assert report.record["replicas"]["results"]["online_accuracy"] == alone


def test_the_state_goes_on_and_is_refused_by_others():
    batches = data(8)
    first, second = (in_lockstep([make(i, optimizer=torch.optim.Adam) for i in range(R)]) for _ in range(2))
    for x, y in batches[:4]:
        first.observe(x, y)
    second.load_state_dict(first.state_dict())
    for x, y in batches[4:]:
        assert torch.equal(first.observe(x, y), second.observe(x, y))
    with pytest.raises(driftline.errors.CheckpointError):
        in_lockstep([make(i, hidden=(9,)) for i in range(R)]).load_state_dict(first.state_dict())


def test_samples_without_the_replicas_in_front_are_refused():
    whole = in_lockstep([make(i) for i in range(R)])
    with pytest.raises(driftline.errors.InputError, match="3 replicas"):
        whole.observe(torch.rand(5, 4), torch.zeros(5, dtype=torch.long))
    x = torch.rand(R, 5, 4)
    x[1, 2, 0] = float("nan")
    with pytest.raises(driftline.errors.InputError, match="NaN"):
        whole.observe(x, torch.zeros(R, 5, dtype=torch.long))


def test_a_study_runs_every_setting_with_every_seed():
    stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=2)
    build = lambda seed, lr: make(seed, lr, model=lambda s: models.mlp((1, 8, 8), 10, (16,), seed=s))  # noqa: E731
    metrics = [OnlineAccuracy(), NearFutureAccuracy(shift=50), HeldOut(every=300)]
    report = driftline.run(stream, build, seeds=[0, 7], grid={"lr": [0.05, 0.5]}, batch_size=10, metrics=metrics)
    replicas = report.record["replicas"]
    assert replicas["seeds"] == [0, 7, 0, 7] and replicas["settings"][3] == {"lr": 0.5}
    for i, (seed, own) in enumerate(zip(replicas["seeds"], replicas["settings"])):
        metrics = [OnlineAccuracy(), NearFutureAccuracy(shift=50), HeldOut(every=300)]
        alone = driftline.run(stream, build(seed, **own), batch_size=10, metrics=metrics)
        for name, value in alone.results.items():
            # Rounding may tip a few of some thousand predictions.
            assert replicas["results"][name][i] == pytest.approx(value, abs=5e-3), name
        assert report.curve(f"online_accuracy@{i}")[0] == alone.curve("online_accuracy")[0]
    mean = sum(replicas["results"]["a_auc"]) / 4
    assert report.results["a_auc"] == pytest.approx(mean)


def test_each_seed_can_have_a_stream_of_its_own():
    streams = [driftline.scenarios.iid(driftline.load("digits"), seed=s)[:400] for s in (1, 2)]
    build = lambda seed: make(seed, model=lambda s: models.mlp((1, 8, 8), 10, (16,), seed=s))  # noqa: E731
    report = driftline.run(streams, build, seeds=[1, 2], batch_size=10)
    alone = [driftline.run(s, build(i), batch_size=10).results["online_accuracy"] for i, s in zip((1, 2), streams)]
    assert report.record["replicas"]["results"]["online_accuracy"] == pytest.approx(alone, abs=5e-3)
    again = driftline.run(lambda seed: streams[seed - 1], build, seeds=[1, 2], batch_size=10)
    assert again.results == report.results


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_how_many_batches_are_played_between_looks_changes_nothing(chunk):
    stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=3)
    build = lambda seed: make(seed, model=lambda s: models.mlp((1, 8, 8), 10, (16,), seed=s))  # noqa: E731
    metrics = [OnlineAccuracy(), HeldOut(every=250)]
    found = driftline.run(stream, build, seeds=[0, 1], batch_size=10, metrics=metrics, chunk=chunk, record_every=130)
    expected = driftline.run(stream, build, seeds=[0, 1], batch_size=10, metrics=metrics, chunk=3, record_every=130)
    assert found.series == expected.series and found.record["replicas"] == expected.record["replicas"]


def test_late_labels_reach_every_replica_at_the_same_step():
    stream = driftline.scenarios.iid(driftline.load("digits"))[:300].delay_labels(35)
    build = lambda seed: make(seed, model=lambda s: models.mlp((1, 8, 8), 10, (16,), seed=s))  # noqa: E731
    report = driftline.run(stream, build, seeds=[0, 1], batch_size=10)
    alone = [driftline.run(stream, build(s), batch_size=10).results["online_accuracy"] for s in (0, 1)]
    assert report.record["replicas"]["results"]["online_accuracy"] == pytest.approx(alone, abs=1e-2)


def test_a_study_on_disk_resumes_to_the_same_bytes(tmp_path):
    stream = driftline.scenarios.iid(driftline.load("digits"))[:600]
    build = lambda seed: make(seed, replay=ReservoirReplay, model=lambda s: models.mlp((1, 8, 8), 10, (16,), seed=s))  # noqa: E731
    options = {"seeds": [0, 1], "batch_size": 10, "checkpoint_every": 200}
    driftline.run(stream, build, out=tmp_path / "whole", **options)
    driftline.run(stream, build, out=tmp_path / "cut", until=lambda step: step.position >= 250, **options)
    driftline.run(stream, build, out=tmp_path / "cut", resume=True, **options)
    for name in ("record.json", "series.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "at least one"),
        ({"seeds": [0.5]}, "whole number"),
        ({"seeds": [0], "grid": {"lr": 0.1}}, "give a list"),
    ],
)
def test_a_study_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Study(arguments["seeds"], arguments.get("grid", {}))


def test_a_study_needs_a_function_that_makes_learners():
    stream = driftline.scenarios.iid(driftline.load("digits"))
    with pytest.raises(ConfigError, match="make\\(seed\\)"):
        driftline.run(stream, make(0), seeds=[0, 1])
    with pytest.raises(ConfigError, match="2 seeds"):
        driftline.run([stream] * 3, make, seeds=[0, 1])
    with pytest.raises(ConfigError, match="length"):
        driftline.run([stream, stream[:10]], make, seeds=[0, 1])


def test_a_part_whose_setting_cannot_differ_is_stepped_one_by_one():
    def build(i):
        network = models.mlp(4, 3, (8,), seed=i)
        penalty = WassersteinRegularization(network, 1e-2, refresh=10 + i)
        return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.1), penalties=[penalty])

    with pytest.warns(RuntimeWarning, match="refresh"):
        assert isinstance(in_lockstep([build(i) for i in range(2)]), SideBySide)


def test_a_setting_of_a_part_may_differ_per_replica():
    def build(i, strength, rate):
        network = models.mlp(4, 3, (8,), seed=i)
        renewer = ContinualBackprop(network, replacement_rate=rate, maturity=2, seed=i)
        optimizer = UPGD(network.parameters(), lr=0.1, sigma=strength, seed=i)
        return GradientLearner(network, optimizer, penalties=[L2Init(network, strength)], renewers=[renewer])

    settings = [{"strength": s, "rate": r} for s, r in ((0.0, 0.1), (0.1, 0.05), (0.01, 0.0))]
    assert isinstance(compare(build, data(30), settings), GradientLearner)


def test_importances_given_before_the_first_sample_are_kept():
    def build(i):
        penalty = partial(OnlineEWC, strength=5.0, form="boundary")
        learner = make(i)
        learner = GradientLearner(learner.model, learner.optimizer, penalties=[penalty(learner.model)])
        learner.penalties[0].consolidate({n: torch.full_like(p, 1.0 + i) for n, p in learner.model.named_parameters()})
        return learner

    assert isinstance(in_lockstep([build(i) for i in range(R)]), GradientLearner)
    compare(build, data())


def test_learners_that_were_told_a_task_their_optimizer_keeps_are_stepped_one_by_one():
    def build(i):
        learner = make(i, optimizer=TAG, lr=0.01)
        learner.begin_task(1 + i)
        return learner

    with pytest.warns(RuntimeWarning, match="told a task already"):
        whole = in_lockstep([build(i) for i in range(R)])
    assert [one.optimizer.task for one in whole.learners] == [1, 2, 3]
