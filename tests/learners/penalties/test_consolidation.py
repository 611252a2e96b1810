"""EWC, SI, MAS and RWalk: recorded runs, the papers' forms by hand, and what they refuse."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.errors import ConfigError, InputError
from driftline.learners import GradientLearner
from driftline.learners.penalties import MAS, OnlineEWC, RWalk, SynapticIntelligence
from tests.learners.optimizers.replaying import Recorded
from tests.learners.penalties.networks import batches, mlp, train
from tests.learners.states import kept, same

KINDS = [OnlineEWC, SynapticIntelligence, MAS, RWalk]
every_kind = pytest.mark.parametrize("kind", KINDS)

RECORDS = {
    "online_ewc_relu_b1": OnlineEWC,
    "online_ewc_tanh_b8": OnlineEWC,
    "online_ewc_tanh_b8_f32": OnlineEWC,
    "online_mas_tanh_b8": MAS,
    "online_si_tanh_b8": SynapticIntelligence,
    "online_rwalk_tanh_b8": RWalk,
}
SETTINGS = {
    "lamda": "strength",
    "beta_weight": "beta_weight",
    "beta_fisher": "beta_importance",
    "beta_importance": "beta_importance",
    "eps": "epsilon",
}
TRACES = {
    "weight_trace": ("weight", 1),
    "fisher_trace": ("fisher", 1),
    "delta_trace": ("way", -1),  # the record's ways lead back
    "delta_grad_trace": ("gain", 1),
    "prev_weights": ("previous", 1),
}


@pytest.mark.parametrize("name", RECORDS)
def test_training_is_the_recorded_run(name):
    recorded = Recorded(name)
    settings = {SETTINGS[k]: v for k, v in recorded.settings.items() if k in SETTINGS}
    kind = RECORDS[name]
    released = {} if kind is OnlineEWC else {"variant": "released"}
    penalty = kind(recorded.layers, **settings, **released)
    plain = torch.optim.SGD(recorded.layers.parameters(), lr=recorded.settings["lr"])

    class Penalised:
        zero_grad = plain.zero_grad

        def step(self):
            penalty.add_gradients(recorded.layers)
            plain.step()

    names = {id(p): n for n, p in recorded.layers.named_parameters()}
    own = {"fisher": "size"} if kind in (OnlineEWC, MAS) else {}

    def finder(trace):
        kept, sign = TRACES[trace]
        return lambda p: sign * penalty.state_dict()[own.get(kept, kept)][names[id(p)]]

    states = {t: finder(t) for t in TRACES if any(key.startswith(f"state/{t}/") for key in recorded.arrays)}
    assert len(states) >= 2
    recorded.train(Penalised(), states)


def quadratic(model):
    """A loss whose gradient is easy: half the squared distance of all weights to 1."""
    return sum((p - 1).square().sum() for p in model.parameters()) / 2


def stepped(kind, steps, boundary_after, **options):
    """Train one weight on its own loss with a consolidation in between; return it, its way and its gradients."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    penalty = kind(model, 0.5, form="boundary", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    way, grads = [3.0], []
    for step in range(steps):
        if step == boundary_after:
            penalty.consolidate()
        optimizer.zero_grad()
        model(torch.ones(1, 1, dtype=torch.float64))
        quadratic(model).backward()
        grads.append(model.weight.grad.item())
        penalty.add_gradients(model)
        optimizer.step()
        way.append(model.weight.item())
    return model, penalty, way, grads


def test_ewc_holds_the_weights_of_the_boundary_by_the_mean_squared_gradient():
    _, penalty, way, grads = stepped(OnlineEWC, 5, 3, gamma=0.5)
    fisher = sum(g**2 for g in grads[:3]) / 3
    assert penalty.importance("weight").item() == pytest.approx(fisher, rel=1e-12)
    expected = way[3] - 0.1 * grads[3]  # the pull is 0 in the first step after the boundary
    assert way[4] == pytest.approx(expected, rel=1e-12)
    assert way[5] == pytest.approx(way[4] - 0.1 * (grads[4] + 0.5 * fisher * (way[4] - way[3])), rel=1e-12)
    penalty.consolidate()
    assert penalty.importance("weight").item() == pytest.approx(
        0.5 * fisher + (grads[3] ** 2 + grads[4] ** 2) / 2, rel=1e-12
    )


