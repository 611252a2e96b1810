import numpy as np
import pytest

from driftline.errors import ConfigError, DataError
from driftline.metrics.stability import learning_curve_area, stability_gap
from tests.golden import golden, golden_names

FLOAT32 = 1e-6  # the published code averages in float32

CASES = golden_names("metrics", "stability_gap_*")


def drawn(rows=60, tasks=3):
    acc = np.random.default_rng(5).random((rows, tasks))
    return acc, np.repeat(np.arange(tasks), rows // tasks)


@pytest.mark.parametrize("name", CASES)
def test_minimum_and_worst_case_accuracy_equal_the_published_code_after_every_evaluation(name):
    case, config = golden("metrics", name)
    gap = stability_gap(case["acc"], case["current_task"], config["windows"])
    np.testing.assert_allclose(gap.min_acc, case["min_acc"], rtol=0, atol=FLOAT32)
    np.testing.assert_allclose(gap.min_acc_mean, case["min_acc_mean"], rtol=0, atol=FLOAT32)
    np.testing.assert_allclose(gap.wc_acc, case["wc_acc"], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", CASES)
def test_windowed_forgetting_and_plasticity_equal_the_published_code_after_every_evaluation(name):
    case, config = golden("metrics", name)
    gap = stability_gap(case["acc"], case["current_task"], config["windows"])
    for w in config["windows"]:
        np.testing.assert_allclose(gap.forgetting[w], case[f"wf{w}"], rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(gap.plasticity[w], case[f"wp{w}"], rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(gap.forgetting_mean[w], case[f"wf{w}_mean"], rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(gap.plasticity_mean[w], case[f"wp{w}_mean"], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", CASES)
def test_learning_curve_area_equals_the_published_code_after_every_evaluation(name):
    case, config = golden("metrics", name)
    area = learning_curve_area(case["acc"], case["current_task"], config["lca_beta"])
    np.testing.assert_allclose(area, case["lca"], rtol=0, atol=FLOAT32)


def test_tasks_not_learned_yet_are_not_read():
    acc, task = drawn()
    blank = np.where(np.arange(3) <= task[:, None], acc, np.nan)
    whole, read = stability_gap(acc, task, [5]), stability_gap(blank, task, [5])
    np.testing.assert_array_equal(whole.wc_acc, read.wc_acc)
    np.testing.assert_array_equal(whole.forgetting[5], read.forgetting[5])
    np.testing.assert_array_equal(learning_curve_area(acc, task, 5), learning_curve_area(blank, task, 5))


def test_values_after_an_evaluation_do_not_depend_on_later_ones():
    acc, task = drawn()
    whole, half = stability_gap(acc, task, [4]), stability_gap(acc[:33], task[:33], [4])
    np.testing.assert_array_equal(whole.min_acc[:33], half.min_acc)
    np.testing.assert_array_equal(whole.plasticity_mean[4][:33], half.plasticity_mean[4])


def test_a_window_longer_than_the_record_sees_the_largest_change_anywhere():
    acc = np.array([[0.5], [0.25], [0.875], [0.75], [0.125]])
    gap = stability_gap(acc, [0] * 5, [100])
    assert gap.forgetting[100][-1, 0] == 0.875 - 0.125
    assert gap.plasticity[100][-1, 0] == 0.875 - 0.25


def test_a_task_that_returns_is_current_again_and_keeps_its_minimum_for_later():
    acc = np.array([[0.9, 0.0], [0.3, 0.5], [0.1, 0.4], [0.8, 0.6]])
    gap = stability_gap(acc, [0, 1, 0, 1], [2])
    assert gap.min_acc[:, 0].tolist()[1:] == [0.3, 0.3, 0.3]
    assert gap.min_acc_mean[2] == 0.4  # only task 1 is not current there
    assert gap.wc_acc[2] == (0.1 + 0.4) / 2
    assert gap.wc_acc[3] == (0.6 + 0.3) / 2


def test_unusable_records_are_refused_with_their_place():
    acc, task = drawn()
    with pytest.raises(DataError, match="shape"):
        stability_gap(acc, task[:-1])
    with pytest.raises(DataError, match=r"0\.\.2"):
        stability_gap(acc, task + 1)
    acc[25, 0] = np.nan
    with pytest.raises(DataError, match=r"acc\[25, 0\] is nan"):
        stability_gap(acc, task)
    with pytest.raises(ConfigError, match="at least 2"):
        stability_gap(np.zeros((3, 1)), [0, 0, 0], windows=[1])
    with pytest.raises(ConfigError, match="beta=0"):
        learning_curve_area(np.zeros((3, 1)), [0, 0, 0], beta=0)
