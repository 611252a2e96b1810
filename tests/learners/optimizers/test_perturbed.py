from __future__ import annotations

import pytest
import torch

from driftline.errors import ConfigError
from driftline.learners.optimizers import Adam, Perturbed, PerturbedSGD, ShrinkAndPerturb
from driftline.learners.optimizers.perturbing import FORMS
from tests.golden import golden_names
from tests.learners.optimizers.replaying import FOLDER, Recorded

OWN_STEP = [
    n for n in golden_names(FOLDER, "*") if n.startswith(("pgd", "sgd", "shrink_and_perturb")) and "_b4" not in n
]


@pytest.mark.parametrize("name", OWN_STEP)
def test_perturbed_sgd_follows_the_recorded_run(name):
    case = Recorded(name)
    settings = case.settings
    decay = settings.get("decay", settings.get("weight_decay", 0.0))
    optimizer = PerturbedSGD(case.params, lr=settings["lr"], sigma=settings.get("sigma", 0.0), decay=decay)
    optimizer.draws = case.draws(case.params)
    case.train(optimizer)


@pytest.mark.parametrize("name", golden_names(FOLDER, "shrink_and_perturb_*_b4"))
def test_perturbing_around_torch_follows_the_recorded_run(name):
    case = Recorded(name)
    kind = torch.optim.Adam if case.config["method"].endswith("adam") else torch.optim.SGD
    base = kind(case.params, lr=case.settings["lr"], weight_decay=case.settings["weight_decay"])
    optimizer = Perturbed(base, sigma=case.settings["sigma"])
    optimizer.draws = case.draws(case.params)
    case.train(optimizer)


SHAPES = ((5, 7), (5,), (4, 3, 2, 2), (4,))


def params_of(replicas=None, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    lead = () if replicas is None else (replicas,)
    return [torch.nn.Parameter(torch.randn((*lead, *s), generator=draw, dtype=dtype)) for s in SHAPES]


def give_gradients(params, step=0):
    draw = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)


def count(params):
    return sum(p.numel() for p in params)


def flat(params):
    return torch.cat([p.detach().flatten() for p in params])


@pytest.mark.parametrize("form", FORMS)
def test_without_noise_and_decay_it_is_sgd_bit_for_bit(form):
    ours, theirs, around = (params_of(dtype=torch.float32) for _ in range(3))
    own = ShrinkAndPerturb(ours, lr=0.1, sigma=0.0, form=form)
    plain = torch.optim.SGD(theirs, lr=0.1)
    wrapped = Perturbed(torch.optim.SGD(around, lr=0.1), sigma=0.0, form=form)
    for step in range(5):
        for params, optimizer in ((ours, own), (theirs, plain), (around, wrapped)):
            give_gradients(params, step)
            optimizer.step()
    assert torch.equal(flat(ours), flat(theirs))
    assert torch.equal(flat(around), flat(theirs))


@pytest.mark.parametrize("around", [False, True], ids=["itself", "around torch"])
@pytest.mark.parametrize("form", ["scaled", "unscaled", "boundary"])
def test_each_form_is_its_formula(form, around):
    params = params_of()
    if around:
        optimizer = Perturbed(torch.optim.SGD(params, lr=0.1), sigma=0.2, decay=0.3, form=form, seed=4)
    else:
        optimizer = ShrinkAndPerturb(params, lr=0.1, sigma=0.2, decay=0.3, form=form, seed=4)
    before = flat(params)
    give_gradients(params)
    g, n = torch.cat([p.grad.flatten() for p in params]), optimizer.draws.normal(0, count(params)).double()
    optimizer.step()
    expected = {
        "scaled": (1 - 0.1 * 0.3) * before - 0.1 * (g + 0.2 * n),
        "unscaled": (1 - 0.1 * 0.3) * before - 0.1 * g + 0.2 * n,
        "boundary": before - 0.1 * g,
    }[form]
    assert torch.allclose(flat(params), expected, rtol=0, atol=1e-12)


def test_fresh_weights_are_drawn_as_a_layer_begins():
    params = [torch.nn.Parameter(torch.zeros(400, 25)), torch.nn.Parameter(torch.zeros(400))]
    optimizer = ShrinkAndPerturb(params, lr=0.1, sigma=1.0, decay=0.5, form="fresh")
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in params:
        assert p.abs().max() <= 0.2
        assert p.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.1)
    before = flat(params)
    drawn = (2 * optimizer.draws.uniform(1, count(params)) - 1) * 0.2
    optimizer.step()
    assert torch.allclose(flat(params), 0.5 * before + drawn, atol=1e-6)


@pytest.mark.parametrize("around", [False, True], ids=["itself", "around torch"])
def test_a_boundary_shrinks_and_perturbs_all_that_can_be_trained_with_a_new_draw_each_time(around):
    params = params_of()
    params[3].requires_grad_(False)
    if around:
        optimizer = Perturbed(torch.optim.Adam(params), sigma=0.1, decay=0.6, form="boundary")
    else:
        optimizer = ShrinkAndPerturb(params, sigma=0.1, decay=0.6, form="boundary")
    noise = []
    for _ in range(2):
        before = [p.detach().clone() for p in params]
        optimizer.shrink_and_perturb()
        noise.append(torch.cat([(p - 0.4 * old).detach().flatten() for p, old in zip(params[:3], before)]))
        assert torch.equal(params[3], before[3])
    assert not torch.allclose(noise[0], noise[1])
    assert noise[0].std().item() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("around", [False, True], ids=["itself", "around Adam"])
@pytest.mark.parametrize("form", FORMS)
def test_replicas_do_what_each_would_alone(form, around):
    settings = {"sigma": [0.1, 0.0, 0.3], "decay": [0.0, 0.1, 0.2], "seed": [5, 6, 7]}
    rates = [0.1, 0.2, 0.3]

    def made(params, lr, replicas=None, **given):
        if around:
            return Perturbed(Adam(params, lr, replicas=replicas), form=form, replicas=replicas, **given)
        return ShrinkAndPerturb(params, lr, form=form, replicas=replicas, **given)

    together = params_of(replicas=3)
    alone = [[torch.nn.Parameter(p.detach()[i].clone()) for p in together] for i in range(3)]
    both = made(together, rates, 3, **settings)
    single = [made(alone[i], rates[i], **{name: values[i] for name, values in settings.items()}) for i in range(3)]
    for step in range(4):
        give_gradients(together, step)
        for i in range(3):
            for p, q in zip(alone[i], together):
                p.grad = q.grad[i].clone()
        for optimizer in (both, *single):
            optimizer.step()
            if step == 2:
                optimizer.shrink_and_perturb()
    for i in range(3):
        for p, q in zip(alone[i], together):
            assert torch.allclose(p, q[i], rtol=0, atol=1e-12)


def test_settings_that_do_not_fit_are_refused():
    params = params_of()
    with pytest.raises(ConfigError, match="unknown form"):
        ShrinkAndPerturb(params, form="scald")
    with pytest.raises(ConfigError, match="unknown form"):
        Perturbed(torch.optim.SGD(params, lr=0.1), form="scald")
    with pytest.raises(ConfigError, match=r"decay=1.5"):
        ShrinkAndPerturb(params, decay=1.5, form="fresh")
    with pytest.raises(ConfigError, match="sigma"):
        Perturbed(torch.optim.SGD(params, lr=0.1), sigma=-1.0)
    with pytest.raises(ConfigError, match="give a torch.optim.Optimizer"):
        Perturbed(params)
