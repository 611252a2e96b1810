from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError
from driftline.plasticity import active_units, dead_units, dormant_units, rarely_active_units, redo_score
from tests.golden import golden

SHARES = {
    "dormant": dormant_units,
    "dormant, by layer": lambda layers, **kw: dormant_units(layers, 0.5, pooling="layers", **kw),
    "rarely active": lambda layers, **kw: rarely_active_units(layers, 0.3, **kw),
    "dead": dead_units,
    "dead, by layer": lambda layers, **kw: dead_units(layers, pooling="layers", **kw),
    "active": active_units,
    "active, bounded": lambda layers, **kw: active_units(layers, ["tanh", "sigmoid"], **kw),
}


def draws(*shape, seed=0):
    """ReLU activations with a dead unit, a nearly silent one and one that fires once."""
    h = torch.relu(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    h[..., :, 0, :] = 0
    h[..., :, 1, :] *= 0.01
    h[..., 1:, 2, :] = 0
    return h


# --- by hand


def test_a_score_is_the_units_mean_size_by_that_of_its_layer():
    h = torch.tensor([[1.0, -4.0, 0.0, 0.0], [3.0, 0.0, 0.0, 2.0]])
    assert redo_score(h).tolist() == pytest.approx([2 / 1.25, 2 / 1.25, 0, 1 / 1.25])


def test_a_centred_score_leaves_a_constant_unit_at_zero():
    h = torch.tensor([[5.0, 1.0], [5.0, 3.0]])
    assert redo_score(h, centred=True).tolist() == pytest.approx([0, 2])


def test_a_silent_layer_has_scores_of_zero_and_all_its_units_are_dormant_and_dead():
    silent = torch.zeros(4, 3)
    assert redo_score(silent).tolist() == [0, 0, 0]
    assert dormant_units([silent]) == dead_units([silent]) == rarely_active_units([silent]) == 1
    assert active_units([silent]) == 0


def test_the_threshold_of_dormancy_is_included_and_that_of_rare_activity_is_not():
    alike = torch.ones(4, 2)
    assert dormant_units([alike], threshold=1.0) == 1
    assert dormant_units([alike], threshold=0.99) == 0
    half = torch.tensor([[1.0], [0.0]])
    assert rarely_active_units([half], threshold=0.5) == 0
    assert rarely_active_units([half], threshold=0.51) == 1


def test_a_unit_is_dead_when_it_is_zero_everywhere_not_when_it_is_negative():
    h = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 1e-30]])
    assert dead_units([h]).item() == pytest.approx(1 / 3)


def test_the_units_of_a_convolution_are_its_channels():
    h = torch.zeros(2, 4, 3, 3)
    h[1, 0, 2, 2] = 1
    h[0, 1] = 1
    assert dead_units([h]) == 0.5
    assert rarely_active_units([h], threshold=0.1).item() == 0.75
    assert redo_score(h).tolist() == pytest.approx([4 / 18 / (10 / 18), 4 * 9 / 18 / (10 / 18), 0, 0])


def test_activations_are_counted_in_one_pool_whatever_their_layer():
    assert active_units([torch.ones(1, 9), torch.zeros(1, 1)]) == 0.9


def test_a_bounded_activation_is_active_where_it_is_not_saturated():
    h = torch.tensor([[-1.0, -0.98, 0.0, 0.005, 0.5, 1.0]])
    assert active_units([h], ["tanh"]).item() == pytest.approx(4 / 6)
    assert active_units([h], ["sigmoid"]).item() == pytest.approx(1 / 6)


def test_pooling_by_units_weighs_wide_layers_more_than_pooling_by_layers():
    layers = [torch.zeros(2, 1), torch.ones(2, 3)]
    assert dead_units(layers) == 0.25
    assert dead_units(layers, pooling="layers") == 0.5


# --- replicas


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_each_replica_has_the_share_that_it_has_alone(share):
    layers = [draws(3, 5, 7, 1).squeeze(-1), draws(3, 5, 4, 6, seed=1)]
    together = share(layers, replicas=3)
    alone = [share([h[i] for h in layers]) for i in range(3)]
    assert together.shape == (3,)
    assert together.tolist() == [a.item() for a in alone]


def test_each_replica_has_the_scores_that_it_has_alone():
    h = draws(2, 5, 4, 6)
    assert redo_score(h, replicas=2).shape == (2, 4)
    assert torch.equal(redo_score(h, replicas=2)[1], redo_score(h[1]))


# --- what cannot be measured


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_activations_without_a_dimension_of_units_are_refused(share):
    with pytest.raises(InputError, match=r"activations of shape \(3,\): expected \(samples, units, ...\)"):
        share([torch.ones(3), torch.ones(3)])
    with pytest.raises(InputError, match=r"activations of shape \(4, 5\): expected \(4, samples, units, ...\)"):
        share([torch.ones(4, 5)] * 2, replicas=4)
    with pytest.raises(InputError, match=r"activations of shape \(2, 4, 5\): expected \(4, samples, units, ...\)"):
        share([torch.ones(2, 4, 5)] * 2, replicas=4)


