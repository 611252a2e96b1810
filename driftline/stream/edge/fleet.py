"""Many devices that adapted the same shipped model, merged into the next one to ship: federated averaging, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from driftline.adapters.low_rank import folded
from driftline.errors import CheckpointError, ConfigError
from driftline.stream.edge.state import innermost, read_state


def merge(folders: Sequence[str | Path]) -> dict[str, Tensor]:
    """Average the models in the newest states of several devices, weighted by the samples each has adapted to.

    Statistics of batch normalisation are those of all devices' samples together: their variance contains how far the
    devices' means are apart. Low-rank pairs are added to their weights first. What is no floating-point number is taken
    from the first device.

    Parameters
    ----------
    folders : sequence of path
        State folders of loops, or copies of them; at least one. They are only read.

    Returns
    -------
    dict of str to Tensor
        A ``state_dict`` for the shipped model.

    Raises
    ------
    ConfigError
        Without folders.
    CheckpointError
        For a folder without a readable state, a state without a model, or devices that were shipped different models;
        when all have adapted and their weights are the same: what was adapted is then none of them, such as T3A's
        prototypes.

    Notes
    -----
    Averaging by samples as in McMahan et al., *Communication-efficient learning of deep networks from decentralized
    data*, AISTATS 2017, once, of what devices have adapted without labels. Judge the result on data of your own before
    you ship it.
    """
    if not folders:
        raise ConfigError("merge needs the state folders of the devices")
    states = [read_state(folder) for folder in folders]
    if len({cast(str, state["shipped"]) for state in states}) > 1:
        raise CheckpointError("these devices were shipped different models; merge those of the same one")
    models = [_model(state, folder) for state, folder in zip(states, folders)]
    samples = [cast("Mapping[str, int]", state["health"])["adapted_samples"] for state in states]
    if len(models) > 1 and all(samples) and all(_same(models[0], model) for model in models[1:]):
        raise CheckpointError(
            f"{folders[0]} and the others have adapted, but their weights are all the same: what they adapt is not in "
            "the weights (prototypes, memories), and cannot be merged"
        )
    weights = torch.tensor(samples if any(samples) else [1] * len(samples), dtype=torch.float64)
    weights /= weights.sum()
    merged: dict[str, Tensor] = {}
    for name, first in models[0].items():
        values = torch.stack([model[name] for model in models])
        merged[name] = _mean(values, weights) if first.is_floating_point() else first
    for name in [name for name in merged if name.endswith("running_var")]:
        means = torch.stack([model[name.removesuffix("var") + "mean"] for model in models]).double()
        apart = _mean(means.square(), weights) - _mean(means, weights).square()
        merged[name] = (merged[name].double() + apart.clamp_min(0)).to(merged[name].dtype)
    return merged


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return cast(Tensor, torch.tensordot(weights, values.double(), 1)).to(values.dtype)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _model(state: Mapping[str, object], folder: str | Path) -> Mapping[str, Tensor]:
    """Return the weights inside of a player's state, whatever is around the adapter."""
    player = innermost(state["player"])
    if not isinstance(player, Mapping) or not isinstance(player.get("model"), Mapping):
        raise CheckpointError(f"{folder}: its state holds no adapted model")
    return folded(cast("Mapping[str, Tensor]", player["model"]))
