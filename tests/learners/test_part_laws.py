"""The laws of learners, run over every optimizer, penalty and renewer; a new one without an entry here fails."""

import inspect
import warnings

import pytest
import torch
from torch import nn

from driftline import models, scenarios
from driftline.data import load
from driftline.learners import GradientLearner, ReservoirReplay, in_lockstep, optimizers, penalties, renewers
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.optimizers import (
    TAG,
    UPGD,
    Adam,
    HesScale,
    ObGD,
    Perturbed,
    PerturbedSGD,
    ShrinkAndPerturb,
    WeightClipping,
)
from driftline.learners.penalties import (
    L2,
    MAS,
    CenterLoss,
    EffectiveRank,
    L2Init,
    OnlineEWC,
    Orthogonal,
    RWalk,
    SpectralRegularization,
    SynapticIntelligence,
    WassersteinRegularization,
)
from driftline.learners.renewers import (
    ContinualBackprop,
    ContinualBackpropLayer,
    LayerReset,
    NormalizeAndProject,
    PlasticityInjection,
    ReDo,
    ReGraMa,
    SelfNormalizedReset,
    SparseTraining,
    find_unit_groups,
)
from driftline.testing import check_learner, check_strength_zero


def mlp(seed):
    return models.mlp(4, 3, (12, 8), seed=seed)


def convnet(seed):
    return models.convnet((1, 8, 8), 10, width=4, seed=seed)


def normalised(seed):
    return models.mlp(4, 3, (12, 8), seed=seed, normalization="layer", activation="crelu")


def normalised_convnet(seed):
    return models.convnet((1, 8, 8), 10, width=4, seed=seed, normalization="layer", activation="hard-ash")


def with_layers(seed, rate=0.05):
    """A network that renews its units inside the backward pass."""
    base = mlp(seed)
    first, act1, second, act2 = base.body[1:5]
    layers = (
        ContinualBackpropLayer(first, second, replacement_rate=rate, maturity=5, seed=seed),
        ContinualBackpropLayer(second, base.head, replacement_rate=rate, maturity=5, seed=seed),
    )
    return nn.Sequential(nn.Flatten(), first, act1, layers[0], second, act2, layers[1], base.head)


def with_injected_head(seed):
    network = mlp(seed)
    PlasticityInjection(network, at=1)
    return network


def with_layers_at_rate_zero(seed):
    return with_layers(seed, rate=0.0)


def without_layers(seed):
    """The same network, with nothing where the layers that renew are."""
    network = with_layers(seed)
    network[3], network[6] = nn.Identity(), nn.Identity()
    return network


def sgd(model, seed):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def momentum(model, seed):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def adam(model, seed):
    return Adam(model.parameters(), lr=1e-3, weight_decay=0.01, decoupled=True)


def upgd(**options):
    def make(model, seed):
        return UPGD(model.parameters(), lr=0.05, sigma=0.01, beta_utility=0.9, seed=seed, **options)

    return make


def upgd_features(model, seed):
    groups = find_unit_groups(model)
    return UPGD(model.parameters(), lr=0.05, sigma=0.01, beta_utility=0.9, scope="feature", features=groups, seed=seed)


def upgd_second(model, seed):
    return UPGD(
        model.parameters(), lr=0.05, sigma=0.01, beta_utility=0.9, order=2, curvature=HesScale(model), seed=seed
    )


def renewal(**options):
    return lambda model, seed: ContinualBackprop(model, replacement_rate=0.02, maturity=5, seed=seed, **options)


def redo(**options):
    return lambda model, seed: ReDo(model, **{"tau": 0.5, "every": 4, "samples": 25, "seed": seed, **options})


def regrama(**options):
    return lambda model, seed: ReGraMa(model, **{"tau": 0.5, "every": 4, "steps": 3, "seed": seed, **options})


def snr(**options):
    given = {"eta": 0.3, "every": 20, "threshold": 15, "lowest": 10, "highest": 500, **options}
    return lambda model, seed: SelfNormalizedReset(model, seed=seed, **given)


def layer_reset(**options):
    return lambda model, seed: LayerReset(model, **{"every": 4, "seed": seed, **options})


def sparse(**options):
    return lambda model, seed: SparseTraining(model, **{"density": 0.5, "every": 3, "seed": seed, **options})


def injection(**options):
    return lambda model, seed: PlasticityInjection(model, **{"at": 9, "seed": seed, **options})


def learner(optimizer=sgd, penalty=None, renewer=None, model=mlp, replay=False, normalizer=None, more=(), **options):
    """A factory of learners made of these parts; ``more`` are further penalties."""

    def make(seed=0):
        network = model(seed)
        return GradientLearner(
            network,
            optimizer(network, seed),
            penalties=[make(network, seed) for make in ([penalty] if penalty else []) + list(more)],
            renewers=[renewer(network, seed)] if renewer else [],
            replay=ReservoirReplay(60, seed=seed) if replay else None,
            normalizer=normalizer() if normalizer else None,
            **options,
        )

    return make


