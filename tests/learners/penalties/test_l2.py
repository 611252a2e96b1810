import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.learners.lockstep.modules import stack_models
from driftline.learners.lockstep.optimizer import RatePerReplica
from driftline.learners.penalties import L2, L2Init
from tests.golden import golden
from tests.learners.penalties.networks import assert_as_recorded, batches, from_golden, mlp, train
from tests.learners.states import same


@pytest.mark.parametrize("by_hand", [False, True], ids=["autograd", "added"])
def test_value_and_gradient_are_the_recorded_ones(by_hand):
    arrays, config = golden("learners", "reg_l2_init")
    model = from_golden(arrays, config)
    penalty = L2Init(model, strength=1.0)
    assert_as_recorded(model, penalty, arrays, by_hand)


def recorded_run(name, make):
    """Largest distance between parameters of our run and of the recorded one, over all steps."""
    arrays, config = golden("learners", name)
    model = from_golden(arrays, config)
    penalty, optimizer = make(model, config["hyperparameters"])
    trail = train(model, penalty, list(zip(*(torch.from_numpy(arrays[key]) for key in "xy"))), optimizer)
    assert len(trail) == config["steps"]
    distances = [
        (p - torch.from_numpy(arrays[f"param/{n}"][step])).abs().max().item()
        for step, parameters in enumerate(trail, 1)
        for n, p in parameters.items()
    ]
    return max(distances)


def test_training_in_the_papers_form_is_the_recorded_run():
    def make(model, settings):
        return L2Init(model, settings["strength"]), torch.optim.SGD(model.parameters(), lr=settings["lr"])

    assert recorded_run("l2_init_definition_sgd_relu_b4", make) < 1e-9  # the record's own tolerance


@pytest.mark.parametrize(
    ("name", "kind"),
    [("l2_init_sgd_relu_b4", torch.optim.SGD), ("l2_init_adam_tanh_b4", torch.optim.Adam)],
    ids=["sgd", "adam"],
)
def test_training_in_the_released_form_is_the_recorded_run(name, kind):
    def make(model, settings):
        penalty = L2Init(model, settings["weight_decay"], variant="released")
        return penalty, kind(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])

    assert recorded_run(name, make) < 1e-9  # the record's own tolerance


def test_l2_is_weight_decay_of_twice_its_strength():
    data = batches((6,), 8, seed=1)
    ours, theirs = mlp(), mlp()
    trail = train(ours, L2(0.05), data)
    other = train(theirs, None, data, torch.optim.SGD(theirs.parameters(), lr=0.05, weight_decay=0.1))
    for step, expected in zip(trail, other):
        for name, p in step.items():
            torch.testing.assert_close(p, expected[name], rtol=1e-12, atol=1e-13)


def test_decoupled_l2_decays_by_the_rate_after_the_step():
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    L2(0.25, decoupled=True).renew(model, torch.optim.Adam(model.parameters(), lr=0.1))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 2 * 0.25 * 0.1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_decoupled_l2_init_moves_the_rates_share_of_the_way_back(rate):
    model = mlp()
    penalty = L2Init(model, 0.25, decoupled=True)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    penalty.renew(model, torch.optim.AdamW(model.parameters(), lr=rate, capturable=False, foreach=False))
    for name, p in model.named_parameters():
        # the tensor's rate is of float32
        torch.testing.assert_close(p.detach(), start[name] + (1 - 2 * 0.25 * 0.1), rtol=1e-7, atol=1e-8)


def test_decoupled_and_coupled_agree_where_gradients_are_zero_and_the_optimizer_is_plain():
    coupled, decoupled = mlp(), mlp()
    penalties = L2Init(coupled, 0.1), L2Init(decoupled, 0.1, decoupled=True)
    for model in (coupled, decoupled):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2.0)
                p.grad = torch.zeros_like(p)
    penalties[0].add_gradients(coupled)
    torch.optim.SGD(coupled.parameters(), lr=0.3).step()
    penalties[1].renew(decoupled, torch.optim.SGD(decoupled.parameters(), lr=0.3))
    for p, q in zip(coupled.parameters(), decoupled.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_a_learning_rate_for_each_replica_is_each_replicas():
    model = stack_models([mlp(0), mlp(1)])
    optimizer = RatePerReplica(torch.optim.SGD(model.parameters(), lr=1.0), [0.1, 0.5])
    before = model[0].weight.detach().clone()
    L2(0.25, decoupled=True, replicas=2).renew(model, optimizer)
    shares = torch.tensor([1 - 2 * 0.25 * 0.1, 1 - 2 * 0.25 * 0.5], dtype=torch.float64).view(2, 1, 1)
    torch.testing.assert_close(model[0].weight.detach(), before * shares, rtol=1e-12, atol=0)


def test_the_released_form_pulls_to_where_the_first_step_led():
    model = mlp()
    penalty = L2Init(model, 0.5, variant="released")
    assert penalty.state_dict() == {"initial": {}}
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
    penalty.renew(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(torch.equal(t, torch.full_like(t, 2.0)) for t in penalty.state_dict()["initial"].values())
    assert all(torch.equal(p, torch.full_like(p, 2.1)) for p in model.parameters())


def test_the_released_forms_uncaptured_state_loads():
    model = mlp()
    used = L2Init(model, 0.5, variant="released")
    used.renew(model, torch.optim.SGD(model.parameters(), lr=0.1))
    used.load_state_dict(L2Init(mlp(), 0.5, variant="released").state_dict())
    assert used.state_dict() == {"initial": {}}


def test_the_initial_parameters_are_those_at_construction():
    model = mlp()
    penalty = L2Init(model, 0.5)
    assert penalty(model) == 0
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    nn.init.zeros_(model[0].weight)
    assert same(penalty.state_dict(), {"initial": start})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="unknown variant 'release'; did you mean 'released'"):
        L2Init(mlp(), 0.1, variant="release")
