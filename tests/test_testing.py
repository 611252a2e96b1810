"""The law suites, run over every public class; a new one without an entry in these tables fails."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

import driftline
from driftline import learners, metrics, scenarios
from driftline.adapters import CollapseGuard, Tent
from driftline.learners import (
    AdaptiveReplayRatio,
    ClassBalancedReplay,
    GradientLearner,
    InputNormalizer,
    NearestClassMean,
    ReservoirReplay,
    SlidingReplay,
    StreamingLDA,
    TaskCrossEntropy,
    TDLoss,
)
from driftline.learners.losses import squared_error
from driftline.metrics import (
    AdaptationCost,
    BlindAccuracy,
    Calibration,
    CriticError,
    DomainError,
    HeldOut,
    Metric,
    NearFutureAccuracy,
    OnlineAccuracy,
    OnlineError,
    Plasticity,
    ProbePlasticity,
    Rollbacks,
    Sharpness,
    SourceError,
    Trainability,
)
from driftline.metrics.blind import BlindClassifier
from driftline.stream import Segment, Stream
from driftline.testing import blobs, check_learner, check_metric, check_scenario

# --- models and streams


def linear():
    return nn.Linear(4, 3)


def mlp():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def dropout():
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))


def layer_norm():
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def batch_norm():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def conv():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


def conv_batch_norm():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 10)
    )


def seeded(make_model, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make_model()


def digits_stream():
    return scenarios.iid(driftline.load("digits"))


def regression():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return Stream([Segment.of(driftline.Dataset(x, x[:, :2] * 2 + 1))])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def gradient(make_model=mlp, optimizer=sgd, replay=None, normalizer=None, **options):
    """A factory of gradient learners; ``replay`` makes a memory."""

    def make(seed=0):
        memory = None if replay is None else replay(100, seed=seed)
        if normalizer is not None:
            options["normalizer"] = normalizer()
        return GradientLearner(seeded(make_model, seed), optimizer, replay=memory, **options)

    return make


def adaptive(make_model=mlp, optimizer=sgd, **settings):
    """A factory of gradient learners whose replay ratio follows their plasticity."""

    def make(seed=0):
        ratio = AdaptiveReplayRatio(**{"gap": 0.05, "every": 60, "window": 30, **settings})
        return gradient(make_model, optimizer, ReservoirReplay, replay_ratio=ratio)(seed)

    return make


def states():
    return scenarios.policy_evaluation(seed=0, samples=640, longest=50, gamma=0.8)


def critic(seed=0):
    """A learner of values by temporal differences."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), seed)
    return GradientLearner(model, adam, TDLoss(model, 0.1), replay=SlidingReplay(100, seed=seed))


# --- the tables: "public name: variation" -> how to make it, and what to check it with

LONG = {"steps": 800}
"""Enough for the law on memory to see a single object kept per step; once for each class."""

