import json
import math

import numpy as np
import pytest

from driftline.errors import CheckpointError, ConfigError, DataError, InputError
from driftline.metrics.summaries import (
    EvaluationSchedule,
    a_auc,
    a_avg,
    a_last,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    f_last,
    forgetting,
    forward_transfer,
)
from tests.golden import golden, golden_names

NAN = float("nan")
EXACT = 1e-12  # the same float64 sums, possibly in another order
FLOAT32 = 1e-8  # GEM's code holds accuracies below 1 in float32
R = np.array([[0.5, 0.125, 0.25], [0.25, 1.0, 0.5], [0.75, 0.5, 0.875]])


def lower(matrix, fill=NAN):
    return np.where(np.tril(np.ones_like(matrix, dtype=bool)), matrix, fill)


def drawn_matrix(tasks=7):
    return np.random.default_rng(3).random((tasks, tasks))


@pytest.mark.parametrize("name", golden_names("metrics", "cl_matrix_*"))
def test_matrix_summaries_equal_the_published_codes(name):
    case, _ = golden("metrics", name)
    r, baseline = case["R"], case["baseline"]
    gem_accuracy, gem_bwt, gem_fwt = case["gem_final_bwt_fwt"]
    pairs = [
        (average_accuracy(r), case["average_accuracy_final"]),
        (average_incremental_accuracy(r), case["average_incremental_accuracy"]),
        (forgetting(r), case["chaudhry_forgetting"]),
        (forgetting(r, "facil"), case["facil_forgetting"][-1, :-1].mean()),
        (forgetting(r, "mammoth"), case["mammoth_forgetting_full_matrix"]),
        (forgetting(lower(r), "mammoth"), case["mammoth_forgetting_lower"]),
        (forgetting(lower(r, fill=0.0), "mammoth"), case["mammoth_forgetting_lower"]),
        (backward_transfer(r), case["mammoth_bwt"]),
        (backward_transfer(r, "mammoth"), case["mammoth_bwt"]),
        (backward_transfer(r, "gem-code"), gem_bwt),
        (forward_transfer(r, baseline), case["mammoth_fwt"]),
        (forward_transfer(r, baseline, "mammoth"), case["mammoth_fwt"]),
        (forward_transfer(r, baseline, "gem-code"), gem_fwt),
        (average_accuracy(lower(r)), gem_accuracy),
    ]
    for ours, published in pairs:
        assert ours == pytest.approx(float(published), abs=FLOAT32)


@pytest.mark.parametrize("name", golden_names("metrics", "cl_matrix_*"))
def test_accuracy_and_forgetting_after_every_task_equal_the_published_code(name):
    case, _ = golden("metrics", name)
    for tasks in range(2, len(case["R"]) + 1):
        r = lower(case["R"])[:tasks, :tasks]
        assert average_accuracy(r) == pytest.approx(case["facil_avg_acc"][tasks - 1], abs=EXACT)
        facil = case["facil_forgetting"][tasks - 1, : tasks - 1].mean()
        assert forgetting(r) == pytest.approx(facil, abs=EXACT)


def test_chaudhry_forgetting_is_negative_where_the_last_task_helped_and_leaves_out_rows_before_learning():
    assert forgetting([[0.5, 0.875], [0.75, 0.25]]) == -0.25
    matrix = R.copy()
    matrix[0, 1] = 1.0 + R[1, 1]
    assert forgetting(matrix) == forgetting(R) == ((0.5 - 0.75) + (1.0 - 0.5)) / 2
    assert forgetting(matrix, "mammoth") > forgetting(R, "mammoth") == (0.0 + 0.5) / 2


def test_avalanche_forgetting_is_negative_backward_transfer():
    assert forgetting(drawn_matrix(), "avalanche") == pytest.approx(-backward_transfer(drawn_matrix()), abs=EXACT)


def test_diaz_rodriguez_transfer_averages_whole_triangles():
    below = [(0.25 - 0.5), (0.75 - 0.5), (0.5 - 1.0)]
    assert backward_transfer(R, "diaz-rodriguez") == pytest.approx(sum(below) / 3)
    assert forward_transfer(R, variant="diaz-rodriguez") == pytest.approx((0.125 + 0.25 + 0.5) / 3)


@pytest.mark.parametrize("variant", ["chaudhry", "facil", "mammoth", "avalanche"])
def test_what_was_not_evaluated_above_the_diagonal_does_not_matter_for_forgetting(variant):
    assert forgetting(lower(R), variant) == forgetting(lower(R, fill=0.0), variant)


def test_summaries_that_need_a_missing_evaluation_are_nan():
    assert math.isnan(forward_transfer(lower(R), np.zeros(3)))
    matrix = R.copy()
    matrix[2, 0] = NAN
    for summary in (average_accuracy, average_incremental_accuracy, forgetting, backward_transfer):
        assert math.isnan(summary(matrix)), summary.__name__
        assert math.isfinite(summary(lower(R))), summary.__name__
    assert math.isnan(forgetting(matrix, "mammoth"))


