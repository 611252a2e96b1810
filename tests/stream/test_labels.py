from __future__ import annotations

import pytest
import torch

from driftline.stream import NEVER
from driftline.stream.labels import LabelQueue


def put(queue, first, due):
    """Add samples numbered from ``first`` on, with their number as label."""
    y = torch.arange(first, first + len(due))
    queue.add(y.float().unsqueeze(1), y, torch.tensor(due))


def taken(queue, now):
    arrived = queue.pop(now)
    if arrived is None:
        return []
    x, y = arrived
    assert x.flatten().long().tolist() == y.tolist()
    return y.tolist()


def test_a_label_comes_once_after_the_position_at_which_it_is_due():
    queue = LabelQueue()
    put(queue, 0, [3, 4, 5])
    assert taken(queue, 3) == []
    assert taken(queue, 5) == [0, 1]
    assert taken(queue, 5) == []
    assert len(queue) == 1
    assert taken(queue, 100) == [2]
    assert not queue


def test_samples_whose_label_never_comes_do_not_wait():
    queue = LabelQueue()
    put(queue, 0, [NEVER, 7, NEVER])
    put(queue, 3, [NEVER, NEVER])
    queue.add(torch.zeros(2, 1), None, torch.tensor([5, 6]))
    assert len(queue) == 1
    assert taken(queue, 100) == [1]


def test_labels_come_in_the_order_in_which_they_are_due():
    queue = LabelQueue()
    put(queue, 0, [1, 10])
    put(queue, 2, [9, 2])
    put(queue, 4, [5, 30])
    assert taken(queue, 11) == [0, 3, 4, 2, 1]
    assert taken(queue, 31) == [5]


def test_of_labels_that_are_due_at_once_the_older_sample_comes_first_however_often_one_looks():
    for looks in ([100], [2, 100], [2, 6, 100]):
        queue = LabelQueue()
        put(queue, 0, [1, 8])
        put(queue, 2, [5, 8])
        put(queue, 4, [0, 8])
        assert [y for now in looks for y in taken(queue, now)][-3:] == [1, 3, 5], looks


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_delivery_is_the_same_after_a_state_round_trip_and_for_any_batch_size(cut):
    rng = torch.Generator().manual_seed(3)
    due = torch.arange(40) + torch.randint(1, 12, (40,), generator=rng)
    expected = sorted(range(40), key=lambda i: (int(due[i]), i))
    for size in (1, 4, 7):
        queue, order = LabelQueue(), []
        for start in range(0, 40, size):
            if start <= cut < start + size:
                state = queue.state_dict()
                queue = LabelQueue()
                queue.load_state_dict(state)
            put(queue, start, due[start : start + size].tolist())
            order += taken(queue, start + size)
        assert order + taken(queue, 1000) == expected


def test_the_state_is_tensors_in_lists():
    queue = LabelQueue()
    put(queue, 0, [3, 4])
    state = queue.state_dict()
    assert [[type(part) for part in entry] for entry in state["waiting"]] == [[torch.Tensor] * 3]
