"""Penalties on features: effective rank and centre loss, and the tap that finds the features."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline import models
from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import GradientLearner
from driftline.learners.penalties import CenterLoss, EffectiveRank
from driftline.learners.penalties.effective_rank import differentiable_rank
from driftline.metrics.plasticity import effective_rank, singular_values
from tests.learners.penalties.networks import batches, mlp
from tests.learners.states import kept, same

KINDS = [EffectiveRank, CenterLoss]
every_kind = pytest.mark.parametrize("kind", KINDS)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def term(penalty, model, x, y):
    model(x)
    if hasattr(penalty, "see"):
        penalty.see(y)
    return penalty(model)


def features_of(model, x):
    return model[:-1](x)


def test_the_rank_is_the_metrics():
    x = random(3, 9, 6)
    torch.testing.assert_close(differentiable_rank(x), effective_rank(singular_values(x)), rtol=1e-9, atol=1e-9)


def test_the_ranks_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(differentiable_rank, random(5, 4).requires_grad_())


def test_the_rank_of_dead_or_diverged_features_is_one_without_a_gradient():
    for fill in (0.0, float("nan")):
        x = torch.full((5, 4), fill, requires_grad=True)
        rank = differentiable_rank(x)
        rank.backward()
        assert rank.item() == 1.0
        assert not x.grad.isnan().any() and x.grad.abs().sum() == 0


def test_directions_of_rounding_errors_do_not_count():
    x = random(6, 1) @ random(1, 4, seed=1)
    noisy = (x.float() + 1e-7 * random(6, 4, seed=2).float()).requires_grad_()
    rank = differentiable_rank(noisy)
    rank.backward()
    assert rank.item() == pytest.approx(1.0, abs=1e-6)
    assert noisy.grad.abs().max() < 1e-3


def test_effective_rank_is_taken_of_what_the_last_linear_layer_receives():
    model, x = mlp(), random(7, 6)
    rank = differentiable_rank(features_of(model, x)).item()
    assert term(EffectiveRank(model, 0.5), model, x, None).item() == pytest.approx(0.5 * (4 - rank), rel=1e-9)


def test_another_layers_inputs_are_taken_by_name():
    model, x = mlp(), random(7, 6)
    rank = differentiable_rank(model[:2](x)).item()
    assert term(EffectiveRank(model, 0.5, layer="2"), model, x, None).item() == pytest.approx(
        0.5 * (5 - rank), rel=1e-9
    )


def test_recent_samples_complete_the_matrix():
    model, x = mlp(), random(9, 6)
    penalty = EffectiveRank(model, 1.0, samples=5)
    for part in x.split(3):
        value = term(penalty, model, part, None)
    assert value.item() == pytest.approx(4 - differentiable_rank(features_of(model, x[4:])).item(), rel=1e-9)
    assert penalty.state_dict()["recent"].shape == (5, 4)


def test_minimising_it_raises_the_effective_rank():
    def trained(strength):
        model = models.mlp(6, 3, (16,), seed=0).double()
        learner = GradientLearner(
            model,
            torch.optim.SGD(model.parameters(), lr=0.05),
            penalties=[EffectiveRank(model, strength)],
        )
        for x, y in batches((6,), 200, seed=1):
            learner.learn(x.repeat(4, 1) + 0.1 * random(16, 6, seed=len(y)), y.repeat(4))
        return effective_rank(singular_values(model.features(random(64, 6, seed=9)).detach())).item()

    assert trained(0.1) > trained(0.0) + 0.5


def test_centre_loss_and_its_centres_by_hand():
    model, x, y = mlp(), random(5, 6), torch.tensor([0, 2, 2, 0, 2])
    penalty = CenterLoss(model, 0.4, rate=0.5)
    features = features_of(model, x).detach()
    first = term(penalty, model, x, y).item()
    assert first == pytest.approx(0.2 * features.square().sum(1).mean().item(), rel=1e-12)
    centres = torch.zeros(3, 4, dtype=torch.float64)
    for label in (0, 2):
        own = features[y == label]
        centres[label] = 0.5 * own.sum(0) / (1 + len(own))
    torch.testing.assert_close(penalty.centres, centres, rtol=1e-12, atol=1e-12)
    second = term(penalty, model, x, y).item()
    assert second == pytest.approx(0.2 * (features - centres[y]).square().sum(1).mean().item(), rel=1e-12)


def test_centre_loss_gathers_the_features_of_a_class():
    def spread(strength):
        model = models.mlp(6, 3, (16,), seed=0).double()
        learner = GradientLearner(
            model, torch.optim.SGD(model.parameters(), lr=0.1), penalties=[CenterLoss(model, strength)]
        )
        data = batches((6,), 20, seed=1)
        for _ in range(10):
            for x, y in data:
                learner.learn(x, y)
        features = model.features(torch.cat([x for x, _ in data])).detach()
        y = torch.cat([y for _, y in data])
        return sum(features[y == c].var(0).sum().item() for c in range(3))

    assert spread(1.0) < 0.5 * spread(0.0)


@every_kind
def test_its_gradient_reaches_the_body_but_not_the_layer_tapped(kind):
    model, x, y = mlp(), random(7, 6), torch.zeros(7, dtype=torch.long)
    term(kind(model, 0.5), model, x, y).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {"0.weight", "0.bias", "2.weight"}


@every_kind
def test_a_model_without_linear_layers_is_refused(kind):
    with pytest.raises(ConfigError, match="Sequential has no linear layer, whose inputs would be the features"):
        kind(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), 0.1)


@every_kind
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(kind):
    with pytest.raises(ConfigError, match="unknown linear layer in layer= 'body.1x'; did you mean 'body.1'"):
        kind(models.mlp(4, 3, (5,)), 0.1, layer="body.1x")


@every_kind
@pytest.mark.parametrize("strength", [-0.1, float("nan"), [0.1, 0.2]])
def test_a_bad_strength_is_refused(kind, strength):
    with pytest.raises(ConfigError, match="strength"):
        kind(mlp(), strength)


@every_kind
def test_a_layer_that_the_model_does_not_use_is_named(kind):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    model = Odd()
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), penalties=[kind(model, 0.1)])
    with pytest.raises(ConfigError, match="no forward pass with gradients has used the layer 'unused'"):
        learner.learn(torch.rand(2, 4), torch.tensor([0, 1]))


@every_kind
def test_another_model_is_refused(kind):
    model = mlp()
    penalty = kind(model, 0.1)
    other = copy.deepcopy(model)
    with pytest.raises(ConfigError, match="was made for another model"):
        term(penalty, other, random(3, 6), torch.zeros(3, dtype=torch.long))


@every_kind
def test_features_serve_once_and_predictions_are_not_seen(kind):
    model, x, y = mlp(), random(3, 6), torch.zeros(3, dtype=torch.long)
    penalty = kind(model, 0.1)
    term(penalty, model, x, y)
    with torch.no_grad(), pytest.raises(ConfigError, match="no forward pass with gradients"):
        term(penalty, model, x, y)


@every_kind
def test_a_closed_penalty_leaves_no_hook(kind):
    model = mlp()
    kind(model, 0.1).close()
    assert not any(m._forward_pre_hooks for m in model.modules())


@every_kind
def test_a_state_of_other_features_is_refused_and_changes_nothing(kind):
    settings = {"samples": 4} if kind is EffectiveRank else {}
    model, other = models.mlp(6, 3, (5,)), models.mlp(6, 3, (7,))
    penalty, theirs = kind(model, 0.1, **settings), kind(other, 0.1, **settings)
    for p, m in ((penalty, model), (theirs, other)):
        term(p, m, torch.rand(3, 6), torch.zeros(3, dtype=torch.long))
    before = kept(penalty)
    for state in (theirs.state_dict(), {}):
        with pytest.raises(CheckpointError, match="the state has"):
            penalty.load_state_dict(state)
    assert same(before, kept(penalty))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0.0, 1.0]), "needs labels of classes"),
        (torch.tensor([[0], [1]]), "needs labels of classes"),
        (torch.tensor([0, 3]), r"labels must lie in 0 .. 2, got 0 .. 3"),
        (torch.tensor([-1, 0]), r"labels must lie in 0 .. 2, got -1 .. 0"),
    ],
)
def test_centre_loss_refuses_what_are_no_labels(y, message):
    with pytest.raises(InputError, match=message):
        CenterLoss(mlp(), 0.1).see(y)


def test_centre_loss_asks_for_labels():
    model = mlp()
    penalty = CenterLoss(model, 0.1)
    for see in (lambda: None, lambda: penalty.see(torch.zeros(2, dtype=torch.long))):
        F.softmax(model(random(3, 6)), 1)
        see()
        with pytest.raises(ConfigError, match="CenterLoss: no labels for this batch"):
            penalty(model)


@pytest.mark.parametrize("samples", [1, 2.5])
def test_a_number_of_samples_without_a_rank_is_refused(samples):
    with pytest.raises(ConfigError, match="samples="):
        EffectiveRank(mlp(), 0.1, samples=samples)


def test_a_rate_outside_of_its_range_is_refused():
    with pytest.raises(ConfigError, match="rate=1.5"):
        CenterLoss(mlp(), 0.1, rate=1.5)


@every_kind
def test_a_learner_copied_or_pickled_whole_goes_on_as_the_original(kind):
    model = mlp()
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.05), penalties=[kind(model, 0.1)])
    data = batches((6,), 6, seed=1)
    for x, y in data[:3]:
        learner.learn(x, y)
    others = copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))
    for x, y in data[3:]:
        for each in (learner, *others):
            each.learn(x, y)
    assert all(same(learner.state_dict()["model"], other.state_dict()["model"]) for other in others)
