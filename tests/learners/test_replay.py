import numpy as np
import pytest
import torch
from scipy.stats import chi2

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import ClassBalancedReplay, ReservoirReplay, SlidingReplay
from driftline.stream import checkpoint
from tests.learners.states import kept, same

KINDS = [ReservoirReplay, SlidingReplay, ClassBalancedReplay]
UNLIKELY = 1e-3  # a right implementation fails with this probability per seed; the seeds are fixed


def numbered(start, stop, classes=5):
    """Samples whose values are their positions, and labels that follow from them."""
    x = torch.arange(start, stop, dtype=torch.float32)
    return x.unsqueeze(1), x.long() % classes


def positions(memory):
    return sorted(int(v) for v in memory.sample(memory.capacity)[0].flatten())


def feed(memory, n, batch):
    for start in range(0, n, batch):
        memory.add(*numbered(start, min(start + batch, n)))
    return memory


def p_value(counts, trials, drawn):
    """Chi-square test that each of len(counts) items is in a set of ``drawn`` equally often."""
    p = drawn / len(counts)
    statistic = ((counts - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (len(counts) - 1) / len(counts)
    return chi2.sf(statistic, len(counts) - 1)


@pytest.mark.parametrize(("n", "batch", "capacity", "trials"), [(160, 16, 20, 2000), (512, 512, 32, 1000)])
def test_a_reservoir_holds_every_sample_with_the_same_probability(n, batch, capacity, trials):
    counts = np.zeros(n)
    for seed in range(trials):
        counts[positions(feed(ReservoirReplay(capacity, seed), n, batch))] += 1
    # Where two samples of one batch meet in a slot only one stays, so a memory always holds `capacity` of them.
    assert counts.sum() == trials * capacity
    assert p_value(counts, trials, capacity) > UNLIKELY


def test_the_chi_square_test_would_notice_one_count_for_a_whole_batch():
    counts, rng = np.zeros(160), np.random.default_rng(0)
    for _ in range(2000):
        slots = np.arange(20)
        for start in range(20, 160, 20):
            for n in range(start, start + 20):
                if (slot := rng.integers(start)) < 20:
                    slots[slot] = n
        counts[slots] += 1
    assert p_value(counts, 2000, 20) < UNLIKELY


@pytest.mark.parametrize("batch", [1, 3, 10, 64])
def test_a_sliding_memory_holds_the_last_samples(batch):
    memory = SlidingReplay(10)
    for start in range(0, 192, batch):
        memory.add(*numbered(start, start + batch))
        assert positions(memory) == list(range(max(0, start + batch - 10), start + batch))


def imbalanced(seed=0):
    """Ten classes, the rarest with 10 samples and the most frequent with 1000, shuffled; x is the position."""
    sizes = np.geomspace(1000, 10, 10).round().astype(int)
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), sizes))
    return torch.arange(len(y), dtype=torch.float32).unsqueeze(1), torch.from_numpy(y), sizes


def test_a_class_balanced_memory_holds_as_many_of_each_class():
    x, y, _ = imbalanced()
    memory = ClassBalancedReplay(60)
    for start in range(0, len(x), 16):
        memory.add(x[start : start + 16], y[start : start + 16])
    assert memory.sample(60)[1].bincount().tolist() == [6] * 10


def test_a_class_balanced_memory_holds_all_of_the_rare_classes_and_shares_the_rest():
    x, y, sizes = imbalanced()
    memory = ClassBalancedReplay(200)
    for start in range(0, len(x), 7):
        memory.add(x[start : start + 7], y[start : start + 7])
    counts = memory.sample(200)[1].bincount().numpy()
    shared = sizes > counts.max()
    assert counts.sum() == 200
    np.testing.assert_array_equal(counts[~shared], sizes[~shared])
    assert (~shared).any() and np.ptp(counts[shared]) <= 1


def test_a_class_balanced_memory_draws_uniformly_within_a_class():
    y = torch.tensor(([0] * 9 + [1]) * 20)  # 180 of class 0 before, between and after those of class 1
    x = torch.arange(200.0).unsqueeze(1)
    counts, trials = np.zeros(200), 2000
    for seed in range(trials):
        memory = ClassBalancedReplay(20, seed)
        for start in range(0, 200, 25):
            memory.add(x[start : start + 25], y[start : start + 25])
        counts[positions(memory)] += 1
    assert counts[y == 0].sum() == counts[y == 1].sum() == 10 * trials
    assert p_value(counts[y == 0], trials, 10) > UNLIKELY
    assert p_value(counts[y == 1], trials, 10) > UNLIKELY