def test_si_divides_what_the_way_took_off_the_loss_by_its_square():
    _, penalty, way, grads = stepped(SynapticIntelligence, 4, 3, epsilon=0.1)
    took = -sum(g * (after - before) for g, before, after in zip(grads, way, way[1:4]))
    assert penalty.importance("weight").item() == pytest.approx(took / ((way[3] - way[0]) ** 2 + 0.1), rel=1e-12)


def test_mas_takes_the_gradient_of_the_outputs_square():
    _, penalty, way, _ = stepped(MAS, 4, 3)
    assert penalty.importance("weight").item() == pytest.approx(sum(2 * w for w in way[:3]) / 3, rel=1e-12)


def test_rwalk_adds_fisher_information_and_half_the_scores_of_the_first_task():
    _, penalty, way, grads = stepped(RWalk, 4, 3, epsilon=0.1, beta_importance=0.5)
    trace, scores = 0.0, 0.0
    for i in range(3):
        trace = 0.5 * trace + 0.5 * grads[i] ** 2
        delta, fisher = way[i + 1] - way[i], trace / (1 - 0.5 ** (i + 1))
        scores += -grads[i] * delta / (0.5 * fisher * delta**2 + 0.1)
    assert penalty.state_dict()["score"]["weight"].item() == pytest.approx(scores / 2, rel=1e-12)
    # Ω was taken at the boundary, when F had seen three gradients.
    assert penalty.importance("weight").item() == pytest.approx(trace / (1 - 0.5**3) + scores / 2, rel=1e-12)


@every_kind
@pytest.mark.parametrize("form", ["online", "boundary"])
def test_the_gradient_added_is_that_of_the_term_as_it_stands_then(kind, form):
    model = mlp()
    penalty = kind(model, 0.3, form=form, every=None)
    train(model, penalty, batches((6,), 4, seed=1))
    if form == "boundary":
        penalty.consolidate()
        train(model, penalty, batches((6,), 3, seed=2))
    x, y = batches((6,), 1, seed=3)[0]
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    of_the_loss = [p.grad.clone() for p in model.parameters()]
    penalty.add_gradients(model)
    added = [p.grad - g for p, g in zip(model.parameters(), of_the_loss)]
    expected = torch.autograd.grad(penalty(model), list(model.parameters()))
    assert any(g.abs().max() > 1e-6 for g in expected)
    for found, wanted in zip(added, expected):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)  # float64


@every_kind
def test_every_so_many_steps_is_consolidating_by_hand(kind):
    data = batches((6,), 7, seed=1)
    ours, by_hand = mlp(), mlp()
    alone = kind(ours, 0.3, form="boundary", every=3)
    called = kind(by_hand, 0.3, form="boundary")
    trail = train(ours, alone, data)
    expected = train(by_hand, called, data[:3])
    called.consolidate()
    expected += train(by_hand, called, data[3:6])
    called.consolidate()
    expected += train(by_hand, called, data[6:])
    assert same(trail, expected)
    assert same(kept(alone), kept(called))


@every_kind
def test_consolidating_twice_at_one_place_is_doing_it_once(kind):
    model = mlp()
    penalty = kind(model, 0.3, form="boundary")
    train(model, penalty, batches((6,), 3, seed=1))
    penalty.consolidate()
    once = kept(penalty)
    penalty.consolidate()
    assert same(once, kept(penalty))


@every_kind
def test_held_weights_move_less_than_free_ones(kind):
    """Two tasks of opposite labels: with a strong pull the network stays nearer to where the first one ended."""

    def moved(strength):
        model = mlp()
        penalty = kind(model, strength, form="boundary")
        first = batches((6,), 60, seed=1)
        train(model, penalty, first)
        penalty.consolidate()
        before = [p.detach().clone() for p in model.parameters()]
        train(model, penalty, [(x, 2 - y) for x, y in first])
        return sum((p - q).square().sum().item() for p, q in zip(model.parameters(), before))

    # Times the step size 0.05 and the largest importance, some 100 for SI and RWalk, this must stay below 2.
    assert moved(10.0 if kind in (OnlineEWC, MAS) else 0.3) < 0.7 * moved(0.0)


