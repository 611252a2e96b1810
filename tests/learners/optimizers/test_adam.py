from __future__ import annotations

import copy

import pytest
import torch

from driftline import models
from driftline.errors import ConfigError
from driftline.learners.optimizers import Adam
from driftline.learners.renewers.unit_groups import find_unit_groups
from driftline.learners.renewers.unit_state import Chosen, forget
from tests.golden import golden_names
from tests.learners.optimizers.replaying import FOLDER, Recorded

SHAPES = ((6, 5), (6,), (4, 6), (4,), (3, 2, 3, 3), (1,), ())


def params_of(dtype=torch.float64, replicas=None, shapes=SHAPES):
    draw = torch.Generator().manual_seed(0)
    lead = () if replicas is None else (replicas,)
    return [torch.nn.Parameter(torch.randn((*lead, *s), generator=draw, dtype=dtype)) for s in shapes]


def give_gradients(params, step):
    draw = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)


def restart(optimizer, p, rows=(), columns=()):
    """What a renewer does to the state of a parameter."""
    state = optimizer.state[p]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name][list(rows)] = 0
        if columns:
            state[name][:, list(columns)] = 0
    state["row_start"][list(rows)] = state["step"]
    if columns:
        state["column_start"][list(columns)] = state["step"]


def test_follows_the_recorded_run_with_decoupled_decay():
    case = Recorded("adam_tanh_b8")
    optimizer = Adam(case.params, decoupled=True, **case.settings)
    states = {name: lambda p, name=name: optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq")}
    case.train(optimizer, states)


@pytest.mark.parametrize("name", golden_names(FOLDER, "cbp_gnt_adam_*"))
def test_released_variant_follows_the_recorded_run_in_which_units_are_renewed(name):
    case = Recorded(name)
    s, arrays = case.settings, case.arrays
    beta1, beta2 = s["betas"]
    optimizer = Adam(case.params, s["step_size"], beta1, beta2, s["eps"], s["weight_decay"], variant="released")
    taken = dict.fromkeys(range(len(case.layers) - 1), 0)

    def renew(step):
        for event in torch.from_numpy(arrays["replace/step"] == step).nonzero().flatten().tolist():
            index, unit = int(arrays["replace/layer"][event]), int(arrays["replace/unit"][event])
            layer, following = case.layers[index], case.layers[index + 1]
            with torch.no_grad():
                layer.weight[unit] = case.tensor(f"replace/new_in_weight/layer{index}", taken[index])
                layer.bias[unit] = 0
                following.weight[:, unit] = 0
            taken[index] += 1
            restart(optimizer, layer.weight, rows=[unit])
            restart(optimizer, layer.bias, rows=[unit])
            restart(optimizer, following.weight, columns=[unit])

    for step in range(len(arrays["x"])):
        out = case.forward(case.tensor("x", step))
        case.check("logits", step, out)
        optimizer.zero_grad()
        case.loss(out, case.tensor("y", step)).backward()
        optimizer.step()
        renew(step)
        for label, p in zip(case.names, case.params):
            case.check(f"param/{label}", step + 1, p)
            state = optimizer.state[p]
            case.check(f"state/exp_avg/{label}", step, state["exp_avg"])
            case.check(f"state/exp_avg_sq/{label}", step, state["exp_avg_sq"])
            start = state["row_start"]
            if p.dim() == 2:
                start = torch.maximum(start[:, None], state["column_start"][None])
            case.check(f"state/step/{label}", step, state["step"] - start)
    assert sum(taken.values()) > 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_renewal_it_is_torchs_adam_to_rounding(dtype, decoupled, decay):
    ours, theirs = params_of(dtype), params_of(dtype)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    own = Adam(ours, 0.01, weight_decay=decay, decoupled=decoupled)
    other = kind(theirs, 0.01, weight_decay=decay)
    for step in range(50):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        own.step()
        other.step()
    for p, q in zip(ours, theirs):
        assert torch.allclose(p, q, rtol=0, atol=1e-12 if dtype is torch.float64 else 2e-6)


def test_gaps_in_memory_change_nothing():
    ours, theirs = params_of(), params_of()
    ours[0] = torch.nn.Parameter(ours[0].detach().t().contiguous().t())
    assert not ours[0].is_contiguous()
    own, other = Adam(ours, 0.01), Adam(theirs, 0.01)
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        own.step()
        other.step()
    for p, q in zip(ours, theirs):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


class EntryClocks:
    """Adam with a step count for every entry, written down plainly."""

    def __init__(self, p, lr, beta1, beta2, eps):
        self.p, self.numbers = p, (lr, beta1, beta2, eps)
        self.m, self.v, self.t = (torch.zeros_like(p) for _ in range(3))

    def step(self):
        lr, beta1, beta2, eps = self.numbers
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * self.p.grad
        self.v = beta2 * self.v + (1 - beta2) * self.p.grad**2
        with torch.no_grad():
            self.p -= lr * self.m / (1 - beta1**self.t) / ((self.v / (1 - beta2**self.t)).sqrt() + eps)

    def restart(self, rows, columns):
        for state in (self.m, self.v, self.t):
            state[rows] = 0
            if columns:
                state[:, columns] = 0


def test_a_renewer_restarts_the_clocks_of_what_belongs_to_a_unit():
    model = models.convnet((1, 6, 6), 3, width=4)
    optimizer = Adam(model.parameters())
    for step in range(3):
        give_gradients(list(model.parameters()), step)
        optimizer.step()
    group = find_unit_groups(model)[1]
    forget(optimizer, group, Chosen(torch.tensor([2])))
    rows, columns = group.in_module, group.out_module
    assert optimizer.state[rows.weight]["row_start"].nonzero().flatten().tolist() == [2]
    assert optimizer.state[rows.bias]["row_start"].tolist()[2] == 3
    repeat = group.out_repeat
    started = optimizer.state[columns.weight]["column_start"].nonzero().flatten().tolist()
    assert started == list(range(2 * repeat, 3 * repeat))
    assert optimizer.state[columns.weight]["exp_avg"][:, started].count_nonzero() == 0
    before = rows.bias.detach().clone()
    give_gradients(list(model.parameters()), 3)
    optimizer.step()
    assert (before - rows.bias)[2].abs().item() == pytest.approx(1e-3, rel=1e-3)  # a first step is one of lr


@pytest.mark.parametrize("beta2", [0.9, 0.999], ids=["forgets the start", "remembers it"])
def test_renewed_units_have_clocks_of_their_own(beta2):
    ours, theirs = params_of(), params_of()
    optimizer = Adam(ours, 0.01, 0.9, beta2)
    plain = [EntryClocks(p, 0.01, 0.9, beta2, 1e-8) for p in theirs]
    draw = torch.Generator().manual_seed(5)
    for step in range(500):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        for one in plain:
            one.step()
        if step % 7 == 3 and step < 60:
            for p, one in zip(ours, plain):
                if p.dim() == 0:
                    continue
                row = int(torch.randint(p.shape[0], (), generator=draw))
                columns = [int(torch.randint(p.shape[1], (), generator=draw))] if p.dim() > 1 else []
                restart(optimizer, p, [row], columns)
                one.restart([row], columns)
        for p, q in zip(ours, theirs):
            assert torch.allclose(p, q, rtol=0, atol=1e-10)


def test_blocks_of_rows_are_the_whole(monkeypatch):
    results = []
    for block in (2**18, 7):
        monkeypatch.setattr("driftline.learners.optimizers.passes.BLOCK", block)
        params = params_of()
        optimizer = Adam(params, 0.01)
        for step in range(10):
            give_gradients(params, step)
            optimizer.step()
            restart(optimizer, params[0], [step % 6], [step % 5])
        results.append(params)
    for p, q in zip(*results):
        assert torch.equal(p, q)


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_replicas_do_what_each_would_alone(renewed, variant):
    merged = {
        "lr": [0.01, 0.02, 0.0],
        "beta1": [0.9, 0.5, 0.9],
        "beta2": [0.99, 0.999, 0.9],
        "eps": [1e-8, 1e-6, 1e-8],
        "weight_decay": [0.0, 0.1, 0.01],
    }
    together = params_of(replicas=3)
    both = Adam(together, **merged, variant=variant, replicas=3)
    alone = [[torch.nn.Parameter(p.detach()[i].clone()) for p in together] for i in range(3)]
    single = [
        Adam(params, **{name: values[i] for name, values in merged.items()}, variant=variant)
        for i, params in enumerate(alone)
    ]
    for step in range(20):
        give_gradients(together, step)
        both.step()
        for i in range(3):
            for p, q in zip(alone[i], together):
                p.grad = q.grad[i].clone()
            single[i].step()
        if renewed and step in (5, 9):
            state = both.state[together[0]]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name][1, 2] = 0
                state[name][1, :, 3] = 0
            state["row_start"][1, 2] = state["step"]
            state["column_start"][1, 3] = state["step"]
            restart(single[1], alone[1][0], [2], [3])
    for i in range(3):
        for p, q in zip(alone[i], together):
            assert torch.allclose(p, q[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("copied", ["loaded", "deepcopied"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_renewal_next_to_a_copy_is_not_missed(copied, when):
    params = params_of(torch.float32)
    optimizer = Adam(params, 0.01)
    for step in range(10):
        give_gradients(params, step)
        optimizer.step()
    if when == "before":
        restart(optimizer, params[0], [1], [2])
    if copied == "loaded":
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = Adam(others, 0.5)
        other.load_state_dict(optimizer.state_dict())
        assert other.state[others[0]]["row_start"].dtype is torch.int64
    else:
        other = copy.deepcopy(optimizer)
        others = other.param_groups[0]["params"]
    if when == "after":
        restart(optimizer, params[0], [1], [2])
        restart(other, others[0], [1], [2])
    for step in range(10, 30):
        for own, its in ((params, optimizer), (others, other)):
            give_gradients(own, step)
            its.step()
    for p, q in zip(params, others):
        assert torch.equal(p, q)


def test_step_counts_survive_a_checkpoint_beyond_what_float32_can_count():
    params = params_of(torch.float32)
    optimizer = Adam(params)
    give_gradients(params, 0)
    optimizer.step()
    state = optimizer.state[params[0]]
    state["step"] += 2**24
    state["row_start"][1] = 2**24 + 1
    other = Adam(params)
    other.load_state_dict(optimizer.state_dict())
    assert int(other.state[params[0]]["step"]) == 2**24 + 1
    assert int(other.state[params[0]]["row_start"][1]) == 2**24 + 1


def test_parameters_without_a_gradient_keep_their_clock():
    params = params_of()
    optimizer = Adam(params)
    give_gradients(params, 0)
    params[1].grad = None
    optimizer.step()
    assert params[1] not in optimizer.state or not optimizer.state[params[1]]
    give_gradients(params, 1)
    optimizer.step()
    assert int(optimizer.state[params[0]]["step"]) == 2
    assert int(optimizer.state[params[1]]["step"]) == 1


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="beta2"):
        Adam(params_of(), beta2=1.0)
    with pytest.raises(ConfigError, match="no decoupled weight decay"):
        Adam(params_of(), decoupled=True, variant="released")
    with pytest.raises(ConfigError, match="variant"):
        Adam(params_of(), variant="papr")
