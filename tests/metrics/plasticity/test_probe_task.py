import copy

import pytest
import torch

import driftline
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner
from driftline.metrics.plasticity import ProbePlasticity, Sharpness
from driftline.models import mlp
from driftline.testing import blobs


def learner(lr=0.05):
    network = mlp(4, 3, (16,), seed=0)
    return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=lr))


def measured(one, **given):
    metric = ProbePlasticity(**{"every": 60, "samples": 30, "steps": 20, **given})
    for _ in driftline.play(blobs(), one, batch_size=10, metrics=[metric]):
        pass
    return metric.value()


def test_a_network_that_does_not_change_is_as_plastic_as_the_fresh_one():
    values = measured(learner(lr=0.0))
    assert values["probe_plasticity"] == values["probe_plasticity_fresh"] > 0
    assert values["probe_plasticity_lost"] == 0


def test_a_network_whose_units_have_died_is_less_plastic_than_the_fresh_one():
    one = learner(lr=0.0)

    class Dies(GradientLearner):
        def _learn(self, x, y):
            with torch.no_grad():
                self.model.body[1].bias.fill_(-100.0)
            return super()._learn(x, y)

    values = measured(Dies(one.model, one.optimizer))
    assert values["probe_plasticity"] < 0.5 * values["probe_plasticity_fresh"]
    assert values["probe_plasticity_lost"] > 0.05


def test_the_fitted_share_is_that_of_training_a_copy_by_hand():
    one = learner(lr=0.0)
    metric = ProbePlasticity(every=60, samples=30, steps=20, targets=1, seed=5)
    for step in driftline.play(blobs(), one, batch_size=10, metrics=[metric]):
        if step.position == 60:
            break
    x, _ = blobs().read(30, 60)
    network = copy.deepcopy(one.model)
    draw = torch.Generator().manual_seed(driftline.stream.seeds.derive_seed(5, "probe task", 60, 0))
    targets = torch.randn(30, 3, generator=draw)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x), targets).backward()
        optimizer.step()
    share = 1 - torch.nn.functional.mse_loss(network(x), targets) / targets.square().mean()
    assert metric.value()["probe_plasticity"] == pytest.approx(share.item(), rel=1e-4)


def test_bad_settings_and_other_states_are_refused():
    for given in ({"steps": 0}, {"targets": 0}, {"lr": 0.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(given))}=0"):
            ProbePlasticity(**given)
    with pytest.raises(CheckpointError, match="this metric measures"):
        ProbePlasticity().load_state_dict({**Sharpness().state_dict(), "fresh": {}})
