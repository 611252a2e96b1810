"""ReDo reproduces the recorded case of the released code (shibhansh/loss-of-plasticity)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from driftline.learners.renewers import ReDo
from driftline.learners.renewers.initialization import bound
from tests.golden import golden, golden_names
from tests.learners.renewers.recorded import RecordedDraws, close, initialised, mlp

TOLERANCE = 1e-9
"""Of float64, where the README allows for rounding only."""


@pytest.mark.parametrize("name", golden_names("learners", "redo_*"))
def test_it_follows_the_recorded_case(name):
    arrays, config = golden("learners", name)
    given = config["hyperparameters"]
    model = initialised(mlp(config["layer_sizes"], config["activation"]), arrays, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=given["lr"])
    renewer = ReDo(
        model,
        given["threshold"],
        given["reset_period"],
        given["history"],
        initialization=given["init"],
        variant="released",
    )
    renewer.draws = RecordedDraws(arrays, config["bounds"], lanes=1)
    bounds = [bound(group, given["init"], released=True) for group in renewer.groups]
    assert bounds == pytest.approx(config["bounds"][: len(bounds)], rel=1e-15)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    renewed = []
    start_again = renewer.start_again
    renewer.start_again = lambda number, chosen, optimizer: (
        renewed.extend((renewer.step - 1, number, unit) for unit in chosen.units.tolist()),
        start_again(number, chosen, optimizer),
    )
    for t in range(len(x)):
        logits = model(x[t])
        assert close(logits, arrays["logits"][t], TOLERANCE), t
        optimizer.zero_grad()
        F.cross_entropy(logits, y[t]).backward()
        optimizer.step()
        renewer.renew(model, optimizer)
        for number in range(len(renewer.groups)):
            # The record's window is filled up with zeros at first.
            magnitudes = renewer.recent.magnitudes(number) * min(1.0, 4 * (t + 1) / given["history"])
            assert close(magnitudes, np.abs(arrays["history"][t, :, number]).mean(0), TOLERANCE), (t, number)
        for key, parameter in model.named_parameters():
            assert close(parameter, arrays[f"param/{key}"][t + 1], TOLERANCE), (t, key)
    assert renewed == list(zip(*(arrays[f"replace/{what}"].tolist() for what in ("step", "layer", "unit"))))