LEARNERS = {
    "GradientLearner: linear": (gradient(linear), LONG),
    "GradientLearner: mlp, momentum": (gradient(mlp, momentum), {}),
    "GradientLearner: mlp, Adam": (gradient(mlp, adam), {}),
    "GradientLearner: dropout": (gradient(dropout), {}),
    "GradientLearner: layer norm, Adam": (gradient(layer_norm, adam), {}),
    "GradientLearner: batch norm": (gradient(batch_norm), {}),
    "GradientLearner: conv": (gradient(conv), {"stream": digits_stream}),
    "GradientLearner: conv, batch norm, dropout": (gradient(conv_batch_norm), {"stream": digits_stream}),
    "GradientLearner: regression": (
        gradient(lambda: nn.Linear(4, 2), sgd, loss=nn.functional.mse_loss),
        {"stream": regression},
    ),
    "GradientLearner: a penalty": (gradient(mlp, penalties=[lambda model: model[0].weight.square().sum()]), {}),
    "InputNormalizer": (gradient(normalizer=InputNormalizer), LONG),
    "InputNormalizer: welford": (gradient(batch_norm, normalizer=lambda: InputNormalizer("welford")), {}),
    "ReservoirReplay": (gradient(replay=ReservoirReplay), LONG),
    "ReservoirReplay: twice": (gradient(dropout, adam, ReservoirReplay, replay_ratio=2, replay_batch=5), {}),
    "ReservoirReplay: stored only": (gradient(replay=ReservoirReplay, replay_ratio=0), {}),
    "FixedReplayRatio": (gradient(replay=ReservoirReplay, replay_ratio=0.5), LONG),
    "AdaptiveReplayRatio": (adaptive(), LONG),
    "AdaptiveReplayRatio: dropout, Adam, up and down": (
        adaptive(dropout, adam, levels=(0.5, 1, 2.5), signal="awake_units", back_off=0.1),
        {},
    ),
    "AdaptiveReplayRatio: conv, rank": (
        adaptive(conv, gap=10.0, signal="effective_rank"),
        {"stream": digits_stream, "steps": 200},
    ),
    "SlidingReplay": (gradient(replay=SlidingReplay), LONG),
    "ClassBalancedReplay": (gradient(replay=ClassBalancedReplay), LONG),
    "NearestClassMean": (NearestClassMean, LONG),
    "NearestClassMean: classes known, features": (lambda: NearestClassMean(seeded(batch_norm)[:3], classes=3), {}),
    "NearestClassMean: images": (NearestClassMean, {"stream": digits_stream}),
    "TaskCrossEntropy": (lambda seed=0: gradient(loss=TaskCrossEntropy())(seed), {}),
    "TDLoss": (critic, {"stream": states}),
    "StreamingLDA": (StreamingLDA, LONG),
    "StreamingLDA: pooled": (lambda: StreamingLDA(classes=3, covariance="pooled"), {}),
    "StreamingLDA: no shrinkage": (lambda: StreamingLDA(shrinkage=0.0), {}),
}


def on_digits(name, **parameters):
    return lambda seed: scenarios.get(name)(driftline.load("digits"), seed=seed, **parameters)


def by_two_writers(seed):
    data = driftline.load("digits")
    splits = {"test_hsf_0": data.test, "test_hsf_4": replace(data, splits={})}
    return scenarios.by_writer(replace(data, splits=splits), seed=seed)


