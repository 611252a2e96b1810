from __future__ import annotations

import copy
import fnmatch
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import driftline
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import GradientLearner, NearestClassMean, ReservoirReplay, StreamingLDA
from driftline.learners.lockstep.stack import in_lockstep
from driftline.metrics.plasticity import (
    QUANTITIES,
    Plasticity,
    active_units,
    approximate_rank,
    dead_units,
    dormant_units,
    effective_rank,
    gradient_norm,
    matrices,
    nonzero_share,
    rarely_active_units,
    sample_plasticity,
    singular_values,
    srank,
    stable_rank,
    total_norm,
    update_norm,
    weight_magnitude,
    weight_rank,
)
from driftline.models import mlp
from driftline.stream import Dataset, Segment, Stream, from_iterable
from driftline.stream.play import play
from driftline.stream.step import Step
from driftline.testing import blobs, check_metric
from tests.golden import golden, golden_names
from tests.stream.players import Recorder, points

RATE = 0.05


def sgd(network, loss=F.cross_entropy, **options):
    return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=RATE), loss, **options)


def learner(**options):
    return sgd(mlp(3, 4, (8, 6), seed=1), **options)


def stream(samples=120, **given):
    return Stream([Segment.of(points(samples, **given))])


def series(metric, name):
    return {position: value for position, found, value in metric.points(0) if found == name}


# --- against a run that is measured by hand


def by_hand(every, samples, batch_size):
    """All quantities, from a training loop of its own."""
    network = mlp(3, 4, (8, 6), seed=1)
    data = points(120)
    expected = {}
    for start in range(0, 120, batch_size):
        stop = start + batch_size
        x, y = data.x[start:stop], data.y[start:stop]
        old = copy.deepcopy(network)
        loss = F.cross_entropy(network(x), y)
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in network.parameters():
                p -= RATE * p.grad
        if stop // every == start // every:
            continue
        with torch.no_grad():
            first = network.body[:3](data.x[max(0, stop - samples) : stop])
            layers = [first, network.body[3:](first)]
            values = singular_values(layers[1])
            expected[stop] = {
                "dormant_units": dormant_units(layers, 0.1),
                "dead_units": dead_units(layers),
                "rarely_active_units": rarely_active_units(layers),
                "active_units": active_units(layers),
                "effective_rank": effective_rank(values),
                "stable_rank": stable_rank(values),
                "srank": srank(values),
                "approximate_rank": approximate_rank(values),
                "weight_magnitude": weight_magnitude(network.parameters()),
                "gradient_norm": gradient_norm(network.parameters()),
                "update_norm": update_norm(old.parameters(), network.parameters()),
                "sample_plasticity": sample_plasticity(loss, F.cross_entropy(network(x), y)),
            }
    return {position: {name: value.item() for name, value in row.items()} for position, row in expected.items()}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("every", "samples"), [(40, 16), (40, 100), (1, 5), (18, 18), (500, 16)])
def test_every_quantity_is_that_of_a_run_measured_by_hand(every, samples, batch_size):
    metric = Plasticity(every, samples, QUANTITIES, threshold=0.1)
    for _ in play(stream(), learner(), batch_size=batch_size, metrics=[metric]):
        pass
    expected = by_hand(every, samples, batch_size)
    assert bool(expected) == (every <= 120)
    last = metric.value()
    found = {position: {} for position in expected}
    for position, name, value in metric.points(120):
        found[position][name] = value
    for position, row in expected.items():
        # an own loop rounds differently
        assert found[position] == pytest.approx(row, rel=1e-4, abs=1e-5), position
    if expected:
        assert {k: v for k, v in last.items() if k in QUANTITIES} == found[max(found)]
        mean = sum(row["sample_plasticity"] for row in expected.values()) / len(expected)
        assert last["sample_plasticity_mean"] == pytest.approx(mean, rel=1e-4)
    else:
        assert all(math.isnan(value) for value in last.values())


