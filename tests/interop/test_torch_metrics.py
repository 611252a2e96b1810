from __future__ import annotations

import pytest
import torch
import torchmetrics.classification as c
import torchmetrics.regression as r
from torchmetrics import MetricCollection

import driftline
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.interop.torch_metrics import TorchMetric
from driftline.learners import GradientLearner, NearestClassMean, squared_error
from driftline.metrics import OnlineAccuracy
from driftline.stream import checkpoint

DATA = driftline.load("digits")
STREAM = driftline.scenarios.class_incremental(DATA, tasks=5)[:400]

METRICS = {
    "accuracy": lambda: c.MulticlassAccuracy(10, average="micro"),
    "per class": lambda: c.MulticlassRecall(10, average=None),
    "f1": lambda: c.MulticlassF1Score(10),
    "kappa": lambda: c.MulticlassCohenKappa(10),
    "matrix": lambda: c.MulticlassConfusionMatrix(10),
    "calibration, which keeps everything": lambda: c.MulticlassCalibrationError(10),
    "auroc in bins": lambda: c.MulticlassAUROC(10, thresholds=5),
    "two of them": lambda: MetricCollection({"acc": c.MulticlassAccuracy(10), "f1": c.MulticlassF1Score(10)}),
}


def softmax_learner():
    model = driftline.models.mlp(DATA.input_shape, 10, hidden=(16,), seed=0)
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METRICS)
def test_the_streaming_value_is_that_of_all_predictions_at_once(name):
    metric, scores, truth = TorchMetric(METRICS[name]()), [], []
    for step in driftline.play(STREAM, softmax_learner(), batch_size=10, metrics=[metric]):
        scores.append(step.prediction)
        truth.append(step.batch.y)
    offline = METRICS[name]()
    offline.update(torch.cat(scores), torch.cat(truth))
    expected = offline.compute()
    values = list(metric.value().values())
    flat = torch.stack(list(expected.values())) if isinstance(expected, dict) else expected.flatten()
    torch.testing.assert_close(torch.tensor(values), flat.float(), equal_nan=True, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METRICS)
def test_it_goes_on_exactly_from_a_checkpoint(name, tmp_path):
    whole, half, other = (TorchMetric(METRICS[name]()) for _ in range(3))
    steps = list(driftline.play(STREAM, softmax_learner(), batch_size=20, metrics=[whole]))
    for step in steps[:8]:
        half.update(step)
    checkpoint.save(tmp_path / "state", half.state_dict())
    other.begin(STREAM, 20)
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    for step in steps[8:]:
        other.update(step)
    assert other.value() == pytest.approx(whole.value(), nan_ok=True)


def test_names_say_which_number_is_which():
    values = TorchMetric(METRICS["two of them"](), name="torch")
    per_class = TorchMetric(METRICS["per class"]())
    list(driftline.play(STREAM, softmax_learner(), batch_size=50, metrics=[values, per_class]))
    assert set(values.value()) == {"torch/acc", "torch/f1"}
    assert list(per_class.value()) == [f"MulticlassRecall/{i}" for i in range(10)]
    assert TorchMetric(METRICS["f1"]()).value().keys() == {"MulticlassF1Score"}


def test_learners_that_grow_and_samples_without_truth_are_measured():
    source = [(x, int(y) if i % 3 else None) for i, (x, y) in enumerate(zip(DATA.x[:90], DATA.y[:90]))]
    stream = driftline.from_iterable(source, classes=10)
    metrics = [TorchMetric(METRICS["accuracy"](), name="theirs"), OnlineAccuracy(window=None)]
    [*_, step] = driftline.play(stream, NearestClassMean(), batch_size=5, metrics=metrics)
    assert step.metrics()["theirs"] == pytest.approx(step.metrics()["online_accuracy"])


def test_numbers_are_measured():
    bits = driftline.scenarios.slowly_changing_regression(seed=0, samples=300)
    model = driftline.models.mlp(bits.input_shape, 1, hidden=(5,), seed=0)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.01), squared_error)
    metrics = [TorchMetric(r.MeanSquaredError()), driftline.metrics.OnlineError(window=None)]
    [*_, step] = driftline.play(bits, learner, batch_size=3, metrics=metrics)
    values = step.metrics()
    assert values["MeanSquaredError"] == pytest.approx(values["online_squared_error"], rel=1e-5)


def test_a_study_measures_each_replica():
    def make(seed):
        model = driftline.models.mlp(DATA.input_shape, 10, hidden=(8,), seed=seed)
        return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))

    metrics = [TorchMetric(METRICS["accuracy"](), "theirs"), OnlineAccuracy(window=None)]
    report = driftline.run(STREAM[:200], make, seeds=[0, 1], batch_size=10, metrics=metrics)
    each = report.record["replicas"]["results"]
    assert each["theirs"] == pytest.approx(each["online_accuracy"]) and each["theirs"][0] != each["theirs"][1]


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ConfigError, match="needs a metric of torchmetrics, got Linear"):
        TorchMetric(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"MulticlassAccuracy does not take predictions \(10, 10\)"):
        list(driftline.play(STREAM, softmax_learner(), batch_size=10, metrics=[TorchMetric(c.MulticlassAccuracy(3))]))
    with pytest.raises(CheckpointError, match="the state is that of .'MulticlassAccuracy'"):
        TorchMetric(METRICS["f1"]()).load_state_dict(TorchMetric(c.MulticlassAccuracy(10)).state_dict())
