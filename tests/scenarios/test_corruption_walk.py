import itertools

import numpy as np
import pytest
import torch

import driftline
from driftline.errors import ConfigError, ScenarioError
from driftline.scenarios.corruption_walk import LEVELS, RESOLUTION, best_path, corruption_walk, measure_accuracy
from driftline.stream import Dataset, Segment


def images(samples=30):
    x = torch.rand(samples, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Dataset(x, torch.arange(samples) % 3)


def every_path(start, levels):
    """All monotone paths from (start, 0) to (0, j)."""
    for end in range(1, levels):
        moves = start + end
        for down in itertools.combinations(range(moves), start):
            i, j = start, 0
            path = [(i, j)]
            for move in range(moves):
                i, j = (i - 1, j) if move in down else (i, j + 1)
                path.append((i, j))
            yield path


@pytest.mark.parametrize("seed", range(6))
def test_the_path_is_the_best_of_all(seed):
    table = np.random.default_rng(seed).random((5, 5))
    for target in (0.1, 0.5, 0.8):
        path = best_path(table, 3, target)
        means = [np.mean([table[place] for place in one]) for one in every_path(3, 5)]
        found = np.mean([table[place] for place in path])
        assert abs(abs(found - target) - np.abs(np.array(means) - target).min()) <= RESOLUTION
        assert path[0] == (3, 0) and path[-1][0] == 0 and path[-1][1] > 0
        assert path in list(every_path(3, 5))


def severities(name):
    parts = dict(part.rsplit(" ", 1) for part in name.split(" + ")) if name != "clean" else {}
    return {key: float(value) for key, value in parts.items()}


def test_the_walk_changes_one_corruption_by_one_level_at_each_step():
    stream = corruption_walk(images(), speed=7, steps=120, difficulty=0.5)
    assert len(stream.segments) == 120 and all(len(s) == 7 for s in stream.segments)
    seen = [severities(s.name) for s in stream.segments]
    for before, after in itertools.pairwise(seen):
        moved = {n: (before.get(n, 0), after.get(n, 0)) for n in {*before, *after} if before.get(n) != after.get(n)}
        assert len(moved) == 1
        ((low, high),) = (sorted(pair) for pair in moved.values())
        assert LEVELS.index(high) - LEVELS.index(low) == 1
    assert len({name for one in seen for name in one}) > 2 and max(map(len, seen)) == 2


@pytest.mark.parametrize("difficulty", [0.3, 0.5, 0.7])
def test_the_walk_stays_at_its_difficulty(difficulty):
    """Each whole path's mean is at the target, so the walk's is too."""
    stream = corruption_walk(images(), speed=1, steps=300, difficulty=difficulty)
    found = np.mean([1 - sum(severities(s.name).values()) / 10 for s in stream.segments])
    assert abs(found - difficulty) < 0.04


def test_named_difficulties_are_ordered():
    means = []
    for difficulty in ("hard", "medium", "easy"):
        stream = corruption_walk(images(), speed=1, steps=200, difficulty=difficulty)
        means.append(np.mean([sum(severities(s.name).values()) for s in stream.segments]))
    assert means == sorted(means, reverse=True) and means[0] > means[2] + 2


def test_tables_of_a_model_are_used():
    """Under a corruption that this model cannot be fooled by the walk is free; the other holds it."""
    flat, steep = np.full((18, 18), 0.9), np.repeat(np.linspace(1, 0, 18)[:, None], 18, axis=1)
    tables = {"fog+contrast": steep.tolist(), "contrast+fog": flat.tolist()}
    stream = corruption_walk(images(), difficulty=0.9, speed=1, steps=30, order=["fog", "contrast"], accuracy=tables)
    assert len(stream.segments) == 30


def test_measured_accuracy_is_the_models():
    data = Segment.of(driftline.load("digits"))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.eye(10)[0])
    tables = measure_accuracy(model, data, ["fog", "contrast"], samples=100, every=8)
    share = float((data.labels()[:100] == 0).double().mean())
    np.testing.assert_allclose(np.array(tables["fog+contrast"]), share)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"difficulty": "brutal"}, ConfigError),
        ({"difficulty": 1.5}, ConfigError),
        ({"speed": 0}, ScenarioError),
        ({"steps": 0}, ScenarioError),
        ({"order": ["fog"]}, ConfigError),
        ({"order": ["fog", "fogg"]}, ConfigError),
        ({"accuracy": {}}, ConfigError),
        ({"order": ["fog", "snow"], "accuracy": {"fog+snow": [[0.5]], "snow+fog": [[0.5]]}}, ConfigError),
    ],
)
def test_settings_out_of_range_are_refused(settings, error):
    with pytest.raises(error, match="fogg|" + [*settings][-1]):
        corruption_walk(images(), **settings)
