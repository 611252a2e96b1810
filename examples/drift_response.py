"""River's drift detectors drive learners and adapters: start afresh, replay more, switch the adapter."""

import copy

import torch
from river import drift

import driftline
from driftline.adapters import BatchNormAdapter, Source
from driftline.interop.river import DriftResponse, ReplayMore, SwitchingAdapter
from driftline.learners import GradientLearner, NearestClassMean, SlidingReplay
from driftline.metrics import OnlineAccuracy


@driftline.scenario
def fading(data, rng):
    """A lamp that fades, and stays so."""
    yield data.shuffle(rng).named("bright")
    yield data.shuffle(rng).transform(dim).named("dim")


def dim(x: torch.Tensor) -> torch.Tensor:
    return 0.3 * x


def trained(data: driftline.Dataset) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, len(data.classes))
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    driftline.run(driftline.scenarios.iid(data, seed=0), GradientLearner(model, adam), batch_size=20)
    return model.eval()


def replaying(data: driftline.Dataset, ratio: int | ReplayMore) -> GradientLearner:
    model = driftline.models.mlp(data.input_shape, len(data.classes), hidden=(64,), seed=0)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    return GradientLearner(model, sgd, replay=SlidingReplay(50), replay_ratio=ratio)


def accuracy(stream: driftline.Stream, player: object) -> float:
    report = driftline.run(stream, player, batch_size=10, metrics=[OnlineAccuracy(window=None)])
    return report.results["online_accuracy"]


def main() -> None:
    data = driftline.load("digits")
    # Halfway the labels of the digits change.
    stream = driftline.scenarios.permuted_labels(data, seed=0, tasks=2)

    afresh = DriftResponse(NearestClassMean(classes=10), drift.ADWIN())
    print(f"nearest class mean       {accuracy(stream, NearestClassMean(classes=10)):.3f}")
    print(f"... afresh at an alarm   {accuracy(stream, afresh):.3f}, alarms: {afresh.alarms}")

    more = ReplayMore(updates=5, samples=500)
    watched = DriftResponse(replaying(data, more), drift.ADWIN(), more)
    print(f"replay                   {accuracy(stream, replaying(data, 1)):.3f}")
    print(f"... more after an alarm  {accuracy(stream, watched):.3f}, alarms: {watched.alarms}")

    # A lamp that fades: the detector sees that the model is less sure, and the adapter to the batch takes over.
    model = trained(data)
    fades = fading(data.test, seed=0)
    switching = SwitchingAdapter(Source(model), BatchNormAdapter(copy.deepcopy(model), "batch"), drift.ADWIN())
    print(f"source model             {accuracy(fades, Source(model)):.3f}")
    print(f"... and batch norm, once {accuracy(fades, switching):.3f}, alarms: {switching.alarms}")


if __name__ == "__main__":
    main()
