"""River's metrics beside driftline's own."""

import copy

import pytest
import torch
from river import metrics, utils

import driftline
from driftline import models
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop.river import RiverMetric
from driftline.learners import GradientLearner, NearestClassMean, StreamingLDA, squared_error
from driftline.metrics import OnlineAccuracy, OnlineError
from driftline.stream import Label, Sample

DIGITS = driftline.scenarios.iid(driftline.load("digits"))


def each_of(classes=2):
    """Equally likely classes; nothing is known of some samples."""
    x = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    return [(x[i], None if i % 9 == 8 else i % classes) for i in range(90)]


def test_accuracy_is_driftlines_own_whatever_the_batch():
    for batch_size in (1, 7):
        learner = NearestClassMean(classes=10)
        found = driftline.run(
            DIGITS, learner, batch_size=batch_size, metrics=[OnlineAccuracy(), RiverMetric(metrics.Accuracy())]
        ).results
        assert found["river_accuracy"] == pytest.approx(found["online_accuracy"])


def test_what_is_measured_is_what_river_measures_of_the_predictions():
    expected = {"river_macro_f1": metrics.MacroF1(), "river_log_loss": metrics.LogLoss()}
    measured = [RiverMetric(copy.deepcopy(metric)) for metric in expected.values()]
    learner = GradientLearner(model := models.mlp(2, 2), torch.optim.SGD(model.parameters(), lr=0.1))
    for step in driftline.play(driftline.from_iterable(each_of(), classes=2), learner, metrics=measured):
        if step.batch.y is not None:
            expected["river_macro_f1"].update(int(step.batch.y), int(step.prediction.argmax()))
            expected["river_log_loss"].update(
                bool(step.batch.y), dict(enumerate(step.prediction[0].softmax(0).tolist()))
            )
    assert step.metrics() == pytest.approx({name: metric.get() for name, metric in expected.items()})


def test_labels_name_the_classes():
    named, numbered = RiverMetric(metrics.MacroF1(), ["off", "on"], name="named"), RiverMetric(metrics.MacroF1())
    stream = driftline.from_iterable(each_of(), classes=["off", "on"])
    found = driftline.run(stream, StreamingLDA(), metrics=[named, numbered]).results
    assert found["named"] == found["river_macro_f1"] > 0
    assert set(named.metric.cm.classes) == {"off", "on"}


def test_numbers_are_measured_as_driftline_does():
    stream = driftline.scenarios.slowly_changing_regression(samples=300)
    model = models.mlp(stream.input_shape, 1)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), 0.01), squared_error)
    found = driftline.run(stream, learner, batch_size=5, metrics=[OnlineError(), RiverMetric(metrics.MSE())]).results
    assert found["river_mse"] == pytest.approx(found["online_squared_error"], rel=1e-5)


@pytest.mark.parametrize(
    "make", [metrics.CohenKappa, metrics.LogLoss, lambda: utils.Rolling(metrics.Accuracy, window_size=30)]
)
def test_a_run_is_resumed_in_the_middle_to_the_same_numbers(tmp_path, make):
    def play(folder, **options):
        out = {"out": tmp_path / folder, "batch_size": 7, "record_every": 70}
        return driftline.run(DIGITS[:420], StreamingLDA(classes=10), metrics=[RiverMetric(make())], **out, **options)

    whole = play("whole")
    play("parts", until=lambda step: step.position >= 200)
    parts = play("parts", resume=True)
    assert parts.series == whole.series and parts.results == whole.results


def test_replicas_are_each_measured():
    def make(seed):
        model = models.mlp(DIGITS.input_shape, 10, hidden=(8,), seed=seed)
        return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05))

    def measured():
        return [RiverMetric(metrics.MacroF1())]

    together = driftline.run(DIGITS[:200], make, seeds=[0, 1], batch_size=10, metrics=measured())
    alone = [driftline.run(DIGITS[:200], make(s), batch_size=10, metrics=measured()) for s in (0, 1)]
    found = together.record["replicas"]["results"]["river_macro_f1"]
    assert found == pytest.approx([report.results["river_macro_f1"] for report in alone], abs=1e-6)


def test_labels_that_come_late_are_measured_with_what_was_predicted_for_them():
    events = [
        Sample([0.0], id="a"),
        Sample([1.0], id="b"),
        Label("b", 1),
        Label("a", 0),
        Sample([1.0], id="c"),
        Label("c", 1),
    ]
    metric = RiverMetric(metrics.Accuracy())
    driftline.run(driftline.from_iterable(events, classes=2), NearestClassMean(classes=2), metrics=[metric])
    # Nothing was known when a and b were predicted, so the first class was the answer for both.
    assert (metric.metric.cm.n_samples, metric.value()["river_accuracy"]) == (3, 2 / 3)


def test_a_learner_that_gives_nan_is_wrong_and_not_silent():
    model = models.mlp(2, 2)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.0))
    next(model.parameters()).data.fill_(float("nan"))
    metric = RiverMetric(metrics.Accuracy())
    for _ in driftline.play(driftline.from_iterable(each_of(), classes=2), learner, metrics=[metric]):
        pass
    assert metric.metric.cm.n_samples == 80


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        (metrics.Silhouette(), ()),
        (metrics.ClassificationReport(), ()),
        (metrics.ConfusionMatrix(), ()),
        (metrics.Accuracy(), ["a", "a"]),
        (metrics.Accuracy, ()),
    ],
)
def test_what_is_no_single_number_of_classes_or_numbers_is_refused(metric, labels):
    with pytest.raises(ConfigError):
        RiverMetric(metric, labels)


def test_a_stream_of_the_other_kind_or_with_other_labels_is_refused_before_it_begins():
    for metric, message in (
        (RiverMetric(metrics.MAE()), "has classes"),
        (RiverMetric(metrics.Accuracy(), ["a", "b"]), "2 labels for 10 classes"),
    ):
        with pytest.raises(InputError, match=message):
            driftline.play(DIGITS, StreamingLDA(), metrics=[metric])
    numbers = driftline.scenarios.slowly_changing_regression(samples=100)
    with pytest.raises(InputError, match="has none"):
        driftline.play(numbers, StreamingLDA(), metrics=[RiverMetric(metrics.Accuracy())])


def test_targets_of_several_numbers_are_refused():
    pairs = [([0.1, 0.2], [0.5, 0.25])] * 3
    stream = driftline.from_iterable(((x, torch.tensor(y)) for x, y in pairs))
    model = models.mlp(2, 2)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), 0.01), squared_error)
    with pytest.raises(InputError, match="one number for each sample"):
        driftline.run(stream, learner, metrics=[RiverMetric(metrics.MAE())])


def test_states_of_other_metrics_are_refused_and_change_nothing():
    own = RiverMetric(utils.Rolling(metrics.Accuracy, window_size=5))
    own.metric.update(1, 1)
    for other in (metrics.Accuracy(), utils.Rolling(metrics.F1, window_size=5)):
        with pytest.raises(CheckpointError, match="another metric"):
            own.load_state_dict(RiverMetric(other).state_dict())
    assert own.value() == {"river_accuracy": 1.0}
