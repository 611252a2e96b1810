import collections
import pickle

import pandas as pd
import pytest
import torch
from river import checks, compose, datasets, preprocessing

from driftline.errors import ConfigError, InputError
from driftline.interop.river import RiverClassifier
from driftline.interop.river.growth import grow
from driftline.learners import GradientLearner, InputNormalizer, NearestClassMean, ReservoirReplay, StreamingLDA
from driftline.learners.penalties import L2Init
from driftline.models import mlp

CHECKS = {
    *("check_repr", "check_str", "check_tags", "check_clone_same_class", "check_clone_is_idempotent", "check_doc"),
    *("check_init_has_default_params_for_tests", "check_init_default_params_are_not_mutable"),
    *("check_clone_changes_memory_addresses", "check_mutate_can_be_idempotent", "check_pickling_supports_roundtrip"),
    *("check_repr_roundtrips_clone", "check_clone_with_new_params_applies", "check_get_params_matches_signature"),
    *("check_learn_one", "check_pickling", "check_shuffle_features_no_impact", "check_emerging_features"),
    *("check_disappearing_features", "check_radically_disappearing_features", "check_predict_one_pure"),
    *("check_predict_one_before_any_learn", "check_no_state_aliasing_with_input", "check_clone_is_independent"),
    *("check_bounded_memory_growth", "check_predict_many_matches_predict_one", "check_learn_many_matches_learn_one"),
    *("check_predict_proba_many_matches_predict_proba_one", "check_seeding_is_idempotent", "check_predict_proba_one"),
    "check_classifier_tracks_seen_labels",
}
"""All that River has for such a classifier; with pandas missing, those of ``*_many`` would not be there."""


def make_learner(features, classes):
    model = mlp(features, classes, hidden=(8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return GradientLearner(model, optimizer, replay=ReservoirReplay(20), normalizer=InputNormalizer())


def make_lda(features, classes):
    return StreamingLDA(classes=classes)


def example():
    return RiverClassifier(next(RiverClassifier._unit_test_params())["make_learner"])


def test_river_has_31_checks_for_it_and_none_is_skipped():
    names = collections.Counter(check.__name__ for check in checks.yield_checks(example()))
    assert set(names) == CHECKS
    assert (len(names), names.total()) == (31, 65)
    assert not example()._unit_test_skips()


QUICK = [check for check in checks.yield_checks(example()) if check.__name__ != "check_bounded_memory_growth"]
LONG = [check for check in checks.yield_checks(example()) if check.__name__ == "check_bounded_memory_growth"]


@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
def test_it_passes_rivers_check(check):
    check(example())


@pytest.mark.slow
@pytest.mark.parametrize("check", LONG, ids=lambda check: check.__name__)
def test_it_passes_rivers_long_check(check):
    check(example())


def test_a_class_that_is_new_moves_no_other():
    model = RiverClassifier(make_learner, seed=0)
    for _ in range(100):
        model.learn_one({"a": 1.0}, "m")
        model.learn_one({"a": -1.0}, "z")
    before = model.predict_proba_one({"a": 1.0})
    model.learn_one({"a": 5.0}, "first in the alphabet")
    after = model.predict_proba_one({"a": 1.0})
    assert list(after) == ["m", "z", "first in the alphabet"]
    assert after["m"] > 0.5 and before["m"] > 0.9


@pytest.mark.parametrize("make", [make_learner, make_lda])
def test_growing_keeps_what_was_learned(make):
    small = make(3, 2)
    x, y = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    for i in range(30):
        small.learn(x[i : i + 1], y[i : i + 1])
    large = grow(small, make, (3, 2), (5, 4))
    wide = torch.nn.functional.pad(x, (0, 2))
    torch.testing.assert_close(large.predict(wide)[:, :2], small.predict(x), rtol=1e-5, atol=1e-5)
    large.learn(torch.ones(1, 5), torch.tensor([3]))


def test_growing_keeps_optimizer_memory_and_anchors():
    def make(features, classes):
        model = mlp(features, classes, hidden=(8,))
        replay = ReservoirReplay(20)
        return GradientLearner(
            model, torch.optim.Adam(model.parameters()), replay=replay, penalties=[L2Init(model, 0.01)]
        )

    small = make(3, 2)
    for i in range(10):
        small.learn(torch.full((1, 3), float(i)), torch.tensor([i % 2]))
    large = grow(small, make, (3, 2), (4, 3))
    before, after = small.optimizer.state_dict()["state"], large.optimizer.state_dict()["state"]
    assert float(after[0]["step"]) == 10
    assert torch.equal(after[0]["exp_avg"][:, :3], before[0]["exp_avg"]) and not after[0]["exp_avg"][:, 3].any()
    drawn, _ = large.replay.sample(5)
    assert drawn.shape == (5, 4) and not drawn[:, 3].any()


def test_features_may_come_one_by_one():
    model = RiverClassifier(make_lda)
    for i in range(20):
        model.learn_one({f"feature {i}": 1.0}, i % 3)
    assert model.features == [f"feature {i}" for i in range(20)]
    assert set(model.predict_proba_one({"never seen": 1.0})) == {0, 1, 2}


def test_a_value_that_is_no_number_is_refused_and_changes_nothing():
    model = RiverClassifier(make_learner, seed=0)
    model.learn_one({"a": 1.0}, 0)
    before = pickle.dumps(model)
    for value in ("red", None, float("nan"), float("inf")):
        with pytest.raises(InputError, match="'a' is|'b' is"):
            model.learn_one({"a": value}, 0)
        with pytest.raises(InputError, match="'b' is"):
            model.learn_one({"a": 1.0, "b": value}, 1)
        with pytest.raises(InputError, match="'a' is"):
            model.predict_one({"a": value})
    assert pickle.dumps(model) == before


def test_a_pickle_goes_on_where_it_was_and_holds_no_code():
    model = RiverClassifier(make_learner, seed=0)
    rows = list(datasets.Phishing().take(60))
    for x, y in rows[:30]:
        model.learn_one(x, y)
    copy = pickle.loads(pickle.dumps(model))
    for x, y in rows[30:]:
        assert copy.predict_proba_one(x) == model.predict_proba_one(x)
        copy.learn_one(x, y)
        model.learn_one(x, y)


def test_many_rows_are_learned_in_batches_when_asked():
    rows = list(datasets.Phishing().take(20))
    table, labels = pd.DataFrame([x for x, _ in rows]), pd.Series([y for _, y in rows])
    model = RiverClassifier(lambda features, classes: NearestClassMean(classes=classes), batch_size=7)
    one = RiverClassifier(lambda features, classes: NearestClassMean(classes=classes))
    model.learn_many(table, labels)
    for x, y in rows:
        one.learn_one(x, y)
    assert model.predict_many(table).tolist() == [one.predict_one(x) for x, _ in rows]


def test_it_stands_in_a_pipeline():
    model = compose.Select("age_of_domain", "is_popular") | preprocessing.StandardScaler() | RiverClassifier(make_lda)
    for x, y in datasets.Phishing().take(50):
        model.predict_one(x)
        model.learn_one(x, y)
    assert model["RiverClassifier"].features == ["age_of_domain", "is_popular"]


def test_batches_of_none_are_refused():
    with pytest.raises(ConfigError, match="batch_size=0"):
        RiverClassifier(make_lda, batch_size=0)
