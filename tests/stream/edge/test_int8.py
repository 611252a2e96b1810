"""Predicting in eight bits: near to float, following each change of the weights, refused where it cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import driftline
from driftline.adapters import CollapseGuard, Source, Tent
from driftline.errors import ConfigError
from driftline.learners import GradientLearner
from driftline.stream.edge import StateStore, preset
from driftline.stream.edge import int8 as module
from driftline.stream.edge.int8 import Int8, SeenInInt8
from driftline.stream.modules import evaluate
from tests.stream.edge.parts import Clock, Raising, Tape, adapter, make, network, samples

try:
    Int8()
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)


def in_int8(model, x):
    with torch.no_grad(), Int8(model):
        return model.eval()(x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=4),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        nn.Conv2d(8, 6, (1, 3), padding=(0, 1)),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
        nn.Linear(9, 5),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_a_layers_result_is_near_to_the_one_in_float(layer, shift):
    x = torch.randn(3, 8, 9, 9, generator=torch.Generator().manual_seed(0)) + shift
    expected = layer(x)
    found = in_int8(layer, x)
    assert found.shape == expected.shape
    # Half a step of 126 and of 127 for each of two factors, over sums in which errors cancel.
    assert 0 < (found - expected).abs().max() < 0.04 * expected.abs().max()


def test_a_trained_network_gives_the_same_classes_on_digits():
    data = driftline.load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
        model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for i in range(60):
        rows = torch.arange(20 * i, 20 * i + 20) % len(data.x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
        optimizer.step()
    x, y = data.test.x, data.test.y
    full, bits = evaluate(model, x), in_int8(model, x)
    assert (full.argmax(1) == y).float().mean() > 0.85
    assert (full.argmax(1) == bits.argmax(1)).float().mean() > 0.98
    assert not torch.equal(full, bits)


def test_weights_that_changed_by_whatever_way_are_rounded_anew_and_others_are_not(monkeypatch):
    packed = []
    pack = module._pack
    model, x = network(), samples(5)
    with torch.no_grad():
        bits = Int8(model)
        monkeypatch.setattr(module, "_pack", lambda *given: packed.append(given[0]) or pack(*given))
        with bits:
            before = model(x)
        model[3].weight.data.mul_(-1)
        bits.refresh()
        with bits:
            after = model(x)
    assert [weight is model[0].weight for weight in packed] == [True, False, False]
    assert torch.allclose(after - model[3].bias, model[3].bias - before, atol=1e-5)
    assert bits.nbytes == sum(5 * layer.weight.numel() for layer in (model[0], model[3]))


def test_other_types_gradients_and_nan_stay_in_float():
    model, x = network(), samples(5)
    with Int8(model):
        model(x).sum().backward()
        assert torch.equal(model.double()(x.double()), network().double()(x.double()))
    assert model[0].weight.grad is not None
    broken = network()
    broken[0].weight.data.fill_(torch.nan)
    assert in_int8(broken, x).isnan().all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()), "this network has Conv1d, ReLU"),
        (nn.Linear(3, 2).double(), "this network has Linear .float64 on cpu"),
    ],
)
def test_a_network_without_layers_for_it_is_refused_by_name(tmp_path, model, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, [], Source(model), shipped=model, quantize="int8")


def test_a_platform_without_kernels_or_another_number_of_bits_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="quantize='int4'"):
        make(tmp_path, [], quantize="int4")

    def missing(*given):
        raise RuntimeError("qconv is not supported here\nmore")

    monkeypatch.setattr(module, "_convolve", missing)
    with pytest.raises(ConfigError, match=r"torch .* has no kernels for it \(qconv is not supported here\)"):
        make(tmp_path, [], quantize="int8")


# --- in the loop


def scores_of(loop):
    with loop:
        return torch.stack([answer.scores for answer in loop])


@pytest.mark.parametrize("name", ["statistics", "affine", "last-layer"])
def test_the_loop_answers_in_int8_by_the_weights_as_adapted_in_float(tmp_path, name):
    x = samples(40)
    way = preset(name)
    settings = {"batch_size": 8, "window": way.window, "shipped": network()}
    float_scores = scores_of(make(tmp_path / "float", x, way.make(network()), **settings))
    loop = make(tmp_path / "int8", x, way.make(network()), quantize="int8", **settings)
    scores = scores_of(loop)
    assert loop.health.counts["adaptations"] == 5
    # The same adapting, since that is in float.
    by_float, by_int8 = (StateStore(tmp_path / kind).newest()[1]["player"]["model"] for kind in ("float", "int8"))
    assert all(map(torch.equal, by_float.values(), by_int8.values()))
    assert 0 < (scores - float_scores).abs().max() < 0.2
    assert (scores.argmax(1) == float_scores.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("when_late", ["smaller", "background"])
def test_what_a_learner_has_learned_is_served_at_once(tmp_path, when_late):
    model = network()
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=1.0))
    x = samples(24)
    loop = make(tmp_path, ((row, 2) for row in x), learner, quantize="int8", when_late=when_late)
    with loop:
        for answer in loop:
            if loop.serving._job is not None:
                loop.serving._job.wait(60)
            found = in_int8(loop.serving.player.network(), x[answer.position : answer.position + 1])[0]
            assert torch.allclose(answer.scores, found, atol=1e-6)
    # In the background the last one is not waited for.
    assert loop.health.counts["adaptations"] == (3 if when_late == "smaller" else 2)
    assert not torch.allclose(found, evaluate(network(), x[-1:])[0], atol=0.2)


class ThenRaising(Raising):
    """Changes the weights, then raises."""

    def adapt(self, x):
        self.network()[3].weight.data.mul_(-3)
        raise self.error


def test_a_rollback_reaches_what_is_served_in_int8(tmp_path):
    x = samples(20)
    loop = make(tmp_path, x, ThenRaising(adapter()), quantize="int8", clock=Clock())
    scores = scores_of(loop)
    assert loop.health.counts["rollbacks"] == 1
    assert torch.allclose(scores, torch.cat([in_int8(network(), row[None]) for row in x]), atol=1e-6)


def test_stopped_and_resumed_in_int8_or_in_float_it_goes_on(tmp_path):
    x = samples(40)
    whole = scores_of(make(tmp_path / "whole", x, quantize="int8"))
    with make(tmp_path / "parts", Tape(x), quantize="int8") as first:
        parts = [next(first).scores for _ in range(21)]
    rest = scores_of(make(tmp_path / "parts", Tape(x), quantize="int8"))
    assert torch.equal(torch.cat([torch.stack(parts), rest]), whole)
    with make(tmp_path / "change", Tape(x), quantize="int8", guard=True) as first:
        [next(first) for _ in range(21)]
    rest = scores_of(make(tmp_path / "change", Tape(x), guard=True))
    assert 0 < (rest - whole[21:]).abs().max() < 0.2


def test_a_guard_watches_what_is_served_in_int8(tmp_path):
    with make(tmp_path, [], Tent(network()), guard=True, quantize="int8") as loop:
        guard = loop.serving.player.inner
        assert isinstance(guard, CollapseGuard)
        assert isinstance(guard.inner, SeenInInt8)
        x = samples(16)
        seen = guard.adapt(x)
        served = loop.serving.predict(x).scores
    assert torch.equal(seen[-1], served)
    assert not torch.equal(seen[-1], guard.inner.inner.predict(x)[-1])


def test_the_plan_counts_the_weights_in_int8(tmp_path):
    example = samples(1)[0]
    size = 5 * (4 * 8 + 8 * 3)
    for folder, when_late, copies in (("a", "smaller", 1), ("b", "background", 3)):
        with make(tmp_path / folder, [], example=example, quantize="int8", when_late=when_late, guard=True) as loop:
            assert loop.plan.int8 == size * copies
            assert "weights in eight bits" in str(loop.plan)
            parts = loop.plan.process + loop.plan.copies + loop.plan.queues + loop.plan.step
            assert loop.plan.total == parts + size * copies
    with make(tmp_path / "c", [], example=example) as loop:
        assert loop.plan.int8 == 0
        assert "eight bits" not in str(loop.plan)
