from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models, native
from driftline.errors import InputError
from driftline.learners import GradientLearner, ReservoirReplay, in_lockstep
from driftline.learners.losses import absolute_error, squared_error
from driftline.learners.normalizer import InputNormalizer
from driftline.learners.optimizers import UPGD, PerturbedSGD, ShrinkAndPerturb
from driftline.learners.penalties import L2, L2Init
from driftline.learners.renewers import ContinualBackprop
from driftline.learners.renewers.utility import UTILITIES
from driftline.native import lockstep
from driftline.native.lockstep import plan, why_not

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler here, or switched off")

INPUTS, STEPS = 11, 300
SGD = functools.partial(torch.optim.SGD, lr=0.02)
LEAKY = functools.partial(nn.LeakyReLU, 0.2)


def learner(
    seed=0,
    optimizer=SGD,
    penalties=(),
    renewers=(),
    loss=squared_error,
    hidden=(7, 5),
    activation=nn.Tanh,
    outputs=1,
    **settings,
):
    """A multilayer perceptron with parts, each made by a function."""
    model = models.mlp(INPUTS, classes=outputs, hidden=hidden, activation=activation, seed=seed)
    return GradientLearner(
        model,
        optimizer(model.parameters()),
        loss,
        penalties=[make(model) for make in penalties],
        renewers=[make(model) for make in renewers],
        **settings,
    )


def samples(count=STEPS, replicas=None, outputs=1, labels=False):
    generator = torch.Generator().manual_seed(1)
    lead = (count,) if replicas is None else (replicas, count)
    x = torch.randn(*lead, INPUTS, generator=generator)
    if labels:
        return x, torch.randint(outputs, lead, generator=generator)
    return x, torch.randn(*lead, outputs, generator=generator)


def eager(trained, x, y, batch_size=1):
    axis = 0 if trained.replicas is None else 1
    parts = zip(x.split(batch_size, axis), y.split(batch_size, axis))
    return torch.cat([trained.observe(*part) for part in parts], axis)


def compiled(trained, x, y, batch_size=1):
    steps = plan(trained)
    assert steps is not None, why_not(trained)
    trained.position += x.shape[0 if trained.replicas is None else 1]  # which the learner itself counts
    return steps(x, y, batch_size)


def tensors_of(state):
    """All tensors in a state, and all other values."""
    if isinstance(state, torch.Tensor):
        return [state], []
    if isinstance(state, dict):
        items = [value for _, value in sorted(state.items(), key=lambda item: str(item[0]))]
    elif isinstance(state, list | tuple):
        items = list(state)
    else:
        return [], [state]
    parts = [tensors_of(item) for item in items]
    return [t for ts, _ in parts for t in ts], [v for _, vs in parts for v in vs]


def assert_same_state(one, other):
    (tensors, values), (others, other_values) = tensors_of(one.state_dict()), tensors_of(other.state_dict())
    assert values == other_values
    assert len(tensors) == len(others)
    for a, b in zip(tensors, others):
        # Some hundred steps, each with float32 rounding in sums of other order.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def assert_agree(make, x, y, batch_size=1):
    """Train two learners, one without and one with compiled steps in between."""
    one, other = make(), make()
    expected = eager(one, x, y, batch_size)
    axis = 0 if one.replicas is None else 1
    first, second = 100 * batch_size, 110 * batch_size
    parts = zip(*(t.tensor_split((first, second), axis) for t in (x, y)))
    ways = (compiled, eager, compiled)
    found = torch.cat([way(other, *part, batch_size) for way, part in zip(ways, parts)], axis)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert_same_state(other, one)
    return one


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, LEAKY])
@pytest.mark.parametrize("hidden", [(), (5,), (7, 5), (19, 8, 3)])
def test_networks_of_any_depth_agree_with_pytorch(activation, hidden):
    make = functools.partial(learner, hidden=hidden, activation=activation)
    assert_agree(make, *samples())


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("outputs", [1, 4])
def test_batches_and_outputs_of_any_number_agree(batch_size, outputs):
    make = functools.partial(learner, outputs=outputs, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    assert_agree(make, *samples(150 * batch_size - 1, outputs=outputs), batch_size)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_cross_entropy_agrees(batch_size):
    make = functools.partial(learner, outputs=6, loss=F.cross_entropy)
    assert_agree(make, *samples(150 * batch_size, outputs=6, labels=True), batch_size)


def test_layers_without_bias_and_other_nesting_agree():
    def make():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 6, bias=False), nn.Sequential(nn.ReLU(), nn.Identity()))
        model = nn.Sequential(body, nn.Linear(6, 2, bias=False), nn.Sigmoid())
        return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.5), squared_error)

    assert_agree(make, *samples(outputs=2))


