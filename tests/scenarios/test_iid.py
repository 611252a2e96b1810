from driftline.scenarios import iid
from tests.scenarios.toy import rows, toy


def test_all_samples_are_shuffled_into_one_segment():
    stream = iid(toy(), seed=1)
    assert [s.name for s in stream.segments] == ["iid"]
    assert rows(stream) != sorted(rows(stream)) == list(range(60))