SCENARIOS = {
    "iid": (on_digits("iid"), {"each_once": True}),
    "class_incremental": (on_digits("class_incremental"), {"each_once": True}),
    "class_incremental: the dataset's order": (
        on_digits("class_incremental", order="sorted", shuffle=False, first=4, increment=3),
        {"each_once": True, "seeded": False},
    ),
    "domain_incremental": (on_digits("domain_incremental", tasks=3), {"each_once": 3}),
    "domain_incremental: permutation": (
        on_digits("domain_incremental", domains="permutation", tasks=2, samples=500),
        {},
    ),
    "domain_incremental: inversion": (on_digits("domain_incremental", domains="inversion"), {"each_once": 2}),
    "si_blurry": (on_digits("si_blurry"), {"each_once": True}),
    "si_blurry: first, not stochastic": (on_digits("si_blurry", blur_selection="first", stochastic=False), {}),
    "i_blurry": (on_digits("i_blurry"), {"each_once": True}),
    "gradual": (on_digits("gradual"), {"each_once": True}),
    "gradual: domains, sigmoid": (on_digits("gradual", by="domains", tasks=2, shape="sigmoid"), {"each_once": 2}),
    "recurring": (on_digits("recurring", tasks=2, cycles=2), {"each_once": 2}),
    "recurring: fresh": (on_digits("recurring", fresh=True), {"each_once": True}),
    "imbalanced": (on_digits("imbalanced"), {"each_once": True}),
    "imbalanced: long tail": (on_digits("imbalanced", kind="long_tailed"), {}),
    "permuted_inputs": (on_digits("permuted_inputs", tasks=2), {"each_once": 2}),
    "permuted_labels": (on_digits("permuted_labels", tasks=2), {"each_once": 2}),
    "permuted_inputs: passes, compound": (
        on_digits("permuted_inputs", tasks=2, samples=719, draw="passes", compound=True, first_identity=False),
        {"each_once": True},
    ),
    "permuted_labels: replacement": (on_digits("permuted_labels", tasks=3, samples=500, draw="replacement"), {}),
    "random_labels": (on_digits("random_labels", tasks=2, samples=200, epochs=3), {}),
    "random_labels: shuffled": (on_digits("random_labels", tasks=2, samples=200, epochs=3, labels="shuffled"), {}),
    "continual_tta": (on_digits("continual_tta", order=["fog", "impulse_noise"]), {"each_once": 2}),
    "mixed_tta": (on_digits("mixed_tta", order=["snow", "motion_blur"], severity=1.5), {"each_once": 2}),
    "gradual_tta": (on_digits("gradual_tta", order=["contrast", "jpeg_compression"], samples=60), {}),
    "corruption_walk": (on_digits("corruption_walk", speed=90, steps=8), {}),
    "recurring_tta": (on_digits("recurring_tta", order=["frost"], visits=2), {"each_once": 2}),
    "dataset_shift": (on_digits("dataset_shift", parts=["test", "train"]), {}),
    "by_writer": (by_two_writers, {}),
    "drifting_regression": (
        lambda seed: scenarios.drifting_regression(seed=seed, samples=1500, shift=[0.0, 0.1]),
        {},
    ),
    "slowly_changing_regression": (
        lambda seed: scenarios.slowly_changing_regression(seed=seed, samples=3000, period=700),
        {},
    ),
    "policy_evaluation": (
        lambda seed: scenarios.policy_evaluation(seed=seed, samples=400, longest=50, gamma=0.8),
        {},
    ),
    "slowly_changing_regression: released": (
        lambda seed: scenarios.slowly_changing_regression(seed=seed, samples=2000, period=500, variant="released"),
        {},
    ),
}


@driftline.scenario
def everything(data, rng):
    """Random transforms, mixed recipes, late and missing labels: all that can go wrong when seeking."""
    day, night = data.take(300).named("day"), data.take(300, start=300).corrupt("gaussian_noise", severity=3)
    yield day
    yield driftline.interleave(day, night.delay_labels(37), rng=rng).named("dusk")
    yield night.label_fraction(0.5).named("night")
    yield driftline.concatenate(night.without_labels(), day.transform(torch.neg)).shuffle(rng)


@driftline.scenario
def unlabelled(data, rng):
    """No truth at all."""
    yield data.shuffle(rng).named("unlabelled")


OWN_SCENARIOS = {
    "everything": (lambda seed: everything(driftline.load("digits"), seed=seed), {}),
    "a slice": (lambda seed: everything(driftline.load("digits"), seed=seed)[123:1001], {}),
    "image bytes": (
        lambda seed: everything(
            driftline.Dataset((driftline.load("digits").x * 255).byte(), torch.arange(1438) % 3), seed
        ),
        {},
    ),
    "no truth": (lambda seed: unlabelled(driftline.Dataset(driftline.load("digits").x), seed), {"each_once": True}),
    "regression": (lambda seed: unlabelled(regression().datasets[0], seed), {"each_once": True}),
}


# --- metrics, and their values computed again from the full record


def tasks():
    """Classes of digits that come a few at a time, with half of the labels late."""
    stream = scenarios.class_incremental(driftline.load("digits"), tasks=3)[100:400]
    return stream.delay_labels(20)


def live(truth_gaps=5, **options):
    """A live stream in which some truths are unknown."""
    x, y = blobs().read(0, 150)
    pairs = [(xi, None if truth_gaps and i % truth_gaps == 0 else int(yi)) for i, (xi, yi) in enumerate(zip(x, y))]
    return driftline.from_iterable(pairs, classes=3)


def small_conv_learner():
    return GradientLearner(seeded(conv_batch_norm), adam, replay=ReservoirReplay(50))


def regressor():
    return gradient(lambda: nn.Linear(4, 2), sgd, loss=squared_error)()