@pytest.mark.parametrize("count", [1, 5, 19, 20, 30])
def test_a_draw_is_uniform_and_without_replacement(count):
    memory = feed(SlidingReplay(40, seed=3), 40, 40)
    counts, firsts, trials = np.zeros(40), np.zeros(40), 4000
    for _ in range(trials):
        drawn = memory.sample(count)[0].flatten().long().tolist()
        assert len(set(drawn)) == count
        counts[drawn] += 1
        firsts[drawn[0]] += 1
    assert p_value(counts, trials, count) > UNLIKELY
    assert p_value(firsts, trials, 1) > UNLIKELY


def test_a_draw_from_a_memory_that_is_not_full_gives_what_there_is():
    memory = ReservoirReplay(100)
    assert memory.sample(5) is None
    memory.add(*numbered(0, 3))
    assert positions(memory) == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7, 512])
def test_capacity_is_never_exceeded_and_samples_keep_their_labels(kind, batch):
    memory, offered = kind(30), 0
    for start in range(0, 600, batch):
        memory.add(*numbered(start, start + batch))
        offered += batch
        x, y = memory.sample(1000)
        assert len(x) == len(memory) == min(30, offered)
        assert len(set(x.flatten().tolist())) == len(x)
        assert torch.equal(x.flatten().long() % 5, y)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_in_bytes_does_not_grow(kind):
    memory = feed(kind(30), 1, 1)
    first = memory.nbytes
    feed(memory, 600, 9)
    assert memory.nbytes == first == 30 * (4 + 8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_does_not_change_with_the_batch_it_came_in(kind):
    memory, (x, y) = kind(10), numbered(0, 10)
    memory.add(x, y)
    x.zero_(), y.zero_()
    assert positions(memory) == list(range(10))
    memory.sample(10)[0].zero_()
    assert positions(memory) == list(range(10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 12, 120])
def test_a_saved_memory_continues_bit_identically(kind, at, tmp_path):
    whole, resumed = feed(kind(30, seed=4), at, 6), kind(30, seed=9)
    checkpoint.save(tmp_path / "state", whole.state_dict())
    resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
    for start in range(at, at + 120, 8):
        for memory in (whole, resumed):
            memory.add(*numbered(start, start + 8))
        assert same(list(whole.sample(8)), list(resumed.sample(8)))
    assert same(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_kind_or_capacity_is_refused_and_nothing_changes(kind):
    memory = feed(kind(30), 100, 10)
    before = kept(memory)
    other = KINDS[(KINDS.index(kind) + 1) % 3]
    with pytest.raises(CheckpointError, match="capacity 31"):
        memory.load_state_dict(feed(kind(31), 50, 10).state_dict())
    with pytest.raises(CheckpointError, match=other.__name__):
        memory.load_state_dict(feed(other(30), 50, 10).state_dict())
    assert same(memory.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_every_draw_and_nothing_else_does(kind):
    def draws(seed):
        memory = feed(kind(20, seed), 200, 10)
        return [memory.sample(5)[0].flatten().tolist() for _ in range(4)]

    torch.manual_seed(0)
    expected, state = draws(1), torch.get_rng_state()
    torch.manual_seed(5)
    assert draws(1) == expected != draws(2)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_different_seeds_keep_different_samples():
    kept_by = {tuple(positions(feed(ReservoirReplay(20, seed), 200, 10))) for seed in range(20)}
    assert len(kept_by) == 20


@pytest.mark.parametrize("kind", [ReservoirReplay, SlidingReplay])
def test_regression_targets_stay_with_their_samples(kind):
    memory, x = kind(10), torch.arange(50.0).unsqueeze(1)
    for start in range(0, 50, 4):
        memory.add(x[start : start + 4], torch.cat((x, -x), 1)[start : start + 4])
    x, y = memory.sample(10)
    assert y.dtype == torch.float32 and torch.equal(y, torch.cat((x, -x), 1))


def test_class_balance_without_classes_is_refused():
    with pytest.raises(InputError, match="ReservoirReplay"):
        ClassBalancedReplay(10).add(torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_without_room_is_refused(kind):
    with pytest.raises(ConfigError, match="capacity=0"):
        kind(0)
