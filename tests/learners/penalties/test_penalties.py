"""What holds for every penalty."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import GradientLearner
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.penalties import (
    L2,
    MAS,
    L2Init,
    OnlineEWC,
    Orthogonal,
    RWalk,
    SpectralRegularization,
    SynapticIntelligence,
    WassersteinRegularization,
)
from driftline.testing import check_learner
from tests.learners.penalties.networks import BUILDERS, batches, mlp, stacked_batches, train
from tests.learners.states import kept, same


def maker(kind, default, **settings):
    """A function that makes a penalty for a model; seeds go to those that draw."""

    def make(model, strength=default, *, seed=0, replicas=None):
        needs = ({"seed": seed} if kind is SpectralRegularization else {}) | settings
        parts = (strength,) if kind is L2 else (model, strength)
        return kind(*parts, **needs, replicas=replicas)

    return make


COUPLED = {
    "l2": maker(L2, 0.03),
    "l2_init": maker(L2Init, 0.03),
    "spectral": maker(SpectralRegularization, 0.03),
    "spectral_variations": maker(
        SpectralRegularization, 0.03, exponent=3.0, bias="norm", anchor="initial", iterations=2
    ),
    "orthogonal": maker(Orthogonal, 0.03),
    "orthogonal_rows": maker(Orthogonal, 0.03, side="rows", scale=2.0),
    "orthogonal_both": maker(Orthogonal, 0.03, side="both"),
    "wasserstein": maker(WassersteinRegularization, 0.03, refresh=3),
    "wasserstein_mean": maker(WassersteinRegularization, 0.03, refresh=1, reduction="mean"),
}
DECOUPLED = {
    "l2_decoupled": maker(L2, 0.3, decoupled=True),
    "l2_init_decoupled": maker(L2Init, 0.3, decoupled=True),
    "l2_init_released": maker(L2Init, 0.3, variant="released"),
    "orthogonal_decoupled": maker(Orthogonal, 0.03, side="columns", decoupled=True),
    "wasserstein_decoupled": maker(WassersteinRegularization, 0.3, refresh=2, decoupled=True),
    "wasserstein_mean_decoupled": maker(WassersteinRegularization, 0.3, reduction="mean", decoupled=True),
}
CONSOLIDATING = {
    "ewc": maker(OnlineEWC, 0.3),
    "ewc_boundary": maker(OnlineEWC, 0.3, form="boundary", every=2),
    "si": maker(SynapticIntelligence, 0.1),
    "si_released": maker(SynapticIntelligence, 0.1, variant="released", epsilon=0.1),
    "si_boundary": maker(SynapticIntelligence, 0.1, form="boundary", every=2, epsilon=0.1),
    "mas": maker(MAS, 0.3),
    "mas_released": maker(MAS, 0.3, variant="released"),
    "mas_boundary": maker(MAS, 0.3, form="boundary", every=2),
    "rwalk": maker(RWalk, 0.1),
    "rwalk_released": maker(RWalk, 0.1, variant="released"),
    "rwalk_boundary": maker(RWalk, 0.1, form="boundary", every=2),
}
"""Those that look at the loss's gradients: they add to them, and have no value to call before."""
ALL = {**COUPLED, **DECOUPLED, **CONSOLIDATING}
WITH_STATE = {name: make for name, make in ALL.items() if not name.startswith(("l2_d", "orthogonal")) and name != "l2"}
COUPLED_WITH_STATE = {name: make for name, make in COUPLED.items() if name in WITH_STATE}
coupled = pytest.mark.parametrize("make", COUPLED.values(), ids=COUPLED)
decoupled = pytest.mark.parametrize("make", DECOUPLED.values(), ids=DECOUPLED)
everyone = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
with_state = pytest.mark.parametrize("make", WITH_STATE.values(), ids=WITH_STATE)
coupled_with_state = pytest.mark.parametrize("make", COUPLED_WITH_STATE.values(), ids=COUPLED_WITH_STATE)
networks = pytest.mark.parametrize(("build", "shape"), BUILDERS.values(), ids=BUILDERS)


