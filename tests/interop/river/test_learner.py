import os
import pickle

import pytest
import torch
from river import datasets, evaluate, forest, linear_model, metrics, naive_bayes, preprocessing, tree

import driftline
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop import river
from driftline.interop.river import pickles
from driftline.testing import LEARNER_LAWS, check_learner

BYTES = {
    "predict changes nothing",
    "same seed, same result",
    "the state round trip continues bit-identically",
    "input is left alone, and copied where kept",
    "the loop gets what direct calls give",
    "observe is predict, then learn",
    "bad input is refused and changes nothing",
}
"""Laws that compare states to the bit: bytes from pickle also tell which equal parts are one object."""


def bayes():
    return river.RiverLearner(preprocessing.StandardScaler() | naive_bayes.GaussianNB(), classes=3)


def test_it_keeps_the_laws_of_learners_that_do_not_compare_bytes():
    laws = [name for name in LEARNER_LAWS if name not in BYTES and name != "replicas are single runs"]
    check_learner(bayes, steps=200, devices=["cpu"], laws=laws)


def test_a_forest_gives_rivers_own_progressive_accuracy():
    data = datasets.Phishing().take(300)
    rows = list(data)
    theirs = evaluate.progressive_val_score(rows, forest.ARFClassifier(n_models=3, seed=1), metrics.Accuracy()).get()
    learner = river.RiverLearner(forest.ARFClassifier(n_models=3, seed=1), [False, True], list(rows[0][0]))
    report = driftline.run(
        river.stream(rows, [False, True]), learner, metrics=[river.RiverMetric(metrics.Accuracy(), [False, True])]
    )
    assert report.results["river_accuracy"] == theirs


@pytest.mark.parametrize("delay", [10, None])
def test_late_labels_give_rivers_own_score(delay):
    rows = list(datasets.ImageSegments().take(300))
    labels = sorted({y for _, y in rows})
    make = lambda: preprocessing.StandardScaler() | naive_bayes.GaussianNB()  # noqa: E731
    theirs = evaluate.progressive_val_score(rows, make(), metrics.LogLoss(), delay=delay).get()
    learner = river.RiverLearner(make(), labels, list(rows[0][0]))
    stream = river.stream(rows, labels, delay=delay)
    ours = driftline.run(stream, learner, metrics=[river.RiverMetric(metrics.LogLoss(), labels)]).results
    # Softmax of logarithms gives probabilities up to rounding, over all labels where River names the seen ones only.
    assert ours["river_log_loss"] == pytest.approx(theirs, rel=1e-9)


def test_a_regressor_predicts_numbers():
    model = preprocessing.StandardScaler() | linear_model.LinearRegression()
    rows = list(datasets.TrumpApproval().take(200))
    theirs = evaluate.progressive_val_score(rows, model.clone(), metrics.MAE()).get()
    report = driftline.run(
        river.stream(rows, ()),
        river.RiverLearner(model, features=list(rows[0][0])),
        metrics=[river.RiverMetric(metrics.MAE())],
    )
    assert report.results["river_mae"] == pytest.approx(theirs, rel=1e-6)


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not(tmp_path):
    def play(out, **options):
        learner = river.RiverLearner(forest.ARFClassifier(n_models=3, seed=1), classes=2)
        stream = river.stream(datasets.Phishing(), delay=20)
        metric = river.RiverMetric(metrics.Accuracy())
        return driftline.run(stream, learner, metrics=[metric], record_every=50, out=out, **options)

    whole = play(tmp_path / "whole", until=lambda step: step.position >= 400)
    play(tmp_path / "parts", until=lambda step: step.position >= 170)
    parts = play(tmp_path / "parts", until=lambda step: step.position >= 400, resume=True)
    assert parts.series == whole.series and parts.results == whole.results


class Evil:
    def __reduce__(self):
        return os.system, ("echo broken into",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Evil()), b"\x80\x04\x8c\x10river.base.base\x8c\x11logging.os.system\x93.", b"not a pickle"],
    ids=["a call", "a way through a module", "no pickle"],
)
def test_a_checkpoint_cannot_call_other_code(content, capfd):
    learner = bayes()
    state = {**learner.state_dict(), "model": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    with pytest.raises(CheckpointError):
        learner.load_state_dict(state)
    assert "broken into" not in capfd.readouterr().out


def test_a_checkpoint_of_another_river_is_refused():
    learner = bayes()
    with pytest.raises(CheckpointError, match=r"saved with River 0\.1\.0"):
        learner.load_state_dict({**learner.state_dict(), "river": "0.1.0"})


class Doubled(preprocessing.StandardScaler):
    pass


def test_a_class_of_ones_own_must_be_allowed():
    with pytest.raises(ConfigError, match=r"Doubled.*allow="):
        river.RiverLearner(Doubled() | naive_bayes.GaussianNB(), classes=2).state_dict()
    learner = river.RiverLearner(Doubled() | naive_bayes.GaussianNB(), classes=2, allow=[Doubled])
    learner.load_state_dict(learner.state_dict())


@pytest.mark.parametrize(
    "model",
    [forest.ARFClassifier(n_models=2), tree.HoeffdingAdaptiveTreeClassifier(), linear_model.SoftmaxRegression()],
)
def test_models_come_back_from_bytes(model):
    rows = list(datasets.ImageSegments().take(200))
    for x, y in rows:
        model.learn_one(x, y)
    again = pickles.load(pickles.save(model), pickles.VERSION)
    for x, _ in rows:
        # River's sets come back in another order, and sums over them are rounded by it.
        assert again.predict_proba_one(x) == pytest.approx(model.predict_proba_one(x), rel=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="classes"):
        river.RiverLearner(naive_bayes.GaussianNB())
    with pytest.raises(ConfigError, match="leave out"):
        river.RiverLearner(linear_model.LinearRegression(), classes=2)
    with pytest.raises(ConfigError, match="neither"):
        river.RiverLearner(preprocessing.StandardScaler(), classes=2)
    with pytest.raises(InputError, match="flatten"):
        bayes().predict(torch.zeros(1, 2, 2))


def test_a_metric_refuses_a_stream_without_what_it_measures():
    with pytest.raises(InputError, match="numbers to predict"):
        driftline.play(river.stream(datasets.Phishing()), bayes(), metrics=[river.RiverMetric(metrics.MAE())])