OPTIMIZERS = {
    "sgd with decay": functools.partial(torch.optim.SGD, lr=0.02, weight_decay=0.1),
    "perturbed sgd": functools.partial(PerturbedSGD, lr=0.02, sigma=0.1, decay=0.1, seed=3),
    "s&p scaled": functools.partial(ShrinkAndPerturb, lr=0.02, sigma=0.1, decay=0.1, seed=3),
    "s&p unscaled": functools.partial(ShrinkAndPerturb, lr=0.02, sigma=1e-3, decay=0.1, form="unscaled", seed=3),
    "s&p fresh": functools.partial(ShrinkAndPerturb, lr=0.02, sigma=1e-2, decay=1e-3, form="fresh", seed=3),
    "s&p boundary": functools.partial(ShrinkAndPerturb, lr=0.02, sigma=1e-2, decay=0.5, form="boundary", seed=3),
    "upgd": functools.partial(UPGD, lr=0.05, sigma=0.1, beta_utility=0.9, weight_decay=0.1, seed=3),
    "upgd without noise": functools.partial(UPGD, lr=0.05, sigma=0.0, beta_utility=0.99),
    "upgd without trace": functools.partial(UPGD, lr=0.05, sigma=0.1, beta_utility=0.0, seed=3),
    "upgd released": functools.partial(UPGD, lr=0.05, sigma=0.1, beta_utility=0.9, variant="released", seed=3),
    "upgd readme": functools.partial(UPGD, lr=0.05, sigma=0.1, beta_utility=0.9, variant="readme", seed=3),
    "upgd not protecting": functools.partial(UPGD, lr=0.05, sigma=0.1, protecting=False, seed=3),
    "upgd local": functools.partial(UPGD, lr=0.05, sigma=0.1, beta_utility=0.9, scaling="local", seed=3),
    "upgd local released": functools.partial(
        UPGD, lr=0.05, sigma=0.1, scaling="local", variant="released", protecting=False, seed=3
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_optimizers_agree(optimizer, batch_size):
    assert_agree(functools.partial(learner, optimizer=optimizer), *samples(200 * batch_size), batch_size)


@pytest.mark.parametrize("kind", [functools.partial(ShrinkAndPerturb, form="fresh"), UPGD])
def test_parameter_groups_keep_their_own_settings(kind):
    def optimizer(params):
        params = list(params)
        groups = [
            {"params": params[3:], "lr": 0.05, "sigma": 0.01},
            {"params": params[:1], "lr": 0.01, "sigma": 0.0},
            {"params": params[1:3]},
        ]
        return kind(groups, lr=0.02, sigma=0.02, seed=5)

    assert_agree(functools.partial(learner, optimizer=optimizer), *samples())


@pytest.mark.parametrize("optimizer", [SGD, functools.partial(UPGD, lr=0.05, sigma=0.1, seed=3)])
@pytest.mark.parametrize(
    "penalties",
    [
        [lambda m: L2(0.05)],
        [lambda m: L2Init(m, 0.1)],
        [lambda m: L2(0.05), lambda m: L2Init(m, 0.1), lambda m: L2(0.01)],
        [lambda m: L2Init(m, 0.0), lambda m: L2Init(m, 0.1)],
    ],
    ids=["L2", "L2Init", "three", "one is off"],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_penalties_agree(optimizer, penalties, batch_size):
    make = functools.partial(learner, optimizer=optimizer, penalties=penalties)
    assert_agree(make, *samples(200 * batch_size), batch_size)


def renewals(trained):
    """How many units have been renewed and not again since."""
    return sum(int((traces.birth > 0).sum()) for traces in trained.renewers[0].traces)


def backprop(**settings):
    return lambda model: ContinualBackprop(model, **{"replacement_rate": 0.01, "maturity": 20, **settings})


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("running", [True, False])
def test_continual_backprop_agrees_in_every_utility(utility, running):
    make = functools.partial(learner, renewers=[backprop(utility=utility, running=running, seed=4)])
    assert renewals(assert_agree(make, *samples())) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": False},
        {"accumulate": False, "replacement_rate": 0.3},
        {"accumulate": False, "replacement_rate": 0.3, "variant": "released"},
        {"variant": "released"},
        {"compensate": False},
        {"initialization": "xavier"},
        {"maturity": 0, "replacement_rate": 0.2},
        {"decay": 0.5},
        {"replacement_rate": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", [SGD, functools.partial(UPGD, lr=0.05, sigma=0.01, seed=3)])
def test_continual_backprop_agrees_in_every_setting(settings, optimizer):
    make = functools.partial(learner, optimizer=optimizer, renewers=[backprop(**settings)])
    trained = assert_agree(make, *samples())
    assert (renewals(trained) > 2) == (settings.get("replacement_rate") != 0.0)


@pytest.mark.parametrize("utility", ["contribution", "feature_by_input"])
def test_continual_backprop_agrees_with_batches_and_without_biases(utility):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(INPUTS, 6, bias=False), nn.Tanh(), nn.Linear(6, 2, bias=False))
        renewer = ContinualBackprop(model, 0.01, 20, utility=utility)
        return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), squared_error, renewers=[renewer])

    assert renewals(assert_agree(make, *samples(900, outputs=2), batch_size=3)) > 1


def replicated(count=4, make=learner, **varied):
    """One learner of replicas with seeds and settings of their own."""

    def one(seed):
        return make(seed=seed, **{name: setting(seed) for name, setting in varied.items()})

    return in_lockstep([one(seed) for seed in range(count)])


VARIED = {
    "sgd": {"optimizer": lambda s: functools.partial(torch.optim.SGD, lr=0.02, weight_decay=0.1)},
    "lr of sgd": {"optimizer": lambda s: functools.partial(torch.optim.SGD, lr=0.02 + 0.01 * s, weight_decay=0.1)},
    "s&p": {
        "optimizer": lambda s: functools.partial(ShrinkAndPerturb, lr=0.02, sigma=0.1 * s, decay=0.1 * s, seed=s),
    },
    "upgd": {
        "optimizer": lambda s: functools.partial(
            UPGD, lr=0.05 + 0.01 * s, sigma=0.1 * s, beta_utility=0.9 + 0.01 * s, weight_decay=0.1 * s, seed=s
        ),
        "penalties": lambda s: [lambda m: L2Init(m, 0.1 * s)],
    },
    "continual backprop": {
        "optimizer": lambda s: SGD,
        "renewers": lambda s: [backprop(seed=s)],
    },
    "rates of continual backprop": {
        "optimizer": lambda s: functools.partial(UPGD, lr=0.05, sigma=0.1, seed=s),
        "renewers": lambda s: [
            backprop(
                seed=s,
                replacement_rate=0.01 * s,
                maturity=10 + 7 * s,
                decay=0.9 + 0.01 * s,
                utility="adaptable_contribution",
            )
        ],
    },
}


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_replicas_agree_each_with_its_own_settings(varied, batch_size):
    make = functools.partial(replicated, **varied)
    assert_agree(make, *samples(200 * batch_size, replicas=4), batch_size)


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_a_replica_is_the_same_run_alone(varied):
    x, y = samples(replicas=3)
    together = compiled(replicated(3, **varied), x, y)
    for seed in range(3):
        alone = learner(seed=seed, **{name: setting(seed) for name, setting in varied.items()})
        # The same arithmetic; only learning rates that differ are applied in another order.
        torch.testing.assert_close(together[seed], compiled(alone, x[seed], y[seed]), rtol=1e-5, atol=1e-6)


def test_replicas_may_share_their_inputs_and_targets():
    x, y = samples()
    make = functools.partial(replicated, renewers=lambda s: [backprop(seed=s)])
    shared = compiled(make(), x.expand(4, -1, -1), y.expand(4, -1, -1))
    assert torch.equal(shared, compiled(make(), x.repeat(4, 1, 1), y.repeat(4, 1, 1)))


def test_threads_share_the_replicas(monkeypatch):
    monkeypatch.setattr(lockstep, "WORTH_A_THREAD", 1)
    x, y = samples(replicas=5)
    make = functools.partial(replicated, 5, renewers=lambda s: [backprop(seed=s)])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            trained = make()
            found.append((compiled(trained, x, y), trained.state_dict()))
    finally:
        torch.set_num_threads(before)
    for scores, state in found[1:]:
        assert torch.equal(scores, found[0][0])
        for a, b in zip(tensors_of(state)[0], tensors_of(found[0][1])[0]):
            assert torch.equal(a, b)


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_how_steps_are_cut_into_calls_changes_nothing(varied):
    x, y = samples(replicas=4)
    one, other = replicated(**varied), replicated(**varied)
    whole = compiled(one, x, y)
    parts = zip(x.tensor_split((1, 2, 150, 151), 1), y.tensor_split((1, 2, 150, 151), 1))
    steps = plan(other)
    assert torch.equal(torch.cat([steps(*part, 1) for part in parts], 1), whole)
    for a, b in zip(tensors_of(one.state_dict())[0], tensors_of(other.state_dict())[0]):
        assert torch.equal(a, b)


@pytest.mark.parametrize("varied", VARIED.values(), ids=VARIED)
def test_a_checkpoint_continues_exactly(varied):
    x, y = samples(replicas=4)
    one = replicated(**varied)
    compiled(one, x[:, :150], y[:, :150])
    saved = copy.deepcopy(one.state_dict())
    expected = compiled(one, x[:, 150:], y[:, 150:])
    other = replicated(**varied)
    steps = plan(other)
    steps(x[:, :20], y[:, :20], 1)
    other.load_state_dict(saved)
    assert torch.equal(steps(x[:, 150:], y[:, 150:], 1), expected)


def test_the_learner_uses_compiled_steps_where_it_is_asked_to():
    x, y = samples(replicas=4)
    one, other = (replicated(make=functools.partial(learner, compile=c)) for c in (True, False))
    found, expected = (trained.observe_each(x, y, batch_size=2) for trained in (one, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert not torch.equal(found, expected)
    assert one.position == other.position == STEPS


@pytest.mark.parametrize("batch_size", [1, 4])
def test_inputs_may_be_normalised_as_they_come(batch_size):
    x, y = samples(replicas=4)
    one, other = (
        in_lockstep([learner(s, normalizer=InputNormalizer(), compile=compiles) for s in range(4)])
        for compiles in (True, False)
    )
    found, expected = (trained.observe_each(3 * x + 1, y, batch_size) for trained in (one, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert_same_state(one, other)


def test_a_learning_rate_changed_in_between_is_followed():
    x, y = samples()
    one, other = learner(), learner()
    steps = plan(one)
    for lr, part, targets in zip((0.02, 0.0, 0.1), x.split(100), y.split(100)):
        for trained in (one, other):
            trained.optimizer.param_groups[0]["lr"] = lr
        found, expected = steps(part, targets, 1), eager(other, part, targets)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_numbers_that_are_not_finite_stay_in_their_replica():
    x, y = samples(replicas=3)
    whole = compiled(replicated(3), x, y)
    y[1, 50] = float("inf")
    broken = compiled(replicated(3), x, y)
    assert torch.equal(broken[[0, 2]], whole[[0, 2]])
    assert broken[1, 60:].isnan().all()


class Own(ReservoirReplay):
    """A memory with rules of its own."""

    def sample(self, count):
        return super().sample(1)


def frozen(trained):
    trained.model.head.bias.requires_grad_(False)
    return trained


def hooked(trained):
    trained.model.head.register_forward_hook(lambda *_: None)
    return trained


def tied():
    model = nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.ReLU(), nn.Linear(INPUTS, INPUTS))
    model[2].weight = model[0].weight
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)


def other_model():
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.GELU(), nn.Linear(4, 1))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)


def part_of_the_parameters():
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.ReLU(), nn.Linear(4, 1))
    return GradientLearner(model, torch.optim.SGD(model[2].parameters(), lr=0.1), squared_error)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: learner(replay=Own(10)), "the memory Own has no compiled form"),
        (lambda: learner(replay_ratio=0.5), "replay_ratio=FixedReplayRatio has no compiled form"),
        (lambda: learner(replay_ratio=0), "replay_ratio=0 has no compiled form"),
        (
            lambda: learner(replay=ReservoirReplay(10), normalizer=InputNormalizer()),
            "replay behind an input normaliser",
        ),
        (lambda: in_lockstep([learner(replay=ReservoirReplay(10))]), "replay in lockstep has no compiled form"),
        (lambda: learner(loss=absolute_error), "the loss absolute_error"),
        (lambda: learner(loss=nn.MSELoss()), "the loss MSELoss"),
        (lambda: learner(optimizer=functools.partial(SGD, momentum=0.9)), "SGD with momentum=0.9"),
        (
            lambda: learner(optimizer=functools.partial(torch.optim.SGD, lr=0.1, maximize=True)),
            "SGD with maximize=True",
        ),
        (lambda: learner(optimizer=torch.optim.Adam), "Adam has no compiled form"),
        (lambda: learner(optimizer=functools.partial(UPGD, moments=True)), "UPGD with moments=True"),
        (lambda: learner(optimizer=functools.partial(UPGD, noise="pool")), "UPGD with noise='pool'"),
        (lambda: learner(penalties=[lambda m: lambda model: model.head.weight.sum()]), "the penalty <lambda>"),
        (lambda: learner(penalties=[lambda m: L2Init(m, 0.1)] * 2), "two penalties L2Init"),
        (lambda: learner(renewers=[lambda m: L2Init(m, 0.1, decoupled=True)]), "the renewers L2Init"),
        (lambda: learner(renewers=[backprop(), backprop()]), "the renewers ContinualBackprop, ContinualBackprop"),
        (lambda: frozen(learner()), "a parameter of head is frozen"),
        (lambda: hooked(learner()), "a hook on head wants to see every step"),
        (tied, "layers share weights"),
        (other_model, "1 is a GELU"),
        (part_of_the_parameters, "SGD does not hold exactly the model's parameters"),
    ],
)
def test_the_first_part_without_a_compiled_form_is_named(make, reason):
    trained = make()
    assert why_not(trained).startswith(reason)
    assert plan(trained) is None