def gradients_of(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def moved(model, seed=7, scale=0.1):
    """The model, its parameters moved a little from where they were."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=rng, dtype=torch.float64) * scale)
    return model


@coupled
@networks
def test_the_gradient_added_is_that_of_the_penalty(make, build, shape):
    by_autograd, by_hand = build(), build()
    penalties = make(by_autograd), make(by_hand)
    moved(by_autograd), moved(by_hand)
    for _ in range(3):  # what a penalty remembers moves on in the same way
        for model in (by_autograd, by_hand):
            model.zero_grad()
            F.cross_entropy(model(batches(shape, 1, 3)[0][0]), batches(shape, 1, 3)[0][1]).backward()
        before = gradients_of(by_hand)
        penalties[0](by_autograd).backward()
        penalties[1].add_gradients(by_hand)
        for name, grad in gradients_of(by_autograd).items():
            # float64, a handful of operations on numbers around one
            torch.testing.assert_close(gradients_of(by_hand)[name], grad, rtol=1e-10, atol=1e-10)
        assert any(not torch.equal(before[name], p.grad) for name, p in by_hand.named_parameters())


@coupled
def test_a_missing_gradient_is_made(make):
    model, reference = mlp(), mlp()
    penalties = make(model), make(reference)
    moved(model), moved(reference)
    penalties[0].add_gradients(model)
    penalties[1](reference).backward()
    for p, q in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)


@coupled
def test_strength_zero_touches_no_gradient(make):
    model = mlp()
    penalty = make(model, 0.0)
    penalty.add_gradients(moved(model))
    assert all(p.grad is None for p in model.parameters())
    next(model.parameters()).grad = torch.full((5, 6), -0.0, dtype=torch.float64)
    penalty.add_gradients(model)
    assert torch.signbit(next(model.parameters()).grad).all()
    assert penalty(model).item() == 0
    penalty(model).backward()
    assert [p.grad is None for p in model.parameters()] == [False, True, True, True, True]


@everyone
@pytest.mark.parametrize("autograd", [False, True])
def test_a_run_with_strength_zero_is_one_without_bit_for_bit(make, autograd):
    model, bare = mlp(), mlp()
    data = batches((6,), 5, seed=1)
    assert same(train(model, make(model, 0.0), data, autograd=autograd), train(bare, None, data))


@everyone
@networks
def test_replicas_in_lockstep_are_the_runs_alone(make, build, shape):
    strengths, seeds = [0.01, 0.2, 0.05], [5, 6, 7]
    models = [build(seed) for seed in range(3)]
    data = [batches(shape, 6, seed=10 + i) for i in range(3)]
    together = stack_models([copy.deepcopy(model) for model in models])
    lockstep = train(together, make(together, strengths, seed=seeds, replicas=3), stacked_batches(data))
    for i, model in enumerate(models):
        alone = train(model, make(model, strengths[i], seed=seeds[i]), data[i])
        for step_together, step_alone in zip(lockstep, alone):
            for name, p in step_alone.items():
                # batched products round differently; float64
                torch.testing.assert_close(step_together[name][i], p, rtol=1e-9, atol=1e-11)


@coupled
def test_one_strength_serves_all_replicas_and_the_value_is_their_sum(make):
    models = [mlp(seed) for seed in range(3)]
    together = stack_models([copy.deepcopy(model) for model in models])
    penalties = [make(model, seed=seed) for seed, model in enumerate(models)]
    penalty = make(together, seed=[0, 1, 2], replicas=3)
    for seed, model in enumerate(models):
        moved(model, seed)
    for p, parts in zip(together.parameters(), zip(*(model.parameters() for model in models))):
        p.data.copy_(torch.stack([part.detach() for part in parts]))
    alone = sum(one(model) for one, model in zip(penalties, models))
    torch.testing.assert_close(penalty(together), alone, rtol=1e-10, atol=1e-12)


@everyone
def test_a_state_round_trip_continues_bit_for_bit(make):
    data = batches((6,), 10, seed=2)
    model = mlp()
    penalty = make(model)
    train(model, penalty, data[:4])
    later = copy.deepcopy(model)
    again = make(moved(later, seed=3))
    later.load_state_dict(model.state_dict())
    if hasattr(penalty, "state_dict"):
        file = io.BytesIO()
        torch.save(penalty.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
    assert same(train(model, penalty, data[4:]), train(later, again, data[4:]))


@with_state
def test_a_loaded_state_is_a_copy(make):
    model, later = mlp(), mlp(1)
    train(model, penalty := make(model), batches((6,), 2, seed=2))
    state, again = penalty.state_dict(), make(later)
    again.load_state_dict(state)
    before = kept(again)
    for part in state.values():
        for tensor in part.values() if isinstance(part, dict) else ():
            tensor.fill_(0)
    assert same(before, kept(again))
    assert not same(state, before)


@with_state
@pytest.mark.parametrize("broken", ["other model", "other shape", "empty"])
def test_a_state_of_another_model_is_refused_and_changes_nothing(make, broken):
    model = mlp()
    penalty = make(model)
    train(model, penalty, batches((6,), 2, seed=2))
    if broken == "empty":
        state = {}
    else:
        layers = (nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) if broken == "other model" else (nn.Linear(6, 9),)
        other = nn.Sequential(*layers).double()
        theirs = make(other)
        y = torch.zeros(4, dtype=torch.long)
        train(other, theirs, [(torch.zeros(4, 6, dtype=torch.float64), y)])
        state = theirs.state_dict()
    before = kept(penalty)
    with pytest.raises(CheckpointError, match="the state has"):
        penalty.load_state_dict(state)
    assert same(before, kept(penalty))


@coupled_with_state
def test_looking_at_the_value_without_gradients_changes_no_state(make):
    model = mlp()
    train(model, penalty := make(model), batches((6,), 3, seed=2))
    before = kept(penalty)
    with torch.no_grad():
        first, second = penalty(model), penalty(model)
    assert first == second
    assert same(before, kept(penalty))


@coupled
def test_a_copy_of_the_model_is_penalised_for_itself_and_changes_no_state(make):
    model = mlp()
    penalty = make(model)
    train(model, penalty, batches((6,), 1, seed=2))
    state = kept(penalty) if hasattr(penalty, "state_dict") else None
    other = moved(copy.deepcopy(model), scale=1.0)
    other.zero_grad()
    with torch.no_grad():
        here = penalty(model)
    assert penalty(other) != here
    penalty.add_gradients(other)
    assert all(p.grad is not None for p in penalty.named_parameters(other).values())
    assert state is None or same(state, kept(penalty))


@coupled
def test_frozen_parameters_are_left_out_also_when_frozen_later(make):
    model = mlp()
    model[0].weight.requires_grad_(False)
    penalty = make(model)
    acts_on = set(penalty.named_parameters(model))
    model[4].weight.requires_grad_(False)
    penalty.add_gradients(moved(model))
    found = {name for name, p in model.named_parameters() if p.grad is not None}
    assert found == {"0.bias", "2.weight", "4.bias"} & acts_on
    model[0].weight.data.mul_(3), model[4].weight.data.mul_(3)
    reference = penalty(model).item()
    model[4].weight.data.mul_(3)
    assert penalty(model).item() == pytest.approx(reference, rel=0.05)  # spectral: its other matrices converge on


@with_state
def test_a_model_without_trainable_parameters_is_refused(make):
    with pytest.raises(ConfigError, match="the model has no trainable parameter"):
        make(mlp().requires_grad_(False))


def test_l2_refuses_a_model_without_trainable_parameters_when_it_sees_it():
    model = mlp().requires_grad_(False)
    for use in (L2(0.1), L2(0.1).add_gradients):
        with pytest.raises(ConfigError, match="L2: the model has no trainable parameter"):
            use(model)


@coupled
def test_tied_weights_count_once(make):
    layer = nn.Linear(4, 4)
    tied = nn.Sequential(layer, nn.ReLU(), layer).double()
    single = nn.Sequential(copy.deepcopy(layer)).double()
    penalties = make(tied), make(single)
    moved(tied), moved(single)
    torch.testing.assert_close(penalties[0](tied), penalties[1](single))
    penalties[0].add_gradients(tied)
    penalties[1].add_gradients(single)
    torch.testing.assert_close(tied[0].weight.grad, single[0].weight.grad)


@coupled
def test_a_sparse_gradient_is_refused_before_anything_changes(make):
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "words": nn.Embedding(5, 3, sparse=True)})
    model["words"](torch.tensor([1, 2])).sum().backward()
    penalty = make(model)
    state = kept(penalty) if hasattr(penalty, "state_dict") else None
    with pytest.raises(InputError, match="the gradient of 'words.weight' is sparse"):
        penalty.add_gradients(model)
    assert model["a"].weight.grad is None
    assert state is None or same(state, kept(penalty))


@coupled
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stays_so_where_it_is(make, value):
    model, reference = mlp(), mlp()
    penalties = make(model), make(reference)
    for net in (moved(model), moved(reference)):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
    model[0].weight.grad[1, 2] = value
    penalties[0].add_gradients(model)
    penalties[1].add_gradients(reference)
    hurt = ~torch.isfinite(model[0].weight.grad)
    assert hurt.nonzero().tolist() == [[1, 2]]
    assert torch.equal(model[0].weight.grad[~hurt], reference[0].weight.grad[~hurt])
    assert torch.equal(model[4].bias.grad, reference[4].bias.grad)


@everyone
def test_one_replica_that_diverged_leaves_the_others_alone(make):
    together = stack_models([mlp(0), mlp(1)])
    penalty = make(together, seed=[0, 1], replicas=2)
    with torch.no_grad():
        for p in together.parameters():
            p[0] = torch.nan
    last = train(together, penalty, stacked_batches([batches((6,), 3, seed=1)] * 2))[-1]
    assert all(torch.isfinite(p[1]).all() and torch.isnan(p[0]).all() for p in last.values())


@everyone
@pytest.mark.parametrize("strength", [-0.1, float("nan"), [0.1, 0.2]])
def test_a_bad_strength_is_refused(make, strength):
    with pytest.raises(ConfigError, match="strength"):
        make(mlp(), strength)


@everyone
def test_a_strength_for_each_replica_means_each(make):
    together = stack_models([mlp(0), mlp(1)])
    with pytest.raises(ConfigError, match="strength has 3 values, but there are 2 replicas"):
        make(together, [0.1, 0.2, 0.3], seed=[0, 1], replicas=2)


@with_state
def test_a_model_with_other_replicas_is_refused(make):
    with pytest.raises(ConfigError, match="replicas=None, but the model has replicas=2"):
        make(stack_models([mlp(0), mlp(1)]))


@coupled
def test_a_coupled_penalty_is_no_renewer(make):
    model = mlp()
    penalty = make(model)
    if hasattr(penalty, "renew"):
        with pytest.raises(ConfigError, match=r"not decoupled: it belongs in penalties=\[...\]"):
            penalty.renew(model, torch.optim.SGD(model.parameters(), lr=0.1))


@decoupled
def test_a_decoupled_penalty_is_no_term_of_the_loss(make):
    model = mlp()
    penalty = make(model)
    for use in (penalty, penalty.add_gradients):
        with pytest.raises(ConfigError, match=r"decoupled: it belongs in renewers=\[...\]"):
            use(model)


@decoupled
def test_a_decoupled_penalty_moves_only_what_the_optimizer_trains(make):
    model = mlp()
    penalty = make(model)
    before = kept(moved(model))
    penalty.renew(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    changed = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert changed == {"0.weight", "0.bias"} & set(penalty.named_parameters(model))


@decoupled
def test_a_decoupled_penalty_needs_a_learning_rate(make):
    class Rateless(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    model = mlp()
    before = kept(model)
    with pytest.raises(ConfigError, match="Rateless has no learning rate"):
        make(model).renew(model, Rateless(model.parameters()))
    assert same(before, kept(model))


@everyone
def test_a_learner_gives_it_its_place(make):
    data = batches((6,), 5, seed=1)
    model, reference = mlp(), mlp()
    penalty = make(model)
    place = {"renewers" if getattr(penalty, "after_step", False) else "penalties": [penalty]}
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), **place)
    for x, y in data:
        learner.learn(x, y)
    last = train(reference, make(reference), data)[-1]
    assert same({name: p.detach() for name, p in model.named_parameters()}, last)


@pytest.mark.slow
def test_the_laws_of_learners_hold_with_all_of_them_and_a_normaliser():
    def learner(seed=0):
        model = models.mlp(4, classes=3, hidden=(8,), seed=seed)
        return GradientLearner(
            model,
            torch.optim.SGD(model.parameters(), lr=0.05),
            penalties=[make(model, 1e-3, seed=seed) for make in COUPLED.values()],
            renewers=[make(model, 1e-3) for make in DECOUPLED.values()],
            normalizer=InputNormalizer(),
        )

    check_learner(learner, steps=200)