@pytest.mark.filterwarnings("error")
def test_a_single_task_has_accuracy_but_neither_forgetting_nor_transfer():
    one = [[0.75]]
    assert average_accuracy(one) == average_incremental_accuracy(one) == 0.75
    for variant in ("chaudhry", "facil", "mammoth", "avalanche"):
        assert math.isnan(forgetting(one, variant))
    for variant in ("gem-paper", "gem-code", "mammoth", "diaz-rodriguez"):
        assert math.isnan(backward_transfer(one, variant))
        assert math.isnan(forward_transfer(one, [0.1], variant))


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros(4), np.zeros((0, 0))])
def test_a_matrix_that_is_not_square_is_refused(matrix):
    with pytest.raises(DataError, match="expected shape"):
        average_accuracy(matrix)


def test_unknown_variants_and_missing_baselines_are_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="choose one of chaudhry"):
        forgetting(R, "best")
    with pytest.raises(ConfigError, match="choose one of gem-paper"):
        backward_transfer(R, "gem")
    with pytest.raises(ConfigError, match="baseline="):
        forward_transfer(R)
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        forward_transfer(R, 0.1)
    with pytest.raises(ConfigError, match="choose one of paper"):
        EvaluationSchedule(10, variant="exact")
    with pytest.raises(ConfigError, match="at least 1"):
        EvaluationSchedule(0)


@pytest.mark.parametrize("name", golden_names("metrics", "blurry_summary_*"))
def test_periodic_summaries_equal_the_published_codes(name):
    case, _ = golden("metrics", name)
    got = [a_auc(case["test_acc"]), a_avg(case["task_acc"]), a_last(case["task_acc"]), f_last(case["cls_acc"])]
    np.testing.assert_allclose(got, [case[k] for k in ("A_auc", "A_avg", "A_last", "F_last")], rtol=0, atol=EXACT)


def test_f_last_leaves_out_classes_never_right_before_and_may_be_negative():
    assert f_last([[0.5, 0.0, NAN], [0.75, 0.0, 0.0], [0.875, 1.0, 1.0]]) == 0.75 - 0.875


@pytest.mark.filterwarnings("error")
def test_summaries_of_nothing_are_nan():
    assert all(math.isnan(summary([])) for summary in (a_auc, a_avg, a_last))
    assert math.isnan(f_last([[0.5, 0.5]]))
    assert math.isnan(f_last([[0.0, 0.0], [0.5, 0.5]]))
    with pytest.raises(DataError, match="2 dimension"):
        f_last([0.5, 0.5])


def batch_ends(task_sizes, batch_size):
    start = 0
    for size in task_sizes:
        yield from range(start + batch_size, start + size, batch_size)
        start += size
        yield start


def evaluations(schedule, ends):
    return [seen for seen in ends if schedule.due(seen)]


def without_task_ends(calls, task_sizes):
    """The periodic ones among recorded evaluations: one at each end of a task is extra."""
    calls = calls.tolist()
    for end in np.cumsum(task_sizes):
        calls.remove(end)
    return calls


@pytest.mark.parametrize("name", golden_names("metrics", "eval_schedule_*"))
def test_released_schedule_evaluates_where_si_blurry_does(name):
    case, config = golden("metrics", name)
    schedule = EvaluationSchedule(config["eval_period"], variant="released")
    seen = evaluations(schedule, batch_ends(config["task_sizes"], config["batch_size"]))
    assert seen == without_task_ends(case["siblurry_eval_at"], config["task_sizes"])
    assert a_auc([1 - 1 / (1 + n / 100) for n in seen]) == pytest.approx(float(case["siblurry_A_auc"]), abs=EXACT)


@pytest.mark.parametrize("name", golden_names("metrics", "eval_schedule_*"))
def test_paper_schedule_with_single_samples_evaluates_where_i_blurry_does(name):
    case, config = golden("metrics", name)
    seen = evaluations(EvaluationSchedule(config["eval_period"]), batch_ends(config["task_sizes"], 1))
    assert seen == without_task_ends(case["iblurry_eval_at"], config["task_sizes"])
    assert a_auc([1 - 1 / (1 + n / 100) for n in seen]) == pytest.approx(float(case["iblurry_A_auc"]), abs=EXACT)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 25, 64])
def test_paper_schedule_evaluates_at_the_first_batch_end_at_or_past_each_multiple(batch_size):
    ends = list(range(batch_size, 500, batch_size))
    first = {min(e for e in ends if e >= multiple) for multiple in range(10, ends[-1] + 1, 10)}
    assert evaluations(EvaluationSchedule(10), ends) == sorted(first)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_restored_schedule_goes_on_where_the_saved_one_stopped(variant):
    ends = list(range(16, 400, 16))
    whole = evaluations(EvaluationSchedule(10, variant), ends)
    first, second = EvaluationSchedule(10, variant), EvaluationSchedule(10, variant)
    start = evaluations(first, ends[:7])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert start + evaluations(second, ends[7:]) == whole


def test_a_schedule_refuses_a_negative_count_and_the_state_of_another_period():
    with pytest.raises(InputError, match="samples_seen=-1"):
        EvaluationSchedule(10).due(-1)
    with pytest.raises(CheckpointError, match="every=10"):
        EvaluationSchedule(20).load_state_dict(EvaluationSchedule(10).state_dict())