def truths(record):
    """Hits and labels of all samples whose truth is known, in order."""
    y = torch.cat([y for _, y, _ in record if y is not None])
    hits = torch.cat([scores.argmax(1) for _, y, scores in record if y is not None]) == y
    return hits[y >= 0], y[y >= 0].tolist()


def online(record):
    hits, _ = truths(record)
    return {"online_accuracy": hits.double().mean().item(), "online_accuracy_window": hits[-50:].double().mean().item()}


def error(record):
    gaps = torch.cat([scores.double() - y.double() for _, y, scores in record])
    return {
        "online_squared_error": gaps.square().mean().item(),
        "online_absolute_error": gaps.abs().mean().item(),
        "online_squared_error_window": gaps[-50:].square().mean().item(),
        "online_absolute_error_window": gaps[-50:].abs().mean().item(),
    }


def critic_error(record):
    values = error([(x, y[:, 2:3], scores) for x, y, scores in record])
    return {name.replace("online", "critic"): value for name, value in values.items()}


def blind(shift):
    def offline(record):
        _, labels = truths(record)
        best = 0.0
        for window in (1, 10, 100):
            guesses = BlindClassifier(window, 10).run(labels)
            right = [guess == label for guess, label in zip(guesses[1:], labels[1 + shift :])]
            best = max(best, sum(right) / len(right))
        return {"blind_accuracy": best}

    return offline


def late(record):
    """Near-future accuracy of a live stream is online accuracy once the first labels may have arrived."""
    hits, _ = truths([entry for entry in record if entry[0] >= 20])
    return {"near_future_accuracy": hits.double().mean().item()}


def by_segment(record):
    """Mean over segments of the error in each."""
    stops = [info.stop for info in tasks().infos()]
    wrong = [[] for _ in stops]
    for position, y, scores in record:
        wrong[sum(position >= stop for stop in stops)] += (scores.argmax(1) != y).tolist()
    errors = [sum(part) / len(part) for part in wrong]
    return {"domain_error": sum(errors) / len(errors)}


def calibration(record):
    p = torch.cat([scores.double().softmax(1) for _, _, scores in record])
    y = torch.cat([y for _, y, _ in record])
    largest, predicted = p.max(1)
    gaps = 0.0
    for low in range(15):
        mine = (largest > low / 15) & (largest <= (low + 1) / 15)
        gaps += abs(float((largest[mine] - (predicted == y)[mine].double()).sum()))
    truth = torch.nn.functional.one_hot(y, p.shape[1])
    return {
        "calibration_error": gaps / len(y),
        "negative_log_likelihood": -float(p[torch.arange(len(y)), y].log().mean()),
        "brier_score": float((p - truth).square().sum(1).mean()),
    }


def collapsing():
    """An adapter that is taken back many times."""
    return CollapseGuard(Tent(batch_norm(), lr=1.0), every=2, pause=0, accuracy=0.9)


DIGITS = {"stream": tasks, "make_learner": small_conv_learner}

