import json

import numpy as np
import pytest
import torch
from torch import nn

import driftline
from driftline import models
from driftline.errors import CheckpointError, ConfigError, SignalError
from driftline.learners import AdaptiveReplayRatio, GradientLearner, ReservoirReplay, in_lockstep
from driftline.learners.adaptive_replay_ratio import SIGNALS
from driftline.learners.lockstep.side_by_side import SideBySide
from driftline.metrics import OnlineAccuracy
from driftline.plan import Plan
from driftline.plasticity import active_units
from driftline.plasticity.watch import watching
from tests.golden import golden, golden_names
from tests.learners.states import kept, same

MODEL = models.mlp(2, 2, (3,))


class Script:
    """A signal that gives the values it is told, one for each update."""

    def __init__(self, values):
        self.values, self.update = values, 0

    def __call__(self, layers, kinds):
        return torch.tensor(self.values[self.update % len(self.values)], dtype=torch.float64)


def drive(ratio, script, positions):
    """Make the updates that a ratio asks for; return how many there were at each position."""
    made = []
    for position in positions:
        updates = ratio.ratio(position, MODEL)
        for _ in range(updates):
            with ratio.watching(MODEL):
                MODEL(torch.zeros(1, 2))
            script.update += 1
        made.append(updates)
    return made


@pytest.mark.parametrize("name", golden_names("metrics", "adaptive_rr_*"))
def test_the_published_rule_is_reproduced_exactly(name):
    arrays, config = golden("metrics", name)
    given = config["hyperparameters"]
    first, length, check = given["seed_steps"], given["episode_length"], given["check_freq"]
    script = Script(arrays["fau_sequence"].tolist())
    every = check * length
    ratio = AdaptiveReplayRatio((0.5, 2), given["Phi_gap"], every, window=length, signal=script)
    cumulative = 0
    for step in range(first, given["steps"]):
        cumulative += drive(ratio, script, [step])[0]
        expected = {key.removeprefix("step/"): float(arrays[key][step]) for key in arrays if key.startswith("step/")}
        assert cumulative == expected["n_updates"]
        assert ratio.levels[ratio.level] == expected["replay_ratio"] / expected["update_every_steps"]
        assert (ratio.average or 0.0) == expected["average_Phi"]
        last = float(ratio.state_dict()["first"]) if ratio.average is None else ratio.average
        assert last == expected["last_average_Phi"]
        if step % every >= every - length:
            # Elsewhere the reference sums what it throws away.
            state = ratio.state_dict()
            assert state["count"] == expected["sum_Phi_count"]
            assert float(state["sum"] if state["count"] else 0.0) == expected["sum_Phi"]
    switch = int(arrays["switch_step"])
    assert ratio.changes == ([] if switch < 0 else [(switch, 2)])
    assert script.update == len(arrays["fau_used"])


def test_the_default_is_the_published_rule():
    ratio = AdaptiveReplayRatio()
    assert (ratio.levels, ratio.gap, ratio.every, ratio.window) == ((0.5, 2), 1e-3, 50 * 500, 500)
    assert ratio.back_off is None and ratio.signal == "active_units"


def test_more_than_two_levels_are_climbed_one_at_a_check():
    script = Script([0.5])
    ratio = AdaptiveReplayRatio((0.5, 1, 1.5, 3), gap=0.0, every=10, window=4, signal=script)
    made = drive(ratio, script, range(50))
    assert ratio.changes == [(10, 1), (20, 1.5), (30, 3)]
    assert [sum(made[i : i + 10]) for i in range(0, 50, 10)] == [5, 10, 15, 30, 30]


def test_a_signal_that_moves_holds_the_ratio_down():
    script = Script([0.9**n for n in range(200)])
    ratio = AdaptiveReplayRatio(gap=1e-3, every=10, window=4, signal=script)
    drive(ratio, script, range(120))
    before = ratio.level
    drive(ratio, script, range(120, 200))
    assert (before, ratio.level) == (0, 1)


def test_it_backs_off_when_plasticity_falls_and_goes_up_again_when_it_has_settled():
    values = [0.5] * 30 + [0.5 - 0.02 * n for n in range(20)] + [0.1] * 500
    script = Script(values)
    ratio = AdaptiveReplayRatio((1, 2), gap=1e-3, every=10, window=5, signal=script, back_off=0.05)
    drive(ratio, script, range(100))
    assert [level for _, level in ratio.changes] == [2, 1, 2]
    for_good = AdaptiveReplayRatio((1, 2), gap=1e-3, every=10, window=5, signal=Script(values))
    drive(for_good, for_good.signal, range(100))
    assert for_good.changes == [(10, 2)]