def test_no_layers_are_refused():
    with pytest.raises(InputError, match="no activations of hidden layers"):
        dead_units([])


def test_each_layer_needs_its_kind():
    with pytest.raises(InputError, match="1 kinds for 2 layers"):
        active_units([torch.ones(1, 1)] * 2, ["tanh"])


def test_unknown_words_are_refused():
    with pytest.raises(ConfigError, match="kind='elu'"):
        active_units([torch.ones(1, 1)], ["elu"])
    with pytest.raises(ConfigError, match="pooling='units and layers'"):
        dead_units([torch.ones(1, 1)], pooling="units and layers")


def test_a_diverged_network_gives_a_share_and_no_error():
    h = torch.full((2, 2), float("nan"))
    assert dormant_units([h]) == 0
    assert dead_units([h]) == 0
    assert active_units([h]) == 0


# --- recorded cases


def test_shares_and_scores_are_those_of_the_reference():
    arrays, config = golden("metrics", "dormant_and_magnitude")
    layers = [torch.from_numpy(arrays[f"features/layer{i}"]) for i in range(3)]
    for threshold in config["thresholds"]:
        share = rarely_active_units(layers, threshold).item()
        # float32 quantities: the tolerance stated with the record
        assert share == pytest.approx(float(arrays[f"dormant_proportion_t{threshold}"]), abs=1e-6)
    for i, h in enumerate(layers):
        for name, centred in (("redo_score", False), ("redo_score_submean", True)):
            scores = redo_score(h.double(), centred=centred)
            assert scores.tolist() == pytest.approx(arrays[f"{name}/layer{i}"].tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", ["rank_metrics", "rank_metrics_f32"])
def test_dead_units_and_activity_are_those_of_the_reference(case):
    arrays, _ = golden("metrics", case)
    for key in [k for k in arrays if k.startswith("matrix/")]:
        name = key.removeprefix("matrix/")
        features = torch.from_numpy(arrays[key])
        assert dead_units([features]).item() * features.shape[1] == pytest.approx(int(arrays[f"dead_neurons/{name}"]))
        activity = [active_units([features[:, [i]]]).item() for i in range(features.shape[1])]
        assert activity == pytest.approx(arrays[f"feature_activity/{name}"].tolist(), rel=1e-6)


def actor_and_critic(arrays):
    """Hidden activations of the recorded actor and of the two critics."""

    def weights(net, layer):
        return [torch.from_numpy(arrays[f"{net}/init/{layer}.{kind}"]) for kind in ("weight", "bias")]

    def hidden(net, head, h):
        layers = [torch.relu(F.linear(h, *weights(net, f"{head}.0")))]
        layers.append(torch.relu(F.linear(layers[0], *weights(net, f"{head}.2"))))
        return layers, F.linear(layers[1], *weights(net, f"{head}.4"))

    observation, action = (torch.from_numpy(arrays[name]) for name in ("obs", "action"))
    trunk = {
        net: torch.tanh(F.layer_norm(F.linear(observation, *weights(net, "trunk.0")), (6,), *weights(net, "trunk.1")))
        for net in ("actor", "critic")
    }
    q1, q2 = (hidden("critic", head, torch.cat([trunk["critic"], action], 1)) for head in ("Q1", "Q2"))
    return hidden("actor", "policy", trunk["actor"])[0], q1, q2


def test_the_fraction_of_active_units_is_that_of_the_reference():
    arrays, _ = golden("metrics", "fau")
    actor, q1, q2 = actor_and_critic(arrays)
    for (_, out), name in ((q1, "critic/q1"), (q2, "critic/q2")):
        torch.testing.assert_close(out, torch.from_numpy(arrays[name]), rtol=1e-9, atol=1e-12)
    assert active_units(actor).item() == pytest.approx(float(arrays["actor/fau"]), rel=1e-12)
    assert active_units(q1[0] + q2[0]).item() == pytest.approx(float(arrays["critic/fau"]), rel=1e-12)


def test_the_fraction_of_active_units_of_an_encoder_is_that_of_the_reference():
    arrays, _ = golden("metrics", "fau")
    h = torch.from_numpy(arrays["encoder/x"]).float() / 255 - 0.5
    layers = []
    for i in range(1, 5):
        weight, bias = (torch.from_numpy(arrays[f"encoder/init/conv{i}.{kind}"]) for kind in ("weight", "bias"))
        h = torch.relu(F.conv2d(h, weight, bias, stride=2 if i == 1 else 1))
        layers.append(h)
    assert h.double().sum().item() == pytest.approx(float(arrays["encoder/feature_sum"]), rel=1e-5)
    # activations near zero may flip
    assert active_units(layers).item() == pytest.approx(float(arrays["encoder/fau"]), abs=1e-4)
