import pickle

import pytest
import torch

import driftline
from driftline import scenarios
from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios import corruptions
from driftline.scenarios.continual_tta import ORDERS
from driftline.stream import Dataset


def images(samples=40, seed=0):
    x = torch.rand(samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Dataset(x, torch.arange(samples) % 4)


def names(stream):
    return [segment.name for segment in stream.segments]


def test_the_standard_stream_is_the_fifteen_corruptions_at_severity_5_over_the_same_images():
    stream = scenarios.continual_tta(images())
    assert names(stream) == [f"{name} 5" for name in corruptions.STANDARD]
    assert stream.domain_names == tuple(names(stream))
    assert all(torch.equal(s.rows.sort().values, torch.arange(40)) for s in stream.segments)


def test_every_published_order_holds_the_fifteen():
    for order, content in ORDERS.items():
        assert sorted(content) == sorted(corruptions.STANDARD), order
        assert names(scenarios.continual_tta(images(), order=order)) == [f"{name} 5" for name in content]


def test_a_random_order_is_of_the_seed():
    first, again, other = (names(scenarios.continual_tta(images(), seed=s, order="random")) for s in (1, 1, 2))
    assert first == again != other and sorted(first) == sorted(other)


def test_samples_are_what_the_corruption_makes_of_the_first_images():
    stream = scenarios.continual_tta(images(), order=["contrast"], severity=3, samples=10, shuffle=False)
    x, y = stream.read(0, 10)
    expected = corruptions.get("contrast", 3)(images().x[:10], torch.Generator())
    assert torch.equal(x, expected) and torch.equal(y, images().y[:10])


def test_severity_zero_shows_images_as_they_are():
    stream = scenarios.continual_tta(images(), order=["fog"], severity=0, shuffle=False)
    assert torch.equal(stream.read(0, 40)[0], images().x)


def test_bytes_are_shown_as_fractions():
    data = Dataset((images().x * 255).byte(), images().y)
    x, _ = scenarios.continual_tta(data, order=["brightness", "jpeg_compression"]).read(0, 80)
    assert x.is_floating_point() and float(x.min()) >= 0 and float(x.max()) <= 1


def test_mixed_domains_come_in_every_batch_and_are_told_apart():
    stream = scenarios.mixed_tta(images(), order=["fog", "contrast", "snow"])
    batch = next(stream.batches(60))
    assert len(stream.segments) == 1 and len(stream) == 120
    assert set(stream.domains(batch).tolist()) == {0, 1, 2}
    counts = torch.bincount(torch.cat([stream.domains(b) for b in stream.batches(60)]))
    assert counts.tolist() == [40, 40, 40]


def test_gradual_schedules():
    rising = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    cotta = names(scenarios.gradual_tta(images(), samples=1))
    assert len(cotta) == 5 + 14 * 9
    assert cotta[:14] == [f"gaussian_noise {s}" for s in (5, 4, 3, 2, 1)] + [f"shot_noise {s}" for s in rising]
    each = names(scenarios.gradual_tta(images(), schedule="each", samples=1, order=["fog", "snow"]))
    assert each == [f"{name} {s}" for name in ("fog", "snow") for s in rising]


def test_recurring_visits_show_the_same_images_in_the_same_order():
    stream = scenarios.recurring_tta(images(), visits=3, order=["fog", "snow"])
    assert names(stream)[::2] == [f"fog 5, visit {i}" for i in range(3)] and stream.domain_names == ("fog 5", "snow 5")
    assert torch.equal(stream.segments[0].rows, stream.segments[4].rows)
    assert len(scenarios.recurring_tta(images()).segments) == 20 * 15


def test_labels_come_in_runs_within_each_domain():
    data = images(400)
    stream = scenarios.continual_tta(data, order=["fog", "snow"], correlation="note")
    for segment in stream.segments:
        labels = segment.labels()
        assert int((labels[1:] != labels[:-1]).sum()) < 16
        assert torch.equal(segment.rows.sort().values, torch.arange(400))


def test_the_record_says_order_severity_and_samples():
    said = scenarios.continual_tta(images(), seed=3, order="random", severity=2, samples=10).describe()
    assert said["parameters"]["severity"] == 2 and said["parameters"]["samples"] == 10
    assert list(said["domains"].values()) == [10] * 15 and len(said["segments"]) == 15


def test_streams_pickle():
    stream = scenarios.mixed_tta(images(), order=["fog", "glass_blur"])
    again = pickle.loads(pickle.dumps(stream))
    assert torch.equal(stream.read(5, 70)[0], again.read(5, 70)[0])


@pytest.mark.parametrize(
    ("settings", "error", "found"),
    [
        ({"order": "alphabetical"}, ConfigError, "alphabetical"),
        ({"order": ["fogg"]}, ConfigError, "did you mean 'fog'"),
        ({"order": []}, ConfigError, "order"),
        ({"severity": 6}, ConfigError, "severity=6"),
        ({"severity": 0.5}, ConfigError, "severity=0.5"),
        ({"samples": 41}, ScenarioError, "samples=41"),
        ({"correlation": "strong"}, ScenarioError, "correlation"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, found):
    with pytest.raises(error, match=found):
        scenarios.continual_tta(images(), **settings)


def test_other_settings_out_of_range_are_refused():
    with pytest.raises(ScenarioError, match="schedule"):
        scenarios.gradual_tta(images(), schedule="linear")
    with pytest.raises(ScenarioError, match="visits"):
        scenarios.recurring_tta(images(), visits=0)


def test_images_outside_the_unit_range_are_refused():
    with pytest.raises(ScenarioError, match="standardised"):
        scenarios.continual_tta(Dataset(2 * images().x - 1, images().y))
    with pytest.raises(ScenarioError, match="images"):
        scenarios.continual_tta(Dataset(torch.rand(5, 4), torch.arange(5) % 2))


def test_an_adapter_runs_on_grey_images():
    stream = scenarios.continual_tta(driftline.load("digits"), samples=50)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10)
    )
    metric = driftline.metrics.DomainError()
    report = driftline.run(stream, driftline.adapters.Tent(model), batch_size=25, metrics=[metric])
    assert {f"domain_error/{name} 5" for name in corruptions.STANDARD} <= set(report.results)


def test_fresh_images_are_dealt_out_over_the_corruptions():
    stream = scenarios.continual_tta(images(), order=["fog", "snow", "frost"], fresh=True)
    assert [len(s) for s in stream.segments] == [14, 13, 13]
    assert torch.equal(torch.cat([s.rows for s in stream.segments]).sort().values, torch.arange(40))
    few = scenarios.continual_tta(images(), order=["fog", "snow"], samples=20, fresh=True)
    assert [len(s) for s in few.segments] == [20, 20]
    with pytest.raises(ScenarioError, match=r"samples=21: .*40 images for 2 corruptions"):
        scenarios.continual_tta(images(), order=["fog", "snow"], samples=21, fresh=True)


def test_one_class_after_another_dominates_a_domain():
    stream = scenarios.continual_tta(images(400), order=["fog"], correlation="sar")
    phases = stream.segments[0].labels().reshape(4, 100)
    assert sorted(phases.mode(1).values.tolist()) == [0, 1, 2, 3]