@pytest.mark.parametrize("case", golden_names("metrics", "online_plasticity*"))
def test_a_recorded_run_is_measured_as_the_reference_did(case):
    arrays, config = golden("metrics", case)
    sizes = config["layer_sizes"]
    parts = OrderedDict()
    for i in range(1, len(sizes)):
        parts[f"linear_{i}"] = nn.Linear(sizes[i - 1], sizes[i])
        if i + 1 < len(sizes):
            parts[f"act_{i}"] = nn.ReLU()
    network = nn.Sequential(parts).to(getattr(torch, config["dtype"]))
    init = {k.removeprefix("init/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("init/")}
    network.load_state_dict(init)
    lr = config["hyperparameters"]["lr"]
    player = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=lr))
    x, y = (torch.from_numpy(arrays[name]).flatten(0, 1) for name in ("x", "y"))
    # the tolerances stated with the records
    close = {"rel": 1e-9, "abs": 1e-9} if config["dtype"] == "float64" else {"rel": 1e-5, "abs": 1e-5}
    metric = Plasticity(1, 1, ["sample_plasticity", "dead_units", "gradient_norm"])
    found = {name: [] for name in ("weight_rank", "weight_l1", "weight_l2", "grad_l0", "grad_l1", "grad_l2")}
    for t, step in enumerate(play(Stream([Segment.of(Dataset(x, y))]), player, metrics=[metric])):
        assert step.prediction[0].tolist() == pytest.approx(arrays["logits"][t, 0].tolist(), **close)
        weights = matrices(network.parameters())
        gradients = [w.grad for w in weights]
        found["weight_rank"].append(weight_rank(weights).item())
        found["weight_l1"].append(total_norm(weights, 1).item())
        found["weight_l2"].append(total_norm(weights).item())
        found["grad_l0"].append(nonzero_share(gradients).item())
        found["grad_l1"].append(total_norm(gradients, 1).item())
        found["grad_l2"].append(gradient_norm(weights).item())
    rows = metric.points(60)
    found["plasticity"] = [value for _, name, value in rows if name == "sample_plasticity"]
    found["n_dead_units"] = [value for _, name, value in rows if name == "dead_units"]
    assert len(found["plasticity"]) == config["steps"] == 60
    for name, values in found.items():
        assert values == pytest.approx(arrays[f"stats/{name}"].tolist(), **close), name


# --- replicas


def test_a_replica_is_measured_as_it_is_alone():
    networks = [mlp(3, 4, (8, 6), seed=s) for s in (1, 2)]
    streams = [Stream([Segment.of(points(120, seed=s))]) for s in (0, 1)]
    together = in_lockstep([sgd(copy.deepcopy(network)) for network in networks])
    watching = [Plasticity(40, 30, QUANTITIES) for _ in networks]
    for metric, data in zip(watching, streams):
        metric.begin(data, 4)
    for batches in zip(*(data.batches(4) for data in streams)):
        steps = [Step(b, data, together.replica(i), ()) for i, (b, data) in enumerate(zip(batches, streams))]
        for metric, step in zip(watching, steps):
            metric.before(step)
        scores = together.observe(torch.stack([b.x for b in batches]), torch.stack([b.y for b in batches]))
        for i, (metric, step) in enumerate(zip(watching, steps)):
            step.prediction = scores[i]
            metric.update(step)
    for network, data, metric in zip(networks, streams, watching):
        alone = Plasticity(40, 30, QUANTITIES)
        for _ in play(data, sgd(network), batch_size=4, metrics=[alone]):
            pass
        # batched products round differently
        assert metric.value() == pytest.approx(alone.value(), rel=1e-4, abs=1e-5)


def test_replicas_together_are_refused():
    together = in_lockstep([learner(), learner()])
    batch = next(stream().batches(4))
    with pytest.raises(InputError, match=r"one run, not 2 in lockstep: one for each learner.replica\(i\)"):
        Plasticity().before(Step(batch, stream(), together, ()))


# --- laws


def digits_tasks():
    return driftline.scenarios.class_incremental(driftline.load("digits"), tasks=3)[100:400].delay_labels(20)


def conv_learner():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 10)
        )
    return GradientLearner(network, torch.optim.Adam(network.parameters()), replay=ReservoirReplay(50))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: Plasticity(50, 32, QUANTITIES), {"resident": False}),
        (lambda: Plasticity(30, 100), {"resident": False, "batch_size": 7}),
        (lambda: Plasticity(1, 1, ["sample_plasticity", "update_norm"]), {}),
        (lambda: Plasticity(40, 40), {"resident": False, "stream": digits_tasks, "make_learner": conv_learner}),
    ],
    ids=["all", "overlapping probes", "every step", "late labels, convolutions, dropout"],
)
def test_it_keeps_the_laws_of_metrics(make, options):
    given = {key: value() if key == "stream" else value for key, value in options.items()}
    check_metric(make, **given)