def test_a_slow_fall_is_measured_from_where_the_ratio_went_up():
    script = Script([0.9] * 12 + [0.9 - 0.001 * n for n in range(1000)])
    ratio = AdaptiveReplayRatio((1, 2), gap=0.05, every=10, window=5, signal=script, back_off=0.06)
    drive(ratio, script, range(61))
    assert [level for _, level in ratio.changes] == [2, 1, 2]


@pytest.mark.parametrize("batch", [1, 3, 7, 25])
def test_checks_come_by_samples_whatever_the_batch_size(batch):
    script = Script([0.5])
    ratio = AdaptiveReplayRatio(gap=0.0, every=20, window=5, signal=script)
    positions = range(0, 100, batch)
    drive(ratio, script, positions)
    assert ratio.changes == [(next(p for p in positions if p >= 20), 2)]


def learner(seed=0, ratio=None, model=None, **options):
    network = models.mlp(4, 3, (12, 8), seed=seed) if model is None else model
    ratio = AdaptiveReplayRatio(gap=0.1, every=40, window=20, **options) if ratio is None else ratio
    sgd = torch.optim.SGD(network.parameters(), lr=0.05)
    return GradientLearner(network, sgd, replay=ReservoirReplay(50, seed=seed), replay_ratio=ratio)


def batches(steps, batch=4, seed=1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, 4, generator=rng)
    return [(part, part[:, :3].argmax(1)) for part in x]


def test_the_signal_is_that_of_the_forward_pass_made_anyway():
    passes, seen, own = [], [], []

    def signal(layers, kinds):
        seen.append([h.clone() for h in layers])
        return active_units(layers, kinds)

    trained = learner(signal=signal)
    trained.check(*batches(1)[0])
    trained.model.register_forward_hook(lambda module, inputs, output: passes.append(1))
    for x, y in batches(10):
        before = len(passes)
        with watching(trained.model, lambda hidden, kind: own.append(hidden.clone())):
            trained.learn(x, y)
        assert len(passes) - before == trained.replay_ratio.state_dict()["steps"] % 2
    # The first update, and those of the ten samples' worth of steps before the check at sample 40.
    assert len(seen) == 1 + 2
    assert torch.equal(seen[0][0], own[0]) and torch.equal(seen[-1][1], own[-1])
    assert not any(m._forward_hooks for m in trained.model.body)


def test_watching_changes_nothing_that_is_learned():
    adaptive, fixed = learner(ratio=AdaptiveReplayRatio(every=40, window=40, gap=0.0)), learner(ratio=0.5)
    for x, y in batches(30):
        adaptive.learn(x, y)
        fixed.learn(x, y)
    assert adaptive.replay_ratio.level == 0
    assert same(adaptive.model.state_dict(), fixed.model.state_dict())


@pytest.mark.parametrize("name", SIGNALS)
def test_each_named_signal_drives_a_learner_to_the_end(name):
    trained = learner(ratio=AdaptiveReplayRatio(gap=100.0, every=40, window=40, signal=name))
    for x, y in batches(25):
        trained.learn(x, y)
    assert trained.replay_ratio.changes == [(40, 2)]
    assert trained.replay_ratio.average > 0.3
    assert trained.describe()["parameters"]["replay_ratio"]["signal"] == name


def test_the_state_goes_on_in_the_middle_of_a_window():
    first, second = learner(), learner(seed=9)
    data = batches(40)
    for x, y in data[:13]:
        first.learn(x, y)
    second.load_state_dict(kept(first))
    for x, y in data[13:]:
        first.learn(x, y)
        second.learn(x, y)
    assert first.replay_ratio.changes and same(first.state_dict(), second.state_dict())
    other = learner(levels=(0.5, 3))
    before = kept(other)
    with pytest.raises(CheckpointError, match=r"levels \[0.5, 2\], but these are \[0.5, 3\]"):
        other.load_state_dict(first.state_dict())
    assert same(other.state_dict(), before)


def rotten(layers, kinds):
    return torch.tensor(float("nan"))


def test_a_signal_that_is_nan_is_named_and_nothing_has_changed():
    trained, data = learner(signal=rotten), batches(11)
    for x, y in data[:10]:
        trained.learn(x, y)
    before = {name: value for name, value in kept(trained).items() if name != "replay_ratio"}
    with pytest.raises(SignalError, match="the signal rotten is nan .* before sample 40"):
        trained.learn(*data[10])
    after = trained.state_dict()
    ratio = after.pop("replay_ratio")
    assert same(after, before) and ratio["steps"] == 10 and ratio["average"] is None