def digits():
    return scenarios.iid(load("digits"))


CONV = {"stream": digits, "steps": 60}

LEARNERS = {
    "UPGD": (learner(upgd()), {}),
    "UPGD: local, only noise gated": (learner(upgd(scaling="local", protecting=False, weight_decay=0.01)), {}),
    "UPGD: moments": (learner(upgd(moments=True)), {}),
    "UPGD: noise from a pool": (learner(upgd(noise="pool")), {"steps": 600}),
    "UPGD: released": (learner(upgd(variant="released")), {}),
    "UPGD: fused": (learner(upgd(fused=True)), {}),
    "UPGD: features": (learner(upgd_features), {}),
    "UPGD: second order": (learner(upgd_second), {}),
    "UPGD: conv": (learner(upgd(), model=convnet), CONV),
    "HesScale": (learner(upgd_second, model=convnet), CONV),
    "PerturbedSGD": (learner(lambda m, s: PerturbedSGD(m.parameters(), lr=0.05, sigma=0.1, seed=s)), {}),
    "ShrinkAndPerturb": (
        learner(lambda m, s: ShrinkAndPerturb(m.parameters(), lr=0.05, sigma=0.1, decay=0.01, seed=s)),
        {},
    ),
    "ShrinkAndPerturb: fresh": (
        learner(lambda m, s: ShrinkAndPerturb(m.parameters(), lr=0.05, sigma=0.01, decay=0.01, form="fresh", seed=s)),
        {},
    ),
    "Perturbed": (learner(lambda m, s: Perturbed(adam(m, s), sigma=0.1, seed=s)), {}),
    "ObGD": (learner(lambda m, s: ObGD(m.parameters())), {}),
    "ObGD: traces, adaptive": (learner(lambda m, s: ObGD(m.parameters(), lamda=0.5, beta2=0.99)), {}),
    "WeightClipping": (learner(lambda m, s: WeightClipping(sgd(m, s), kappa=1.0)), {}),
    "Adam": (learner(adam), {}),
    "TAG": (learner(lambda m, s: TAG(m.parameters(), lr=1e-3)), {}),
    "TAG: Adam, conv": (learner(lambda m, s: TAG(m.parameters(), lr=1e-3, base="adam"), model=convnet), CONV),
    "L2": (learner(penalty=lambda m, s: L2(1e-2)), {}),
    "L2: decoupled": (learner(renewer=lambda m, s: L2(1e-2, decoupled=True)), {}),
    "L2Init": (learner(penalty=lambda m, s: L2Init(m, 1e-2)), {}),
    "L2Init: decoupled": (learner(renewer=lambda m, s: L2Init(m, 1e-2, decoupled=True)), {}),
    "SpectralRegularization": (learner(penalty=lambda m, s: SpectralRegularization(m, 1e-2, seed=s)), {}),
    "SpectralRegularization: conv": (
        learner(penalty=lambda m, s: SpectralRegularization(m, 1e-2, seed=s), model=convnet),
        CONV,
    ),
    "WassersteinRegularization": (learner(penalty=lambda m, s: WassersteinRegularization(m, 1e-2, refresh=5)), {}),
    "OnlineEWC": (learner(penalty=lambda m, s: OnlineEWC(m, 0.1)), {}),
    "OnlineEWC: boundary, conv": (
        learner(penalty=lambda m, s: OnlineEWC(m, 0.1, form="boundary", every=4), model=convnet),
        CONV,
    ),
    "SynapticIntelligence": (learner(penalty=lambda m, s: SynapticIntelligence(m, 0.01)), {}),
    "SynapticIntelligence: boundary": (
        learner(penalty=lambda m, s: SynapticIntelligence(m, 0.01, form="boundary", every=4)),
        {},
    ),
    "MAS": (learner(penalty=lambda m, s: MAS(m, 0.1)), {}),
    "MAS: released": (learner(penalty=lambda m, s: MAS(m, 0.1, variant="released")), {}),
    "RWalk": (learner(penalty=lambda m, s: RWalk(m, 0.01)), {}),
    "RWalk: boundary": (learner(penalty=lambda m, s: RWalk(m, 0.01, form="boundary", every=4)), {}),
    "Orthogonal": (learner(penalty=lambda m, s: Orthogonal(m, 1e-2)), {}),
    "Orthogonal: decoupled, conv": (
        learner(renewer=lambda m, s: Orthogonal(m, 1e-2, side="both", decoupled=True), model=convnet),
        CONV,
    ),
    "EffectiveRank": (learner(penalty=lambda m, s: EffectiveRank(m, 1e-2)), {}),
    "EffectiveRank: recent samples": (learner(penalty=lambda m, s: EffectiveRank(m, 1e-2, samples=24)), {}),
    "CenterLoss": (learner(penalty=lambda m, s: CenterLoss(m, 0.1)), {}),
    "CenterLoss: replay, conv": (
        learner(penalty=lambda m, s: CenterLoss(m, 0.1), model=convnet, replay=True),
        {**CONV, "steps": 200},
    ),
    "NormalizeAndProject": (learner(renewer=lambda m, s: NormalizeAndProject(m), model=normalised), {}),
    "NormalizeAndProject: now and then, conv": (
        learner(adam, renewer=lambda m, s: NormalizeAndProject(m, every=3), model=normalised_convnet),
        CONV,
    ),
    "ContinualBackprop": (learner(renewer=renewal()), {}),
    "ContinualBackprop: Adam": (learner(adam, renewer=renewal(utility="adaptable_contribution")), {}),
    "ContinualBackprop: momentum, chance": (learner(momentum, renewer=renewal(accumulate=False)), {}),
    "ContinualBackprop: random": (learner(renewer=renewal(utility="random")), {}),
    "ContinualBackprop: conv": (learner(renewer=renewal(), model=convnet), CONV),
    "ContinualBackpropLayer": (learner(model=with_layers), {}),
    "ReDo": (learner(renewer=redo()), {}),
    "ReDo: Adam": (learner(adam, renewer=redo()), {}),
    "ReDo: conv, released": (learner(momentum, renewer=redo(variant="released"), model=convnet), CONV),
    "ReGraMa": (learner(renewer=regrama()), {}),
    "ReGraMa: Adam": (learner(adam, renewer=regrama()), {}),
    "ReGraMa: conv": (learner(momentum, renewer=regrama(steps=1), model=convnet), CONV),
    "SelfNormalizedReset": (learner(renewer=snr()), {}),
    "SelfNormalizedReset: Adam": (learner(adam, renewer=snr()), {}),
    "SelfNormalizedReset: conv": (learner(momentum, renewer=snr(), model=convnet), CONV),
    "LayerReset": (learner(renewer=layer_reset()), {}),
    "LayerReset: all, Adam": (learner(adam, renewer=layer_reset(layers="all")), {}),
    "LayerReset: conv": (learner(momentum, renewer=layer_reset(layers=2), model=convnet), CONV),
    "SparseTraining": (learner(renewer=sparse()), {}),
    "SparseTraining: unfired, Adam": (learner(adam, renewer=sparse(growth="unfired", tasks="isolated")), {}),
    "SparseTraining: gradient, TAG": (
        learner(lambda m, s: TAG(m.parameters(), lr=1e-3), renewer=sparse(growth="gradient", allocation="uniform")),
        {},
    ),
    "SparseTraining: momentum, conv": (learner(momentum, renewer=sparse(growth="momentum"), model=convnet), CONV),
    "PlasticityInjection": (learner(renewer=injection()), {}),
    "PlasticityInjection: Adam": (learner(adam, renewer=injection()), {}),
    "PlasticityInjection: conv": (learner(momentum, renewer=injection(), model=convnet), CONV),
    "everything": (
        learner(
            adam,
            penalty=lambda m, s: SpectralRegularization(m, 1e-2, seed=s),
            renewer=renewal(),
            replay=True,
            normalizer=InputNormalizer,
        ),
        {},
    ),
    "all that hold": (
        learner(
            penalty=lambda m, s: OnlineEWC(m, 0.1),
            more=(
                lambda m, s: SynapticIntelligence(m, 0.01),
                lambda m, s: MAS(m, 0.01, form="boundary", every=5),
                lambda m, s: RWalk(m, 0.01),
                lambda m, s: Orthogonal(m, 1e-3),
                lambda m, s: EffectiveRank(m, 1e-3, samples=16),
                lambda m, s: CenterLoss(m, 1e-2),
            ),
            renewer=lambda m, s: NormalizeAndProject(m, every=2),
            model=normalised,
            replay=True,
        ),
        {},
    ),
    "everything else": (
        learner(
            upgd(fused=True),
            penalty=lambda m, s: OnlineEWC(m, 1e-2),
            renewer=renewal(utility="zero_contribution"),
            replay=True,
            normalizer=lambda: InputNormalizer("welford"),
            replay_ratio=2,
        ),
        {},
    ),
}