@every_kind
def test_importances_of_ones_own_hold_the_weights(kind):
    model = mlp()
    penalty = kind(model, 2.0, form="boundary")
    given = {name: torch.full_like(p, 3.0) for name, p in model.named_parameters()}
    penalty.consolidate(given)
    given["0.weight"].zero_()  # they were copied
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    count = sum(p.numel() for p in model.parameters())
    assert penalty(model).item() == pytest.approx(0.5 * 2.0 * 3.0 * 0.25 * count)


@every_kind
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: given["0.bias"].fill_(float("nan")), "importance of '0.bias' has NaN, infinite or negative"),
        (lambda given: given["2.weight"].fill_(-1.0), "importance of '2.weight' has NaN, infinite or negative"),
        (lambda given: given.update({"0.bias": torch.ones(3)}), r"shape \(3,\), expected \(5,\)"),
        (lambda given: given.pop("4.bias"), "importance is of"),
    ],
    ids=["nan", "negative", "shape", "names"],
)
def test_bad_importances_are_refused_and_change_nothing(kind, spoil, message):
    model = mlp()
    penalty = kind(model, 2.0, form="boundary")
    train(model, penalty, batches((6,), 2, seed=1))
    given = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    spoil(given)
    before = kept(penalty)
    with pytest.raises(InputError, match=message):
        penalty.consolidate(given)
    assert same(before, kept(penalty))


@every_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "task"}, "unknown form 'task'"),
        ({"beta_weight": 1.0}, "beta_weight=1.0: must be below 1"),
        ({"beta_importance": -0.1}, "beta_importance"),
        ({"every": 5}, "every=5: .* for form='boundary' only"),
        ({"form": "boundary", "every": 0}, "every=0"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(mlp(), 0.1, **settings)


@pytest.mark.parametrize("kind", [SynapticIntelligence, MAS, RWalk])
def test_the_released_code_knows_no_boundaries(kind):
    with pytest.raises(ConfigError, match="variant='released' is of code without boundaries"):
        kind(mlp(), 0.1, form="boundary", variant="released")
    with pytest.raises(ConfigError, match="unknown variant 'realeased'"):
        kind(mlp(), 0.1, variant="realeased")


@every_kind
def test_the_online_form_has_no_boundary_to_call(kind):
    with pytest.raises(ConfigError, match="form='online' has no boundaries"):
        kind(mlp(), 0.1).consolidate()


@pytest.mark.parametrize("kind", [SynapticIntelligence, RWalk])
def test_an_epsilon_of_zero_is_refused(kind):
    with pytest.raises(ConfigError, match="epsilon"):
        kind(mlp(), 0.1, epsilon=0.0)


def test_mas_says_so_when_no_forward_pass_was_seen():
    model = mlp()
    penalty = MAS(model, 0.1)
    with torch.no_grad():
        model(torch.zeros(1, 6, dtype=torch.float64))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(ConfigError, match="no forward pass with gradients since the last step"):
        penalty.add_gradients(model)


def test_mas_leaves_the_losss_gradients_as_they_are():
    watched, bare = mlp(), mlp()
    MAS(watched, 0.1)
    x, y = batches((6,), 1, seed=1)[0]
    for model in (watched, bare):
        F.cross_entropy(model(x), y).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(watched.parameters(), bare.parameters()))


def test_a_learner_copied_whole_goes_on_as_the_original():
    model = mlp()
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), penalties=[MAS(model, 0.3)])
    data = batches((6,), 6, seed=1)
    for x, y in data[:3]:
        learner.learn(x, y)
    other = copy.deepcopy(learner)
    for x, y in data[3:]:
        learner.learn(x, y)
        other.learn(x, y)
    assert same(learner.state_dict()["model"], other.state_dict()["model"])
