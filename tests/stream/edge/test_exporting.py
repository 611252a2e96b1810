"""Exported files: they give the served scores, whatever the adapter, or they are not written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driftline.adapters import LAME, T3A, BatchNormAdapter, Source, Tent
from driftline.errors import CheckpointError, ConfigError, ExportError, InputError, RecordError
from driftline.learners import GradientLearner
from driftline.stream.edge import Floor, export, roll_back, samples_of, served_by
from driftline.stream.edge.state import files
from tests.stream.edge.parts import Wrong, adapter, fixed, make, network, samples

SUFFIXES = ["pt2", pytest.param("onnx", marks=pytest.mark.slow)]


def read(path):
    """What another program gets from the file."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def adapted(make_adapter):
    player = make_adapter(network())
    for x in samples(64).split(16):
        player.adapt(x * 3)
    return player


def group_norm(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3))


PLAYERS = {
    "source": Source,
    "statistics": lambda model: BatchNormAdapter(model, "running"),
    "prototypes": T3A,
    "affine": lambda model: Tent(group_norm(model), lr=0.1),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", PLAYERS)
def test_the_file_gives_what_the_adapted_player_predicts_for_any_batch(tmp_path, name, suffix):
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    player = adapted(PLAYERS[name])
    before = player.state_dict()
    path = tmp_path / f"model.{suffix}"
    written = export(player, path, samples(1)[0])
    assert (written.any_batch, written.sizes, written.bytes) == (True, (1, 2, 8), path.stat().st_size)
    run = read(path)
    for x in (samples(1), samples(5, seed=3), samples(33, seed=4)):
        assert torch.allclose(run(x), player.predict(x), atol=1e-5)
    if name != "source":
        assert not torch.allclose(run(x), network()(x), atol=1e-2)
    assert before.keys() == player.state_dict().keys()
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("make_adapter", "message"),
    [
        (Tent, "depend on the batch"),
        (lambda model: BatchNormAdapter(model, "prior"), "depend on the batch"),
        (LAME, "LAME cannot be exported: it does not predict by a forward pass"),
    ],
)
def test_what_no_file_can_promise_is_refused_by_name(tmp_path, make_adapter, message):
    with pytest.raises(ExportError, match=message):
        export(adapted(make_adapter), tmp_path / "model.pt2", samples(1)[0])
    assert not [*tmp_path.iterdir()]


def test_beyond_the_tolerance_no_file_is_left_and_the_older_one_stays(tmp_path):
    path = tmp_path / "model.pt2"
    export(fixed(), path, samples(1)[0])
    older = path.read_bytes()

    class Elsewhere(GradientLearner):
        """Predicts by more than its network."""

        def predict(self, x):
            return super().predict(x) + 0.5

    model = network()
    learner = Elsewhere(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ExportError, match=r"differ from the served ones by up to 0\.5, tolerance is 0\.0001"):
        export(learner, path, samples(1)[0])
    assert path.read_bytes() == older
    assert [*tmp_path.iterdir()] == [path]
    assert export(learner, path, samples(1)[0], tolerance=1.0).difference == pytest.approx(0.5, abs=1e-5)


def test_a_model_that_takes_single_samples_only_is_written_for_those(tmp_path):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return torch.cat([self.layer(row).reshape(1, 3) for row in x.unbind()])

    written = export(Single(), tmp_path / "model.pt2", samples(1)[0])
    assert (written.any_batch, written.sizes) == (False, (1,))


def test_dropout_is_off_and_tokens_are_taken(tmp_path):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).train()
    written = export(model, tmp_path / "model.pt2", torch.tensor([1, 2, 3]))
    assert written.difference < 1e-6
    assert model.training
    run = read(tmp_path / "model.pt2")
    x = torch.tensor([[1, 2, 3]])
    assert torch.equal(run(x), run(x))


@pytest.mark.parametrize(
    ("path", "settings", "error", "message"),
    [
        ("model.pt", {}, ConfigError, r"ends in .pt2 \(torch.export\) or .onnx"),
        ("model.pt2", {"tolerance": -1}, ConfigError, "tolerance"),
        ("model.pt2", {"example": torch.zeros(7)}, InputError, "does not take"),
        ("nowhere/model.pt2", {}, RecordError, "nowhere/model.pt2"),
    ],
)
def test_bad_settings_are_named(tmp_path, path, settings, error, message):
    with pytest.raises(error, match=message):
        export(fixed(), tmp_path / path, **({"example": samples(1)[0]} | settings))


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnx' extra"):
        export(fixed(), tmp_path / "model.onnx", samples(1)[0])


# --- by a loop's state


@pytest.mark.parametrize("guard", [False, True])
def test_a_loops_newest_or_named_state_is_what_it_serves(tmp_path, guard):
    loop = make(tmp_path, samples(40) * 3, guard=guard)
    list(loop)
    x = samples(6, seed=9)
    served = served_by(tmp_path, adapter(), network())
    assert torch.equal(served.predict(x), loop.serving.player.predict(x))
    assert not torch.allclose(served.predict(x), network()(x), atol=1e-2)
    first = served_by(tmp_path, adapter(), network(), generation=1)
    assert torch.allclose(first.predict(x), network()(x), atol=1e-6)
    assert torch.equal(samples_of(tmp_path), samples(40)[-1:] * 3)


def test_a_damaged_newest_state_is_passed_over(tmp_path):
    list(make(tmp_path, samples(40)))
    newest = files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    served = served_by(tmp_path, adapter(), network())
    assert torch.allclose(served.predict(samples(3)), network()(samples(3)), atol=1e-6)
    with pytest.raises(CheckpointError, match="damaged"):
        served_by(tmp_path, adapter(), network(), generation=2)


def test_where_the_shipped_model_answers_it_is_what_is_exported(tmp_path):
    x = samples(200)
    right = network()(x).argmax(1)
    loop = make(tmp_path / "floor", zip(x, right), Wrong(fixed(), after=3), floor=Floor(window=50, margin=0.06))
    list(loop)
    assert not loop.floor.adapted
    shipped = network()
    assert served_by(tmp_path / "floor", fixed(), shipped) is shipped
    list(make(tmp_path / "back", x))
    roll_back(tmp_path / "back", shipped=True)
    assert served_by(tmp_path / "back", adapter(), shipped) is shipped


def test_another_model_adapter_or_generation_is_named(tmp_path):
    list(make(tmp_path, samples(20)))
    with pytest.raises(CheckpointError, match="another shipped model"):
        served_by(tmp_path, adapter(), network(seed=1))
    with pytest.raises(CheckpointError, match="the state is of BatchNormAdapter"):
        served_by(tmp_path, Tent(network()), network())
    with pytest.raises(CheckpointError, match=r"no generation 9 \(generations there: 1, 2\)"):
        served_by(tmp_path, adapter(), network(), generation=9)