NEVER = 10**9
"""A step that no test takes."""

ZERO = {
    "PerturbedSGD": (learner(lambda m, s: PerturbedSGD(m.parameters(), lr=0.05, sigma=0.0, seed=s)), learner()),
    "ShrinkAndPerturb": (
        learner(lambda m, s: ShrinkAndPerturb(m.parameters(), lr=0.05, sigma=0.0, decay=0.0, seed=s)),
        learner(),
    ),
    "Perturbed": (learner(lambda m, s: Perturbed(sgd(m, s), sigma=0.0, seed=s)), learner()),
    "WeightClipping": (learner(lambda m, s: WeightClipping(sgd(m, s), kappa=1e9)), learner()),
    "TAG": (
        learner(lambda m, s: TAG(m.parameters(), lr=1e-3, beta2=0.9)),
        learner(lambda m, s: torch.optim.RMSprop(m.parameters(), lr=1e-3, alpha=0.9, foreach=False)),
    ),
    "L2": (learner(penalty=lambda m, s: L2(0.0)), learner()),
    "L2: decoupled": (learner(renewer=lambda m, s: L2(0.0, decoupled=True)), learner()),
    "L2Init": (learner(adam, penalty=lambda m, s: L2Init(m, 0.0)), learner(adam)),
    "L2Init: decoupled": (learner(renewer=lambda m, s: L2Init(m, 0.0, decoupled=True)), learner()),
    "SpectralRegularization": (learner(penalty=lambda m, s: SpectralRegularization(m, 0.0)), learner()),
    "WassersteinRegularization": (learner(penalty=lambda m, s: WassersteinRegularization(m, 0.0)), learner()),
    "Orthogonal": (learner(penalty=lambda m, s: Orthogonal(m, 0.0)), learner()),
    "Orthogonal: decoupled": (learner(renewer=lambda m, s: Orthogonal(m, 0.0, decoupled=True)), learner()),
    "EffectiveRank": (learner(penalty=lambda m, s: EffectiveRank(m, 0.0)), learner()),
    "CenterLoss": (learner(penalty=lambda m, s: CenterLoss(m, 0.0)), learner()),
    "NormalizeAndProject": (
        learner(renewer=lambda m, s: NormalizeAndProject(m, every=10**9), model=normalised),
        learner(model=normalised),
    ),
    "OnlineEWC": (learner(penalty=lambda m, s: OnlineEWC(m, 0.0)), learner()),
    "SynapticIntelligence": (learner(penalty=lambda m, s: SynapticIntelligence(m, 0.0)), learner()),
    "MAS": (learner(penalty=lambda m, s: MAS(m, 0.0)), learner()),
    "RWalk": (learner(penalty=lambda m, s: RWalk(m, 0.0)), learner()),
    "ContinualBackprop": (
        learner(adam, renewer=lambda m, s: ContinualBackprop(m, replacement_rate=0.0)),
        learner(adam),
    ),
    "ReDo": (learner(adam, renewer=redo(every=NEVER)), learner(adam)),
    "ReGraMa": (learner(adam, renewer=regrama(every=NEVER)), learner(adam)),
    "SelfNormalizedReset": (
        learner(adam, renewer=snr(threshold=NEVER, lowest=NEVER, highest=NEVER)),
        learner(adam),
    ),
    "LayerReset": (learner(adam, renewer=layer_reset(every=NEVER)), learner(adam)),
    "SparseTraining": (learner(adam, renewer=sparse(density=1.0)), learner(adam)),
    "PlasticityInjection": (learner(adam, renewer=injection(at=NEVER)), learner(adam, model=with_injected_head)),
    "ContinualBackpropLayer": (learner(model=with_layers_at_rate_zero), learner(model=without_layers)),
}
WITHOUT_STRENGTH = {"UPGD", "HesScale", "ObGD", "Adam"}
"""Step rules of their own: there is nothing that they leave when they are switched off."""


