import pytest
import torch
from torch import nn

from driftline.adapters import BatchNormAdapter
from driftline.errors import ConfigError, InputError
from tests.adapters.recorded import Case, Recorded
from tests.golden import golden_names

STATISTICS = {"bn1": "batch", "bn_alpha": "mix", "bn_ema": "running"}


@pytest.mark.parametrize("name", golden_names("adapters", "bn*"))
def test_recorded(name):
    case = Case(name)
    statistics = next(value for key, value in STATISTICS.items() if name.startswith(key))
    settings = {k: v for k, v in case.hparams.items() if k in ("alpha", "momentum")}
    adapter = BatchNormAdapter(case.model(), statistics, **settings)
    case.play(adapter)
    if statistics == "running":
        case.compare(adapter.model)


def warmed():
    """A network whose statistics are not those of a new one."""
    model = Recorded().train()
    model(2 * torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1)
    return model.eval()


X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_ends_of_a_mixture_are_the_source_and_the_batch():
    model = warmed()
    with torch.no_grad():
        source = model(X)
    batch = BatchNormAdapter(model).adapt(X)
    for ends in ({"statistics": "mix", "alpha": 0.0}, {"statistics": "prior", "prior": 1e12}):
        torch.testing.assert_close(BatchNormAdapter(model, **ends).adapt(X), source)
    for ends in ({"statistics": "mix", "alpha": 1.0}, {"statistics": "prior", "prior": 0.0}):
        torch.testing.assert_close(BatchNormAdapter(model, unbiased=False, **ends).adapt(X), batch)


def test_a_single_value_per_channel_is_normalised_by_the_source():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model(torch.randn(100, 4))
    model.eval()
    with torch.no_grad():
        for statistics in ("batch", "mix", "prior", "running"):
            torch.testing.assert_close(
                BatchNormAdapter(model, statistics).adapt(X[:1, 0, 0, :4]), model(X[:1, 0, 0, :4])
            )


def test_a_single_value_per_channel_without_source_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    adapter = BatchNormAdapter(model)
    assert adapter.adapt(torch.randn(2, 4)).shape == (2, 3)
    with pytest.raises(InputError, match="larger batches"):
        adapter.adapt(torch.randn(1, 4))


def test_running_statistics_start_at_the_source_and_reach_the_data():
    model = warmed()
    adapter = BatchNormAdapter(model, "running", momentum=0.5)
    for _ in range(40):
        adapter.adapt(X)
    found = BatchNormAdapter(model, "batch", unbiased=True).adapt(X)
    torch.testing.assert_close(adapter.adapt(X), found, atol=1e-2, rtol=1e-2)


def test_a_layer_used_in_two_places_stays_one_layer():
    shared = nn.BatchNorm1d(4)
    adapter = BatchNormAdapter(nn.Sequential(shared, nn.Linear(4, 4), shared))
    assert adapter.model[0] is adapter.model[2]


def test_nan_activations_leave_the_statistics_alone():
    adapter = BatchNormAdapter(warmed(), "running")
    with torch.no_grad():
        adapter.model.conv1.weight[0] = float("nan")
    before = adapter.model.bn2.running_mean.clone()
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(X)
    assert torch.equal(before, adapter.model.bn2.running_mean)
    assert torch.isfinite(adapter.model.bn1.running_mean).all()


def test_a_model_without_batch_normalisation_is_refused():
    with pytest.raises(ConfigError, match="no batch normalisation"):
        BatchNormAdapter(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))


@pytest.mark.parametrize(
    "settings", [{"statistics": "median"}, {"alpha": 1.5}, {"prior": -1.0}, {"momentum": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        BatchNormAdapter(Recorded(), **settings)