METRICS = {
    "OnlineAccuracy": (lambda: OnlineAccuracy(50), {"offline": online, "any_batch_size": True}),
    "OnlineAccuracy: digits": (lambda: OnlineAccuracy(50), {"offline": online, **DIGITS}),
    "OnlineAccuracy: live": (lambda: OnlineAccuracy(50), {"offline": online, "stream": live, "resident": False}),
    "BlindAccuracy": (BlindAccuracy, {"offline": blind(0), "any_batch_size": True}),
    "BlindAccuracy: shifted": (lambda: BlindAccuracy(30), {"offline": blind(30), "any_batch_size": True, **DIGITS}),
    "BlindAccuracy: live": (BlindAccuracy, {"offline": blind(0), "stream": live}),
    "NearFutureAccuracy": (lambda: NearFutureAccuracy(30), {"any_batch_size": True}),
    "NearFutureAccuracy: digits": (lambda: NearFutureAccuracy(64, window=50), {"offline": blind(64), **DIGITS}),
    "NearFutureAccuracy: auto": (NearFutureAccuracy, {"stream": lambda: blobs(1200)[600:], "any_batch_size": True}),
    "NearFutureAccuracy: live": (
        lambda: NearFutureAccuracy(20),
        {"offline": late, "stream": lambda: live().delay_labels(20), "resident": False},
    ),
    "HeldOut": (lambda: HeldOut(None), {"any_batch_size": True, "resident": False}),
    "HeldOut: digits": (lambda: HeldOut(80, compete="all", batch_size=100), {"resident": False, **DIGITS}),
    "Plasticity": (lambda: Plasticity(50, 32), {"resident": False}),
    "Plasticity: every step": (lambda: Plasticity(1, 1, ["sample_plasticity", "update_norm"]), {}),
    "Plasticity: digits": (lambda: Plasticity(40, 40), {"resident": False, **DIGITS}),
    "Sharpness": (lambda: Sharpness(50, 20, 8), {"resident": False}),
    "ProbePlasticity": (lambda: ProbePlasticity(50, 20, 3, targets=1), {"resident": False}),
    "Trainability": (lambda: Trainability(40), {}),
    "Trainability: digits": (Trainability, DIGITS),
    "OnlineError": (
        lambda: OnlineError(50),
        {"stream": regression, "make_learner": regressor, "offline": error, "any_batch_size": True},
    ),
    "CriticError": (
        lambda: CriticError(50),
        {"stream": states, "make_learner": critic, "offline": critic_error, "any_batch_size": True},
    ),
    "DomainError": (DomainError, {"any_batch_size": True}),
    "DomainError: digits": (DomainError, {"offline": by_segment, **DIGITS}),
    "DomainError: live": (DomainError, {"stream": live}),
    "Calibration": (lambda: Calibration(window=50), {"offline": calibration, "any_batch_size": True}),
    "Calibration: digits": (Calibration, {"offline": calibration, **DIGITS}),
    "Calibration: live": (lambda: Calibration(window=None), {"stream": live, "resident": False}),
    "SourceError": (lambda: SourceError(every=100), {"resident": False}),
    "SourceError: digits": (lambda: SourceError(every=None, batch_size=100), {"resident": False, **DIGITS}),
    "AdaptationCost": (AdaptationCost, {}),
    "AdaptationCost: digits": (lambda: AdaptationCost(2), DIGITS),
    "Rollbacks": (Rollbacks, {}),
    "Rollbacks: guarded": (Rollbacks, {"make_learner": collapsing}),
    "HeldOut: live": (
        lambda: HeldOut(50, test=blobs().datasets[0].test),
        {"stream": live, "resident": False},
    ),
}


def built(options):
    """Streams are made when a test runs, not when it is collected."""
    return {key: value() if key == "stream" else value for key, value in options.items()}


def covered(table):
    return {entry.partition(":")[0] for entry in table}


# --- the laws


@pytest.mark.parametrize("entry", LEARNERS)
def test_learners_keep_the_laws(entry):
    make, options = LEARNERS[entry]
    check_learner(make, **{"steps": 300, **built(options)})


@pytest.mark.parametrize("entry", [*SCENARIOS, *OWN_SCENARIOS])
def test_scenarios_keep_the_laws(entry):
    make, options = {**SCENARIOS, **OWN_SCENARIOS}[entry]
    check_scenario(make, **options)


@pytest.mark.parametrize("entry", METRICS)
def test_metrics_keep_the_laws(entry):
    make, options = METRICS[entry]
    check_metric(make, **built(options))


# --- nobody is forgotten


def public(module, *bases):
    """Public names of a module that are no abstract classes; with ``bases``, only their subclasses."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name
        for name, entry in found.items()
        if not inspect.isabstract(entry) and (not bases or (inspect.isclass(entry) and issubclass(entry, bases)))
    }


def test_every_learner_and_every_part_of_one_is_tried():
    assert public(learners, object) == covered(LEARNERS)


def test_every_metric_is_tried():
    assert public(metrics, Metric) == covered(METRICS)


def test_every_scenario_is_tried():
    assert set(scenarios.names()) == covered(SCENARIOS)