def test_double_precision_is_named():
    model = nn.Linear(3, 2).double()
    trained = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "float64" in why_not(trained)


def test_without_kernels_there_are_no_compiled_steps(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    assert plan(learner()) is None
    assert why_not(learner()).startswith("the kernels in C cannot be used here")


def test_a_learner_that_can_be_compiled_has_nothing_against_it():
    assert why_not(learner(renewers=[backprop()])) == ""


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5, INPUTS + 1), torch.zeros(5, dtype=torch.long), "takes 11 inputs"),
        (torch.zeros(5, INPUTS).double(), torch.zeros(5, dtype=torch.long), "float64"),
        (torch.zeros(5, INPUTS), torch.zeros(4, dtype=torch.long), "there are 5 samples"),
        (torch.zeros(5, INPUTS), torch.tensor([0, 1, 2, 3, 3]), r"labels must lie in 0 .. 2, got 0 .. 3"),
        (torch.zeros(5, INPUTS), torch.tensor([0, 1, 2, -1, 2]), r"labels must lie in 0 .. 2, got -1 .. 2"),
        (torch.zeros(5, INPUTS), torch.zeros(5), "whole numbers"),
    ],
)
def test_a_batch_that_cannot_be_used_is_named_before_anything_changes(x, y, message):
    trained = learner(outputs=3, loss=F.cross_entropy)
    before = copy.deepcopy(trained.state_dict())
    steps = plan(trained)
    with pytest.raises(InputError, match=message):
        steps(x, y, 1)
    for a, b in zip(tensors_of(before)[0], tensors_of(trained.state_dict())[0]):
        assert torch.equal(a, b)


