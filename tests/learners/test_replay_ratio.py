import pytest
from torch import nn

from driftline.errors import ConfigError
from driftline.learners import FixedReplayRatio, GradientLearner, ReservoirReplay
from tests.learners.states import same
from tests.learners.test_gradient import SGD, network, stream


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 1 / 3, 1.5, 2.75])
def test_updates_are_spread_evenly_and_add_up(ratio):
    fixed, model = FixedReplayRatio(ratio), nn.Linear(1, 1)
    made = [fixed.ratio(n, model) for n in range(1200)]
    assert sum(made) == round(1200 * ratio)
    assert max(made) - min(made) <= 1


def test_half_an_update_is_one_at_every_second_batch_and_all_are_remembered():
    half = GradientLearner(network(), SGD, replay=ReservoirReplay(1000), replay_ratio=0.5)
    before = network().state_dict()
    changed = []
    for x, y in stream(6):
        half.learn(x, y)
        changed.append(not same(half.model.state_dict(), before))
        before = {name: value.clone() for name, value in half.model.state_dict().items()}
    assert changed == [True, False] * 3
    assert len(half.replay) == 36
    assert half.describe()["parameters"]["replay_ratio"] == {"name": "FixedReplayRatio", "updates": 0.5}


def test_a_whole_number_is_one_whichever_way_it_is_written():
    whole, written = (GradientLearner(network(), SGD, replay=ReservoirReplay(9), replay_ratio=r) for r in (2, 2.0))
    for x, y in stream(5):
        whole.learn(x, y)
        written.learn(x, y)
    assert same(whole.state_dict(), written.state_dict())


@pytest.mark.parametrize("ratio", [-0.5, float("inf"), float("nan")])
def test_a_ratio_below_zero_or_not_finite_is_refused(ratio):
    with pytest.raises(ConfigError, match="replay_ratio=.*0 or more updates per batch"):
        GradientLearner(network(), SGD, replay_ratio=ratio)
