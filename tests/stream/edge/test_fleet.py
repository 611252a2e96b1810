from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from driftline.adapters import T3A, CollapseGuard
from driftline.cli import app
from driftline.errors import CheckpointError, ConfigError
from driftline.stream.edge.fleet import merge
from tests.stream.edge.parts import adapter, fixed, make, network, samples


def adapted(folder, count, shift, **settings):
    """The model of a device that has met so many samples, and how many of them it has adapted to."""
    loop = make(folder, samples(count) + shift, **settings)
    list(loop)
    return loop.serving.player.network().state_dict(), loop.health.counts["adapted_samples"]


def test_devices_are_merged_by_samples_and_their_variance_contains_how_far_they_are_apart(tmp_path):
    one, few = adapted(tmp_path / "a", 80, 0.0)
    other, many = adapted(
        tmp_path / "b", 240, 3.0, player=CollapseGuard(adapter(), None, None, None, None, source=network())
    )
    assert (few, many) == (80, 240)
    merged = merge([tmp_path / "a", tmp_path / "b"])
    means = [state["1.running_mean"] for state in (one, other)]
    mean = (80 * means[0] + 240 * means[1]) / 320
    assert torch.allclose(merged["1.running_mean"], mean, atol=1e-6)
    second = [state["1.running_var"] + state["1.running_mean"] ** 2 for state in (one, other)]
    assert torch.allclose(merged["1.running_var"], (80 * second[0] + 240 * second[1]) / 320 - mean**2, atol=1e-5)
    network().load_state_dict(merged)


def test_devices_of_other_models_and_folders_without_a_state_are_named(tmp_path):
    adapted(tmp_path / "a", 8, 0.0)
    adapted(tmp_path / "b", 8, 0.0, player=fixed(), shipped=network(seed=1))
    with pytest.raises(CheckpointError, match="different models"):
        merge([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(CheckpointError, match="no state"):
        merge([tmp_path / "c"])
    with pytest.raises(ConfigError, match="needs the state folders"):
        merge([])


def test_the_command_writes_what_is_merged(tmp_path):
    adapted(tmp_path / "a", 80, 0.0)
    adapted(tmp_path / "b", 80, 3.0)
    done = CliRunner().invoke(app, ["merge", *map(str, (tmp_path / "next.pt", tmp_path / "a", tmp_path / "b"))])
    assert done.exit_code == 0, done.exception
    written = torch.load(tmp_path / "next.pt", weights_only=True)
    expected = merge([tmp_path / "a", tmp_path / "b"])
    assert written.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in written.items())


def test_devices_whose_weights_are_all_the_same_have_nothing_to_merge(tmp_path):
    for name in ("a", "b"):
        adapted(tmp_path / name, 16, 0.0, player=T3A(network()))
    with pytest.raises(CheckpointError, match="not in the weights"):
        merge([tmp_path / "a", tmp_path / "b"])