def test_targets_of_another_shape_are_named():
    with pytest.raises(InputError, match="squared_error: 2 scores"):
        plan(learner(outputs=2))(torch.zeros(5, INPUTS), torch.zeros(5), 1)


def test_targets_need_no_dimension_for_a_single_output():
    x, y = samples()
    assert torch.equal(compiled(learner(), x, y), compiled(learner(), x, y.squeeze(-1)))


def test_images_are_flattened_where_the_model_does():
    model = models.mlp((1, 4, 5), classes=3, hidden=(6,))
    trained = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    twin = copy.deepcopy(trained)
    x, y = torch.rand(50, 1, 4, 5), torch.randint(3, (50,))
    torch.testing.assert_close(compiled(trained, x, y), eager(twin, x, y), rtol=1e-4, atol=2e-5)


def test_no_samples_change_nothing():
    trained = learner(renewers=[backprop()])
    before = copy.deepcopy(trained.state_dict())
    assert compiled(trained, torch.zeros(0, INPUTS), torch.zeros(0, 1)).shape == (0, 1)
    assert tensors_of(before)[1] == tensors_of(trained.state_dict())[1]


def test_a_state_loaded_after_compiled_steps_is_gone_on_from():
    make = functools.partial(
        learner,
        penalties=[lambda model: L2Init(model, 0.01)],
        renewers=[lambda model: ContinualBackprop(model, replacement_rate=0.05, maturity=5)],
        compile=True,
    )
    x, y = samples(200)
    first, second = make(seed=1), make(seed=2)
    first.observe_each(x[:100], y[:100], 1)
    second.observe_each(x[50:90], y[50:90], 1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.observe_each(x[100:], y[100:], 1), second.observe_each(x[100:], y[100:], 1))