def test_a_model_without_hidden_units_to_be_found_is_refused_before_anything_changes():
    trained = learner(model=nn.Linear(4, 3))
    before = kept(trained)
    with pytest.raises(ConfigError, match="Linear has no activation modules"):
        trained.learn(*batches(1)[0])
    assert same(trained.state_dict(), before)
    with pytest.raises(ConfigError, match="unknown layer 'bodi'"):
        learner(layers=["bodi"]).learn(*batches(1)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ()}, r"levels=\(\): give at least two"),
        ({"levels": (0.5,)}, "for one, replay_ratio="),
        ({"levels": "0.5"}, "give at least two"),
        ({"levels": (2, 0.5)}, "must rise"),
        ({"levels": (0, 2)}, "each a number above 0"),
        ({"levels": (1, float("inf"))}, "must rise, each a number above 0"),
        ({"levels": (1, float("nan"), 2)}, "must rise"),
        ({"gap": -0.1}, "gap=-0.1: must be a number of at least 0"),
        ({"gap": float("nan")}, "gap=nan"),
        ({"every": 0}, "every=0: there are no checks"),
        ({"window": 0}, "window=0: must be from 1 to every=25000"),
        ({"every": 10}, "window=500: must be from 1 to every=10"),
        ({"back_off": -1.0}, "back_off=-1.0"),
        ({"signal": "active_unit"}, "unknown signal 'active_unit'; did you mean 'active_units'"),
        ({"layers": "body"}, "layers='body': give a list"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveReplayRatio(**settings)


def test_replicas_are_stepped_one_by_one_each_with_a_ratio_of_its_own():
    with pytest.warns(RuntimeWarning, match="AdaptiveReplayRatio decides for each replica"):
        whole = in_lockstep([learner(seed) for seed in range(2)])
    assert isinstance(whole, SideBySide)
    alone = learner(1)
    for x, y in batches(30):
        whole.learn(torch.stack([x, x]), torch.stack([y, y]))
        alone.learn(x, y)
    assert same(whole.replica(1).state_dict(), alone.state_dict())


def test_one_ratio_for_a_model_with_replicas_is_refused():
    stacked = in_lockstep([learner(seed, ratio=0.5) for seed in range(2)])
    assert isinstance(stacked, GradientLearner) and stacked.replicas == 2
    with pytest.raises(ConfigError, match="the model has replicas, and all of them make the same number"):
        AdaptiveReplayRatio().ratio(0, stacked.model)


@pytest.mark.parametrize("ratios", [(0.5, 0.25), (1, 2), (1, 0.5)])
def test_replicas_with_different_ratios_are_stepped_one_by_one(ratios):
    with pytest.warns(RuntimeWarning, match="their replay_ratio differs"):
        assert isinstance(in_lockstep([learner(0, ratio=ratio) for ratio in ratios]), SideBySide)


def test_the_named_learner_runs_from_a_plan_and_says_what_it_is_made_of(tmp_path):
    settings = {"lr": 0.2, "levels": [0.5, 1, 2], "every": 400, "window": 100, "gap": 0.05, "capacity": 50}
    plan = Plan("iid", "digits", "adaptive-er", learner_parameters=settings, model_parameters={"hidden": [16]})
    report = plan.run(tmp_path / "run")
    assert report.results["online_accuracy"] > 0.5
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    ratio = record["learner"]["parameters"]["replay_ratio"]
    assert (ratio["name"], ratio["levels"], ratio["every"]) == ("AdaptiveReplayRatio", [0.5, 1, 2], 400)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    stream = driftline.scenarios.iid(driftline.load("digits"))[:600]

    def build():
        network = models.mlp(stream.input_shape, 10, (16,))
        ratio = AdaptiveReplayRatio(gap=0.05, every=100, window=50)
        sgd = torch.optim.SGD(network.parameters(), lr=0.05)
        return GradientLearner(network, sgd, replay=ReservoirReplay(50), replay_ratio=ratio)

    whole, resumed = build(), build()
    driftline.run(stream, whole, batch_size=10, metrics=[OnlineAccuracy()])
    playback = driftline.play(stream, build(), batch_size=10)
    for step in playback:
        if step.position == 270:
            break
    later = driftline.play(stream, resumed, batch_size=10)
    later.load_state_dict(playback.state_dict())
    for _ in later:
        pass
    assert whole.replay_ratio.changes and same(whole.state_dict(), resumed.state_dict())


def test_the_average_is_that_of_the_updates_in_the_window():
    values = np.linspace(0.2, 0.8, 30).tolist()
    script = Script(values)
    ratio = AdaptiveReplayRatio((1, 2), gap=0.0, every=10, window=3, signal=script)
    drive(ratio, script, range(11))
    assert ratio.average == pytest.approx(sum(values[7:10]) / 3, abs=1e-15)
