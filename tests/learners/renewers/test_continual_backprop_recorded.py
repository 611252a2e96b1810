"""Continual backprop reproduces the recorded cases of the released code (shibhansh/loss-of-plasticity)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from driftline.learners.optimizers import Adam
from driftline.learners.renewers import ContinualBackprop
from driftline.learners.renewers.initialization import bound
from tests.golden import golden, golden_names
from tests.learners.renewers.recorded import RecordedDraws, close, convolutional, initialised, mlp

CASES = golden_names("learners", "cbp_gnt_*") + golden_names("learners", "cbp_conv_gnt_*")


def optimizer_of(config, model):
    given = config["hyperparameters"]
    if config["optimizer"] == "SGD":
        return torch.optim.SGD(
            model.parameters(), given["step_size"], given["momentum"], weight_decay=given["weight_decay"]
        )
    return Adam(
        model.parameters(),
        given["step_size"],
        *given["betas"],
        eps=given["eps"],
        weight_decay=given["weight_decay"],
        variant="released",
    )


@pytest.mark.parametrize("name", CASES)
def test_it_follows_the_recorded_case(name):
    arrays, config = golden("learners", name)
    given = config["hyperparameters"]
    dtype = getattr(torch, config["dtype"])
    # Their bounds are the READMEs': rounding only in float64; in float32 its growth over the whole trajectory.
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    conv = "conv" in config["method"]
    model = convolutional(config["activation"]) if conv else mlp(config["layer_sizes"], config["activation"])
    initialised(model, arrays, dtype)
    optimizer = optimizer_of(config, model)
    renewer = ContinualBackprop(
        model,
        given["replacement_rate"],
        given["maturity_threshold"],
        given["decay_rate"],
        given["util_type"],
        accumulate=given.get("accumulate", True),
        initialization=given["init"],
        variant="released",
    )
    renewer.draws = RecordedDraws(arrays, config["bounds"])
    bounds = [bound(group, given["init"], released=True) for group in renewer.groups]
    assert bounds == pytest.approx(config["bounds"][: len(bounds)], rel=1e-15)
    x, y = torch.from_numpy(arrays["x"]).to(dtype), torch.from_numpy(arrays["y"])
    loss_of = F.mse_loss if config["loss"] == "mse" else F.cross_entropy
    for t in range(len(x)):
        logits = model(x[t])
        assert close(logits, arrays["logits"][t], tolerance), t
        optimizer.zero_grad()
        loss_of(logits, y[t]).backward()
        optimizer.step()
        renewer.renew(model, optimizer)
        for key, parameter in model.named_parameters():
            assert close(parameter, arrays[f"param/{key}"][t + 1], tolerance), (t, key)
        same_units(renewer, arrays, t, tolerance)
        same_state(optimizer, model, arrays, t, tolerance)


def same_units(renewer, arrays, t, tolerance):
    for i, traces in enumerate(renewer.traces):
        replaced = arrays[f"gnt/replaced/layer{i}"][t]
        assert np.array_equal((renewer.step - traces.birth).numpy(), arrays[f"gnt/ages/layer{i}"][t]), (t, i)
        assert np.array_equal((traces.birth == t + 1).numpy(), replaced), (t, i)
        assert close(traces.activation, arrays[f"gnt/mean_feature_act/layer{i}"][t], tolerance), (t, i)
        if renewer.utility != "random":
            assert close(traces.utility, arrays[f"gnt/util/layer{i}"][t], tolerance), (t, i)
            # The record keeps the ranking of replaced units as it was before they were replaced.
            kept = torch.from_numpy(~replaced)
            ranks = arrays[f"gnt/bias_corrected_util/layer{i}"][t][~replaced]
            assert close(renewer.ranking(i, traces.utility)[kept], ranks, tolerance), (t, i)
        (counter,) = renewer.schedule.counters[i]
        if renewer.accumulate:
            assert counter.carry == pytest.approx(arrays["gnt/accumulator"][t][i], abs=1e-6)


def same_state(optimizer, model, arrays, t, tolerance):
    for key, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            if f"state/{name}/{key}" in arrays:
                assert close(state[name], arrays[f"state/{name}/{key}"][t], tolerance), (t, name, key)
        if f"state/step/{key}" in arrays:
            begun = state["row_start"].view(-1, *(1 for _ in parameter.shape[1:]))
            if "column_start" in state:
                begun = torch.maximum(begun, state["column_start"].view(1, -1, *(1 for _ in parameter.shape[2:])))
            steps = (state["step"] - begun).expand_as(parameter)
            assert np.array_equal(steps.numpy(), arrays[f"state/step/{key}"][t]), (t, key)
