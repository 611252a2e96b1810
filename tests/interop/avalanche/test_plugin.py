from __future__ import annotations

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import EWC, Naive

from driftline.errors import ConfigError
from driftline.interop.avalanche import as_plugin, to_avalanche
from driftline.learners import GradientLearner, StreamingLDA
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.optimizers import UPGD, Adam, PerturbedSGD, ShrinkAndPerturb, WeightClipping
from driftline.learners.penalties import CenterLoss, L2Init, OnlineEWC, SpectralRegularization
from driftline.learners.renewers import ContinualBackprop, ReDo
from tests.interop.avalanche.digits import network, settings, stream

SGD = lambda model: torch.optim.SGD(model.parameters(), lr=0.1)  # noqa: E731


def here(made, penalties=(), renewers=(), optimizer=SGD):
    """Weights after playing a stream with GradientLearner."""
    model = network()
    parts = {"penalties": [p(model) for p in penalties], "renewers": [r(model) for r in renewers]}
    learner = GradientLearner(model, optimizer(model), **parts)
    for batch in made.batches(10):
        learner.learn(batch.x, batch.y)
    return weights(model)


def there(made, parts, optimizer=SGD, strategy=Naive, **more):
    """The same in Avalanche, with the parts as plugins."""
    model = network()
    plugins = [as_plugin(part(model)) for part in parts] + more.pop("plugins", [])
    trained = strategy(**settings(model, optimizer=optimizer(model), plugins=plugins, **more))
    for experience in to_avalanche(made, test=False).train_stream:
        trained.train(experience, shuffle=False)
    return weights(model)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


PENALTIES = {
    "of weights": lambda model: L2Init(model, strength=0.1),
    "by autograd": lambda model: lambda model: 1e-3 * sum(p.square().sum() for p in model.parameters()),
    "spectral": lambda model: SpectralRegularization(model, strength=0.01),
    "of gradients": lambda model: OnlineEWC(model, strength=10.0),
    "of labels": lambda model: CenterLoss(model, strength=0.1),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_does_there_what_it_does_here(name):
    part, made = PENALTIES[name], stream(150)
    found = there(made, [part])
    torch.testing.assert_close(found, here(made, penalties=[part]))
    assert not torch.allclose(found, there(made, []))


RENEWERS = {
    "continual backprop": lambda model: ContinualBackprop(model, replacement_rate=0.05, maturity=2, seed=1),
    "redo": lambda model: ReDo(model, tau=0.5, every=3, seed=1),
    "decoupled penalty": lambda model: L2Init(model, strength=0.1, decoupled=True),
}


@pytest.mark.parametrize("name", RENEWERS)
def test_a_renewer_does_there_what_it_does_here(name):
    part, made = RENEWERS[name], stream(150)
    found = there(made, [part])
    torch.testing.assert_close(found, here(made, renewers=[part]))
    assert not torch.allclose(found, there(made, []))


OPTIMIZERS = {
    "UPGD": lambda model: UPGD(model.parameters(), lr=0.1, sigma=0.01, seed=1),
    "Adam": lambda model: Adam(model.parameters(), lr=0.01),
    "shrink and perturb": lambda model: ShrinkAndPerturb(model.parameters(), lr=0.1, sigma=0.01, decay=0.1),
    "perturbed": lambda model: PerturbedSGD(model.parameters(), lr=0.1, sigma=0.1),
    "wrapped": lambda model: WeightClipping(torch.optim.SGD(model.parameters(), lr=0.1), kappa=1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_does_there_what_it_does_here_as_a_plugin_and_alone(name):
    make, made = OPTIMIZERS[name], stream(150)
    expected = here(made, optimizer=make)
    torch.testing.assert_close(there(made, [make]), expected)
    torch.testing.assert_close(there(made, [], optimizer=make), expected)


def test_a_penalty_with_boundaries_consolidates_at_the_end_of_each_experience():
    made, kept = stream(150), []
    there(made, [lambda model: kept.append(OnlineEWC(model, strength=1.0, form="boundary")) or kept[0]])
    there(made, [lambda model: kept.append(ShrinkAndPerturb(model.parameters(), form="boundary")) or kept[1]])
    assert kept[1].boundaries == len(made.segments)
    name = next(name for name, _ in network().named_parameters())
    assert kept[0].gathered == 0 and kept[0].importance(name).abs().sum() > 0


def test_parts_combine_with_plugins_and_strategies_of_avalanche():
    made = stream(150)
    parts = [PENALTIES["of weights"], RENEWERS["continual backprop"], OPTIMIZERS["UPGD"]]
    torch.manual_seed(0)
    found = there(made, parts, strategy=EWC, ewc_lambda=1.0, plugins=[ReplayPlugin(mem_size=20)])
    assert torch.isfinite(found).all()


def test_what_is_no_part_is_refused():
    with pytest.raises(ConfigError, match="StreamingLDA is no penalty"):
        as_plugin(StreamingLDA())
    with pytest.raises(ConfigError, match="Linear is no penalty"):
        as_plugin(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="L2Init has replicas"):
        as_plugin(L2Init(stack_models([network(), network()]), 1.0, replicas=2))
    model, other = network(), network()
    trained = Naive(**settings(model, plugins=[as_plugin(SGD(other))]))
    with pytest.raises(ConfigError, match="SGD holds none of the strategy's model's parameters"):
        trained.train(next(iter(to_avalanche(stream(100)).train_stream)))
