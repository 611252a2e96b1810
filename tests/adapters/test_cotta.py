import pytest
import torch
from torch import nn

from driftline.adapters import CoTTA
from driftline.adapters.cotta import confidence_threshold
from driftline.errors import ConfigError, InputError
from driftline.stream.seeds import generator
from tests.adapters.recorded import Case, Recorded
from tests.golden import golden_names

VIEWS = {
    "identity": lambda x, random: x,
    "hflip": lambda x, random: x.flip(3),
    "vflip": lambda x, random: x.flip(2),
    "rot180": lambda x, random: x.flip(2, 3),
}
X = torch.rand(6, 3, 8, 8, generator=generator(1))


class Replayed(CoTTA):
    """CoTTA whose masks were recorded."""

    recorded: dict

    def restore_masks(self):
        return [self.recorded[name][self.batches] for name, _ in self.model.named_parameters()]


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", golden_names("adapters", "cotta_*"))
def test_recorded(name, variant):
    case = Case(name)
    given = case.hparams
    adapter = Replayed(
        case.model(),
        optimizer=case.step(),
        threshold=given["p_th"],
        views=given["n_augmentations"],
        momentum=given["mt"],
        restore=given["rst"],
        symmetric=given["loss"] == "symmetric",
        augmentations=[VIEWS[view] for view in given["augmentations"]],
        variant=variant,
    )
    adapter.recorded = case.part("masks/")
    case.play(adapter)
    case.compare(adapter.model)
    case.compare(adapter.teacher, "teacher/")


def counted(adapter):
    """Count the teacher's forward passes."""
    calls = []
    adapter.teacher.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("variant", "threshold", "forwards"), [("paper", 0.0, 1), ("paper", 1.0, 4), ("released", 0.0, 5)]
)
def test_views_are_predicted_only_when_needed(variant, threshold, forwards):
    adapter = CoTTA(Recorded(), threshold=threshold, views=4, variant=variant)
    calls = counted(adapter)
    adapter.adapt(X)
    assert len(calls) == forwards


def test_the_anchor_has_no_graph():
    adapter = CoTTA(Recorded(), views=2)
    adapter.anchor.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    seen = []
    adapter.adapt(X)
    assert seen == [False]


def test_masks_are_restored_at_their_rate_and_differ_between_batches():
    adapter = CoTTA(Recorded(), restore=0.3)
    first = torch.cat([mask.flatten() for mask in adapter.restore_masks()])
    assert abs(float(first.float().mean()) - 0.3) < 0.05
    again = torch.cat([mask.flatten() for mask in adapter.restore_masks()])
    adapter.batches += 1
    other = torch.cat([mask.flatten() for mask in adapter.restore_masks()])
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_restoring_everything_gives_the_source_back():
    model = Recorded()
    adapter = CoTTA(model, lr=0.1, restore=1.0, views=2)
    adapter.adapt(X)
    assert all(torch.equal(p, q) for p, q in zip(adapter.model.parameters(), model.parameters()))
    assert not all(torch.equal(p, q) for p, q in zip(adapter.teacher.parameters(), model.parameters()))


def test_the_threshold_follows_the_published_rule():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.cat([x.log(), (1 - x).log()], 1)

    confidence = torch.linspace(0.5, 1, 101)[:, None].clamp(max=0.9999)
    found = confidence_threshold(Sure(), confidence)
    assert abs(found - (torch.quantile(confidence, 0.05).item() - 0.05)) < 1e-6


def test_one_image_at_a_time_stays_finite():
    adapter = CoTTA(Recorded(), views=2)
    assert all(torch.isfinite(adapter.adapt(x[None])).all() for x in X)


def test_images_beyond_0_and_1_and_other_data_are_refused():
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        CoTTA(Recorded()).adapt(X * 2)
    with pytest.raises(InputError, match="images"):
        CoTTA(nn.Sequential(nn.Linear(4, 3))).adapt(torch.rand(5, 4))


@pytest.mark.parametrize("broken", ["model", "teacher", "anchor"])
def test_nan_activations_change_nothing(broken):
    adapter = CoTTA(Recorded(), views=2)
    with torch.no_grad():
        getattr(adapter, broken).fc.bias[0] = float("nan")
    before = [p.detach().clone() for part in (adapter.model, adapter.teacher) for p in part.parameters()]
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    after = [p for part in (adapter.model, adapter.teacher) for p in part.parameters()]
    assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(before, after))
    assert not adapter.optimizer.state and adapter.batches == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 1.5},
        {"views": 0},
        {"momentum": -0.1},
        {"restore": 2.0},
        {"variant": "official"},
        {"augmentations": []},
        {"lr": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CoTTA(Recorded(), **settings)