class Counting:
    """A loss that counts how often it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, scores, y):
        self.asked += 1
        return F.cross_entropy(scores, y)

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


def test_a_loss_with_a_state_is_left_as_it_was():
    loss = Counting()
    metric = Plasticity(10)
    for _ in play(stream(), learner(loss=loss), metrics=[metric]):
        pass
    assert loss.asked == 120
    assert metric.value()["sample_plasticity_mean"] > 0


def test_hooks_of_others_see_its_forward_passes_without_gradients_and_stay():
    seen = []
    for metrics in ([], [Plasticity(60)]):
        network = mlp(3, 4, (8, 6))
        enabled = []
        network.body[2].register_forward_hook(lambda *_, enabled=enabled: enabled.append(torch.is_grad_enabled()))
        for _ in play(stream(), sgd(network), batch_size=10, metrics=metrics):
            pass
        assert len(network.body[2]._forward_hooks) == 1
        seen.append((enabled.count(True), enabled.count(False)))
    # two measurements with two forward passes each
    assert seen[1] == (seen[0][0], seen[0][1] + 4)


# --- when it measures


def test_measurements_belong_to_the_steps_that_reach_a_multiple():
    segments = [Segment.of(points(n, seed=n)) for n in (23, 19, 31)]
    metric = Plasticity(10, quantities=["weight_magnitude"])
    ends = [step.position for step in play(Stream(segments), learner(), batch_size=4, metrics=[metric])]
    first = [next(end for end in ends if end >= multiple) for multiple in range(10, 74, 10)]
    assert list(series(metric, "weight_magnitude")) == first


def stops_of(metric, lengths, batch_size):
    """Where a runtime that plays many steps of a segment at once stops, and the beginnings and ends of all steps."""
    metric.begin(stream(), batch_size)
    stops, steps, start = [0], [], 0
    for length in lengths:
        ends = [start + min(i + batch_size, length) for i in range(0, length, batch_size)]
        steps += list(zip([start, *ends], ends))
        while stops[-1] < ends[-1]:
            wish = metric.cuts(stops[-1], batch_size)
            assert wish > stops[-1]
            stops.append(next((end for end in ends if end > stops[-1] and end >= wish), ends[-1]))
        start += length
    return stops, steps


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("lengths", [[100], [23, 19, 31, 27]], ids=["one segment", "four segments"])
@pytest.mark.parametrize("every", [10, 30, 7])
def test_it_wishes_to_see_the_measured_step_alone(batch_size, lengths, every):
    stops, steps = stops_of(Plasticity(every), lengths, batch_size)
    for start, stop in steps:
        if stop // every > start // every:
            assert stop in stops and start in stops


def test_it_lets_long_parts_be_played_at_once():
    assert stops_of(Plasticity(50), [100], 1)[0] == [0, 49, 50, 99, 100]
    whole = Plasticity(50, quantities=["srank", "weight_magnitude"])
    assert stops_of(whole, [100], 1)[0] == [0, 50, 100]


@pytest.mark.parametrize("cut", [7, 30, 43, 80, 119])
def test_a_run_resumed_in_the_middle_measures_the_same(cut):
    whole, resumed = Plasticity(20, 30), Plasticity(20, 30)
    playback = play(stream(), learner(), metrics=[whole])
    for step in playback:
        if step.position == cut:
            state = copy.deepcopy(playback.state_dict())
    again = play(stream(), learner(), metrics=[resumed])
    again.load_state_dict(state)
    for _ in again:
        pass
    assert resumed.value() == whole.value()
    assert resumed.points(120) == whole.points(120)


# --- what cannot be measured


def test_without_labels_at_once_plasticity_is_undefined_and_the_rest_is_not():
    for labels in (stream().delay_labels(3), stream().label_fraction(0.5), stream().without_labels()):
        metric = Plasticity(40)
        for _ in play(labels, learner(), metrics=[metric]):
            pass
        values = metric.value()
        assert math.isnan(values["sample_plasticity"]) and math.isnan(values["sample_plasticity_mean"])
        assert values["dead_units"] >= 0 and values["effective_rank"] > 1


def test_a_live_stream_is_measured_where_the_truth_is_known():
    data = points(100)
    source = [(x, None if i == 39 else int(y)) for i, (x, y) in enumerate(zip(data.x, data.y))]
    metric = Plasticity(20)
    for _ in play(from_iterable(source, classes=4), learner(), metrics=[metric]):
        pass
    undefined = [position for position, value in series(metric, "sample_plasticity").items() if math.isnan(value)]
    assert undefined == [40]


def test_nothing_learned_is_no_update_and_no_gradient():
    metric = Plasticity(40)
    for _ in play(stream().without_labels(), learner(), metrics=[metric]):
        pass
    assert metric.value()["update_norm"] == 0
    assert math.isnan(metric.value()["gradient_norm"])


def test_a_diverged_network_is_measured_without_an_error():
    network = mlp(3, 4, (8, 6))
    metric = Plasticity(40)
    player = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=1e30))
    for _ in play(stream(), player, metrics=[metric]):
        pass
    assert math.isnan(metric.value()["effective_rank"])


def test_regression_is_measured():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    network = mlp(3, 1, (8,))
    metric = Plasticity(20)
    player = sgd(network, lambda scores, y: F.mse_loss(scores[:, 0], y))
    for _ in play(Stream([Segment.of(Dataset(x, x[:, 0]))]), player, metrics=[metric]):
        pass
    assert 0 < metric.value()["sample_plasticity_mean"] <= 1


def test_a_learner_without_a_network_is_refused_before_it_learns():
    for player in (StreamingLDA(classes=4), NearestClassMean(classes=4), Recorder(4)):
        metric = Plasticity()
        with pytest.raises(InputError, match=f"{type(player).__name__} shows none"):
            next(iter(play(stream(), player, metrics=[metric])))
    assert player.learned == []


def test_a_learner_without_a_loss_is_refused_only_when_its_plasticity_was_asked_for():
    extractor = nn.Sequential(nn.Linear(3, 6), nn.ReLU())
    with pytest.raises(InputError, match="NearestClassMean has no attribute `loss`"):
        named = Plasticity(quantities=["sample_plasticity"])
        next(iter(play(stream(), NearestClassMean(extractor), metrics=[named])))
    metric = Plasticity(40)
    for _ in play(stream(), NearestClassMean(extractor), metrics=[metric]):
        pass
    assert math.isnan(metric.value()["sample_plasticity"])
    assert metric.value()["stable_rank"] >= 1


def test_a_network_without_activation_modules_is_refused_unless_told_where_to_look():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3, 4))
    with pytest.raises(ConfigError, match="Sequential has no activation modules"):
        next(iter(play(stream(), sgd(linear), metrics=[Plasticity()])))
    with pytest.raises(ConfigError, match="unknown layer '2'"):
        next(iter(play(stream(), sgd(linear), metrics=[Plasticity(layers=["2"])])))
    named, without = Plasticity(40, layers=["1"]), Plasticity(40, quantities=["update_norm", "sample_plasticity"])
    for _ in play(stream(), sgd(linear), metrics=[named, without]):
        pass
    assert named.value()["dead_units"] == 0
    assert without.value()["update_norm"] > 0


def test_a_network_without_parameters_has_no_weights_to_measure():
    bare = NearestClassMean(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(InputError, match="Sequential has no parameters"):
        next(iter(play(stream(), bare, metrics=[Plasticity()])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0: must be at least 1"),
        ({"samples": 0}, "samples=0: must be at least 1"),
        ({"threshold": -1.0}, "threshold=-1.0: must be 0 or more"),
        ({"threshold": float("nan")}, "threshold=nan: must be 0 or more"),
        ({"pooling": "all"}, "pooling='all'"),
        ({"quantities": []}, "name at least one of dormant_units"),
        ({"quantities": ["strank"]}, "unknown quantity 'strank'; did you mean 's"),
        ({"quantities": "srank"}, "give a list of names"),
        ({"layers": "0"}, "give a list of names"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Plasticity(**settings)


def test_a_state_of_other_quantities_is_refused():
    metric = Plasticity(quantities=["srank"])
    with pytest.raises(CheckpointError, match=r"the state has quantities \['stable_rank'\], this metric \['srank'\]"):
        metric.load_state_dict(Plasticity(quantities=["stable_rank"]).state_dict())


# --- what it says of itself


def test_it_describes_itself_and_defines_its_values():
    metric = Plasticity(500, 64, ["srank", "sample_plasticity"], layers=["0"])
    assert metric.describe() == {
        "name": "Plasticity",
        "every": 500,
        "samples": 64,
        "threshold": 0.025,
        "pooling": "units",
        "quantities": ["srank", "sample_plasticity"],
        "layers": ["0"],
    }
    assert list(metric.value()) == ["srank", "sample_plasticity", "sample_plasticity_mean"]
    every = Plasticity(quantities=QUANTITIES).value()
    assert set(every) == set(Plasticity.definitions)
    assert not any(fnmatch.fnmatchcase(name, "*[*,]*") for name in every)


def test_pooling_by_layers_changes_the_shares_of_units_only():
    by_units, by_layers = Plasticity(600, threshold=0.5), Plasticity(600, threshold=0.5, pooling="layers")
    for _ in play(blobs(), sgd(mlp(4, 3, (32, 4), seed=3)), metrics=[by_units, by_layers]):
        pass
    one, other = by_units.value(), by_layers.value()
    assert one["dormant_units"] != other["dormant_units"]
    assert one["active_units"] == other["active_units"]
