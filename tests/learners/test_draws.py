from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from driftline import native
from driftline.errors import ConfigError
from driftline.learners.draws import BLOCKS, GROUP, Draws, normal_numbers, philox, split, uniform_numbers, words

PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
ONES = 0xFFFFFFFF


@pytest.fixture(params=["native", "torch"], autouse=True)
def path(request, monkeypatch):
    """Each test of this file, once with the kernels and once without."""
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip(f"no kernels here: {native.problem()}")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (PI, [0xA4093822, 0x299F31D0], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    assert philox(torch.tensor(counter).view(4, 1, 1), torch.tensor([key])).flatten().tolist() == expected


def test_words_are_those_of_their_blocks_counters():
    keys = torch.tensor([[5, 6], [ONES, 7]])
    drawn = words(keys, step=(9 << 32) + 8, lane=3, count=GROUP + 1)
    assert drawn.shape == (2, 2 * GROUP)
    for block in (0, 7, 8, 15):
        expected = philox(torch.tensor([block, 3, 8, 9]).view(4, 1, 1), keys)[..., 0]
        place = GROUP * (block // BLOCKS) + block % BLOCKS
        assert torch.equal(drawn[:, place : place + GROUP : BLOCKS], expected.T)


def test_both_paths_draw_the_same_uniform_numbers():
    draws = Draws([1, 2**40], "test", replicas=2)
    for step, lane, count in [(0, 0, 1), (2**33 + 5, 2**32 - 1, 1000), (7, 3, 4096)]:
        expected = uniform_numbers(words(draws.keys, step, lane, count))[:, :count]
        assert torch.equal(draws.uniform(step, count, lane), expected)


def test_both_paths_draw_the_same_normal_numbers_to_rounding():
    draws = Draws([1, 2**40], "test", replicas=2)
    expected = normal_numbers(words(draws.keys, 5, 1, 100_000))[:, :100_000]
    # Angles up to pi carry 2e-7 of rounding, which radii up to 6 enlarge.
    torch.testing.assert_close(draws.normal(5, 100_000, lane=1), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(kind):
    draw = getattr(Draws(3, "test"), kind)
    longest = draw(1, 131)
    for count in [*range(1, 12), 31, 32, 33, 63, 64, 65, 130]:
        assert draw(1, count).shape == (count,)
        assert torch.equal(draw(1, count), longest[:count])


def test_an_empty_draw_is_empty():
    assert Draws(3, "test").normal(1, 0).shape == (0,)
    assert Draws([3, 4], "test", replicas=2).uniform(1, 0).shape == (2, 0)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_replica_draws_what_it_would_alone(kind):
    seeds = [5, 6, 7]
    together = getattr(Draws(seeds, "test", replicas=3), kind)(step=11, count=77, lane=2)
    for row, seed in zip(together, seeds):
        assert torch.equal(row, getattr(Draws(seed, "test"), kind)(step=11, count=77, lane=2))


def test_a_draw_has_no_history():
    draws = Draws(0, "test")
    first = draws.normal(4, 10)
    draws.normal(5, 999)
    assert torch.equal(draws.normal(4, 10), first)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"purpose": "other"},
        {"step": 4},
        {"step": 3 + 2**32},
        {"lane": 1},
    ],
)
def test_draws_of_other_addresses_are_independent(other):
    one = {"seed": 1, "purpose": "test", "step": 3, "lane": 0}
    count = 40_000
    a, b = (Draws(g["seed"], g["purpose"]).normal(g["step"], count, g["lane"]) for g in (one, one | other))
    # The mean product of independent numbers is normal with deviation 1 / sqrt(n): five of them.
    assert abs(float((a * b).mean())) < 5 / math.sqrt(count)
    assert abs(float((a.abs() * b.abs()).mean()) - 2 / math.pi) < 5 / math.sqrt(count)


def test_normal_numbers_have_the_normal_moments_and_tails():
    x = Draws(1, "moments").normal(0, 1_000_000).double()
    deviation = 1 / math.sqrt(len(x))
    # Five standard errors; that of the k-th moment is sqrt(E x^2k - (E x^k)^2).
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((x**power).mean()) - expected) < 5 * math.sqrt(variance) * deviation
    for edge in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(edge / math.sqrt(2))
        assert abs(float((x.abs() > edge).double().mean()) - share) < 5 * math.sqrt(share) * deviation
    neighbours = (x[:-1] * x[1:]).mean()
    assert abs(float(neighbours)) < 5 * deviation


def test_the_two_numbers_of_a_pair_are_independent():
    x = Draws(1, "pairs").normal(0, 100 * GROUP).view(-1, 2, 2, BLOCKS).double()
    cosine, sine = x[:, :, 0].flatten(), x[:, :, 1].flatten()
    bound = 5 / math.sqrt(len(cosine))
    assert abs(float((cosine * sine).mean())) < bound
    assert abs(float((cosine.square() * sine.square()).mean()) - 1) < 5 * bound  # deviation of x^2 y^2 is sqrt(8)


def test_uniform_numbers_fill_the_open_interval():
    x = Draws(1, "uniform").uniform(0, 1_000_000).double()
    assert 0 < float(x.min()) < 1e-5
    assert 1 - 1e-5 < float(x.max()) < 1
    counts = torch.histc(x, 100, 0, 1)
    assert float(((counts - 10_000).square() / 10_000).sum()) < 99 + 5 * math.sqrt(2 * 99)


def test_the_largest_and_smallest_words_give_finite_numbers():
    edges = torch.tensor([[0] * 8 + [0] * 8 + [ONES] * 8 + [ONES] * 8])
    assert 0 < float(uniform_numbers(edges).min()) < float(uniform_numbers(edges).max()) < 1
    assert torch.isfinite(normal_numbers(edges)).all()


def test_numbers_come_in_the_wanted_dtype():
    draws = Draws(1, "test")
    assert torch.equal(draws.normal(0, 5, dtype=torch.float64), draws.normal(0, 5).double())
    assert draws.uniform(0, 5, dtype=torch.float16).dtype == torch.float16


def test_copies_and_pickles_draw_the_same():
    draws = Draws([1, 2], "test", replicas=2)
    expected = draws.normal(3, 9)
    for other in (copy.deepcopy(draws), pickle.loads(pickle.dumps(draws))):
        assert torch.equal(other.normal(3, 9), expected)


def test_a_missing_seed_is_named():
    with pytest.raises(ConfigError, match="seed has 2 values for 3 replicas"):
        Draws([1, 2], "test", replicas=3)


@pytest.mark.parametrize("many", [False, True])
def test_a_flat_draw_is_cut_into_tensors_in_their_order(many):
    lead = (2,) if many else ()
    like = [torch.zeros(*lead, 3, 2), torch.zeros(*lead, 4), torch.zeros(*lead, 1, 1, 5)]
    flat = torch.arange(15.0).expand(*lead, 15)
    parts = split(flat, like, many)
    assert [p.shape for p in parts] == [t.shape for t in like]
    assert torch.equal(torch.cat([p.reshape(*lead, -1) for p in parts], -1), flat)


@pytest.mark.cuda
def test_a_gpu_draws_the_same():
    draws = Draws([1, 2], "test", replicas=2)
    assert torch.equal(draws.uniform(3, 99, device="cuda").cpu(), draws.uniform(3, 99))
    torch.testing.assert_close(draws.normal(3, 99, device="cuda").cpu(), draws.normal(3, 99), rtol=1e-6, atol=3e-6)
