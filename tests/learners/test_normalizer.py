import copy
import io

import pytest
import torch
from torch import nn

from driftline.errors import CheckpointError, ConfigError, InputError
from driftline.learners import GradientLearner
from driftline.learners.normalizer import InputNormalizer
from tests.learners.states import kept, same

FORMS = {"ema": {"decay": 0.9}, "slow ema": {"decay": 0.999}, "welford": {"form": "welford"}}
forms = pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)


def samples(count, *shape, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return (3 + 2 * torch.randn((count, *shape), generator=rng, dtype=torch.float64)).to(dtype)


def fed(x, batch, **given):
    normalizer = InputNormalizer(**given)
    for part in x.split(batch):
        normalizer.update(part)
    return normalizer


def test_welford_gives_mean_and_variance_of_all_samples():
    x = samples(257, 4)
    normalizer = fed(x, 10, form="welford")
    torch.testing.assert_close(normalizer.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(normalizer.variance, x.var(0, unbiased=False), rtol=1e-12, atol=0)


def test_ema_follows_its_recursion():
    x = samples(60, 3)
    mean, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for n, sample in enumerate(x):
        decay = min(0.9, 1 - 1 / (n + 1))
        mean, square = decay * mean + (1 - decay) * sample, decay * square + (1 - decay) * sample**2
    normalizer = fed(x, 1, decay=0.9)
    torch.testing.assert_close(normalizer.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(normalizer.variance, square - mean**2, rtol=1e-9, atol=0)  # the reference cancels


def test_ema_is_the_plain_average_at_first():
    x = samples(8, 3)
    for given in ({"decay": 0.9}, {"form": "welford"}):
        torch.testing.assert_close(fed(x, 3, **given).mean, x.mean(0), rtol=1e-12, atol=0)


@forms
@pytest.mark.parametrize("batch", [2, 7, 64, 300])
def test_statistics_do_not_depend_on_the_batch_size(given, batch):
    x = samples(300, 2, 3)
    one_by_one, batched = fed(x, 1, **given), fed(x, batch, **given)
    torch.testing.assert_close(batched.mean, one_by_one.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(batched.variance, one_by_one.variance, rtol=1e-10, atol=0)
    assert one_by_one.seen == batched.seen == 300


@forms
def test_a_sample_is_normalised_by_statistics_that_include_it_alone(given):
    x, new = samples(20, 3), samples(5, 3, seed=1)
    normalizer = fed(x, 4, **given)
    normalised = normalizer(new)
    for row, sample in zip(normalised, new):
        including = fed(torch.cat((x, sample.unsqueeze(0))), 4, **given)
        expected = (sample - including.mean) / (including.variance + 1e-8).sqrt()
        torch.testing.assert_close(row, expected, rtol=1e-7, atol=1e-9)  # eps enters in another place


@forms
def test_normalising_changes_nothing_and_knows_no_neighbours(given):
    normalizer = fed(samples(20, 3), 4, **given)
    before, new = kept(normalizer), samples(6, 3, seed=1)
    whole = normalizer(new)
    assert torch.equal(whole, torch.cat([normalizer(row.unsqueeze(0)) for row in new]))
    assert same(before, kept(normalizer))


@forms
def test_before_the_first_update_a_batch_is_normalised_by_itself(given):
    normalizer, x = InputNormalizer(**given), samples(8, 3)
    z = normalizer(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(3, dtype=torch.float64), rtol=1e-7, atol=0)
    assert torch.equal(normalizer(x[:1]), torch.zeros(1, 3, dtype=torch.float64))
    assert normalizer.seen == 0


@forms
def test_a_steady_stream_comes_out_with_mean_zero_and_variance_one(given):
    normalizer = fed(samples(3000, 4), 8, **given)
    z = normalizer(samples(3000, 4, seed=1))
    # the fast average wanders: its mean has a standard error of 1 / sqrt(19) deviations
    assert z.mean(0).abs().max() < 0.7
    assert (z.var(0) - 1).abs().max() < 0.8


@pytest.mark.parametrize(("given", "bound"), [({"decay": 0.9}, 9**0.5), ({"form": "welford"}, 50**0.5)])
def test_what_is_new_to_a_constant_feature_is_bounded(given, bound):
    normalizer = fed(torch.zeros(50, 1), 5, **given)
    z = normalizer(torch.tensor([[1e6], [-1e6], [0.0]])).flatten().tolist()
    assert z == pytest.approx([bound, -bound, 0.0], rel=1e-5)


@forms
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_feature_comes_out_as_zero(given, value):
    x = torch.full((40, 2), value)
    normalizer = fed(x, 7, **given)
    assert torch.equal(normalizer(x), torch.zeros(40, 2))
    assert torch.equal(normalizer.variance, torch.zeros(2))


@forms
def test_a_large_offset_costs_no_precision(given):
    x = samples(200, 3, dtype=torch.float32)
    near, far = fed(x, 8, **given), fed(x + 4096.0, 8, **given)
    # float32 holds 4096 to 0.0005
    torch.testing.assert_close(far.variance, near.variance, rtol=5e-3, atol=0)


@forms
@pytest.mark.parametrize("batch", [1, 5])
def test_replicas_in_lockstep_are_the_runs_alone(given, batch):
    x = torch.stack([samples(60, 2, 3, seed=seed) for seed in range(3)])
    together, alone = InputNormalizer(**given, replicas=3), [InputNormalizer(**given) for _ in range(3)]
    for part in x.split(batch, 1):
        expected = torch.stack([one(own) for one, own in zip(alone, part)])
        torch.testing.assert_close(together(part), expected, rtol=1e-10, atol=1e-12)
        together.update(part)
        for one, own in zip(alone, part):
            one.update(own)
    for i, one in enumerate(alone):
        torch.testing.assert_close(together.mean[i], one.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(together.variance[i], one.variance, rtol=1e-12, atol=0)
        torch.testing.assert_close(together.replica(i)(x[i]), one(x[i]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 5])
def test_decay_and_eps_may_differ_between_replicas(batch):
    decays, epsilons = [0.5, 0.9, 0.99], [1e-8, 0.1, 1.0]
    x = torch.stack([samples(60, 2, seed=seed) for seed in range(3)])
    together = InputNormalizer(decay=decays, eps=epsilons, replicas=3)
    for part in x.split(batch, 1):
        together(part)
        together.update(part)
    for i in range(3):
        alone = fed(x[i], batch, decay=decays[i], eps=epsilons[i])
        torch.testing.assert_close(together.mean[i], alone.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(together.variance[i], alone.variance, rtol=1e-12, atol=0)
        torch.testing.assert_close(together(x)[i], alone(x[i]), rtol=1e-10, atol=1e-12)
        assert together.replica(i).decay == decays[i]


@forms
def test_a_state_round_trip_continues_bit_for_bit(given):
    x = samples(90, 3)
    whole, first = fed(x, 3, **given), fed(x[:45], 3, **given)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = InputNormalizer(**given)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for part in x[45:].split(3):
        resumed.update(part)
    assert same(whole.state_dict(), resumed.state_dict())
    assert torch.equal(whole(x), resumed(x))


def test_a_state_is_neither_changed_by_later_updates_nor_shared():
    normalizer = fed(samples(6, 2), 2)
    state = normalizer.state_dict()
    before = copy.deepcopy(state)
    normalizer.update(samples(6, 2, seed=1))
    assert same(before, state)
    normalizer.load_state_dict(state)
    state["mean"].fill_(0)
    assert torch.equal(normalizer.mean, before["mean"])


def test_the_state_of_a_new_normaliser_loads():
    normalizer = fed(samples(6, 2), 2)
    normalizer.load_state_dict(InputNormalizer().state_dict())
    assert same(normalizer.state_dict(), InputNormalizer().state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "the state has parts"),
        (InputNormalizer("welford").state_dict(), "form 'welford'"),
        (fed(samples(4, 3), 2).state_dict(), r"statistics of shape \(3,\), this normaliser of \(2,\)"),
    ],
    ids=["empty", "form", "shape"],
)
def test_another_normalisers_state_is_refused_and_changes_nothing(state, message):
    normalizer = fed(samples(6, 2), 2)
    before = kept(normalizer)
    with pytest.raises(CheckpointError, match=message):
        normalizer.load_state_dict(state)
    assert same(before, kept(normalizer))


def test_a_state_of_other_replicas_is_refused():
    state = fed(samples(4, 3), 2).state_dict()
    with pytest.raises(CheckpointError, match="statistics of shape"):
        InputNormalizer(replicas=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.uint8), "samples of torch.uint8; convert to float32"),
        (torch.zeros(2, 3, dtype=torch.int64), "samples of torch.int64; convert to float32"),
        (torch.zeros(2, 4), r"samples of shape \(4,\), so far of \(3,\)"),
        (torch.zeros(2, 3, 1), r"samples of shape \(3, 1\), so far of \(3,\)"),
        (torch.zeros(0, 3), "with at least one sample"),
        (torch.tensor(1.0), r"expected \(samples, ...\)"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_and_change_nothing(x, message):
    normalizer = fed(samples(6, 3), 2)
    before = kept(normalizer)
    for use in (normalizer, normalizer.update):
        with pytest.raises(InputError, match=message):
            use(x)
    assert same(before, kept(normalizer))


@pytest.mark.parametrize("shape", [(2, 4, 3), (4, 3), (3, 0, 3)])
def test_samples_of_other_replicas_are_refused(shape):
    with pytest.raises(InputError, match=r"expected \(3, samples, ...\)"):
        InputNormalizer(replicas=3)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_samples_keep_their_dtype_and_statistics_have_at_least_single_precision(dtype):
    x = samples(50, 3, dtype=dtype)
    normalizer = fed(x, 5)
    assert normalizer(x).dtype == dtype
    assert normalizer.mean.dtype == torch.promote_types(dtype, torch.float32)
    assert InputNormalizer()(x).dtype == dtype


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"form": "median"}, "unknown form 'median'"),
        ({"decay": 1.0}, "decay=1.0: must be above 0 and below 1"),
        ({"decay": 0.0}, "decay=0.0: must be above 0"),
        ({"eps": 0.0}, "eps=0.0: must be above 0"),
        ({"decay": [0.9, 0.99]}, "decay has 2 values, but there are no replicas"),
        ({"decay": [0.9, 0.99], "replicas": 3}, "decay has 2 values, but there are 3 replicas"),
    ],
)
def test_a_bad_setting_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        InputNormalizer(**given)


def test_a_replica_can_be_had_only_from_replicas():
    with pytest.raises(ConfigError, match="has no replicas"):
        InputNormalizer().replica(0)


@forms
@pytest.mark.parametrize("batch", [1, 4])
def test_observing_is_predicting_followed_by_learning(given, batch):
    def learner():
        model = nn.Linear(3, 2, dtype=torch.float64)
        nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
        return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), normalizer=InputNormalizer(**given))

    at_once, in_turn = learner(), learner()
    for x in samples(40, 3).split(batch):
        y = (x[:, 0] > 3).long()
        scores = at_once.observe(x, y)
        assert torch.equal(scores, in_turn.predict(x))
        in_turn.learn(x, y)
    assert same(kept(at_once), kept(in_turn))


def test_it_lets_a_learner_ignore_the_inputs_scale():
    model = nn.Linear(2, 2)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), normalizer=InputNormalizer())
    x = samples(400, 2, dtype=torch.float32) * torch.tensor([1e4, 1e-4])
    y = (x[:, 1] > 3e-4).long()
    hits = [(learner.observe(a, b).argmax(1) == b).double().mean().item() for a, b in zip(x.split(1), y.split(1))]
    assert sum(hits[200:]) / 200 > 0.9