def built(options):
    return {key: value() if key == "stream" else value for key, value in options.items()}


@pytest.mark.parametrize("entry", LEARNERS)
def test_learners_with_every_part_keep_the_laws(entry):
    make, options = LEARNERS[entry]
    check_learner(make, **{"steps": 200, **built(options)})


@pytest.mark.parametrize("entry", ZERO)
def test_a_part_at_strength_zero_is_bit_identical_to_not_having_it(entry):
    check_strength_zero(*ZERO[entry])


@pytest.mark.parametrize("entry", [entry for entry in LEARNERS if entry != "ContinualBackpropLayer"])
def test_learners_with_every_part_are_stepped_in_lockstep(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(in_lockstep([LEARNERS[entry][0](seed) for seed in range(2)]), GradientLearner)


def public():
    found = {name for module in (optimizers, penalties, renewers) for name in module.__all__}
    kinds = {
        name for module in (optimizers, penalties, renewers) for name, c in vars(module).items() if inspect.isclass(c)
    }
    return (found & kinds) - {"Penalty", "UnitGroup"}


def test_every_part_is_tried():
    assert public() <= {entry.partition(":")[0] for entry in LEARNERS}
    assert public() == {entry.partition(":")[0] for entry in ZERO} | WITHOUT_STRENGTH
