"""Classes that break one law each, to see that the law suites notice, and name the right law."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import driftline
from driftline.adapters import Adapter
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import Learner
from driftline.metrics import Metric, OnlineAccuracy
from driftline.stream import Segment, Stream
from driftline.testing import (
    LawBroken,
    blobs,
    check_adapter,
    check_learner,
    check_metric,
    check_scenario,
)


def broken_laws(check, *arguments, **options):
    """Names of the laws that are broken."""
    with pytest.raises(LawBroken) as caught:
        check(*arguments, **options)
    return set(caught.value.broken)


# --- learners


class Toy(Learner):
    """Softmax regression that keeps every law."""

    def __init__(self):
        self.num_classes, self.input_shape = 3, (4,)
        self.w = torch.zeros(4, 3)
        self.seen = 0

    def predict(self, x):
        self.check(x)
        return x @ self.w

    def learn(self, x, y):
        self.check(x, y)
        self.step(x, y)

    def step(self, x, y):
        self.seen += len(x)
        error = F.one_hot(y, 3) - (x @ self.w).softmax(1)
        self.w = self.w + x.T @ error / (len(x) + self.seen)

    def to(self, device):
        self.w = self.w.to(device)
        return self

    def state_dict(self):
        return {"w": self.w, "seen": self.seen}

    def load_state_dict(self, state):
        if set(state) != {"w", "seen"}:
            raise CheckpointError("not a Toy's state")
        self.w, self.seen = state["w"].clone(), state["seen"]


class PredictCounts(Toy):
    def predict(self, x):
        self.seen += 1
        return super().predict(x)


class PredictDraws(Toy):
    def predict(self, x):
        return super().predict(x) + 1e-3 * torch.randn(len(x), 3)


class PredictLeavesEvaluation(Toy):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(4, 3)

    def network(self):
        return self.model

    def predict(self, x):
        self.model.eval()
        return super().predict(x)


class PredictCountsInSecret(Toy):
    asked = 0

    def predict(self, x):
        self.asked += 1
        return super().predict(x)

    def step(self, x, y):
        super().step(x * (1 + self.asked), y)


class ObserveLearnsFirst(Toy):
    def observe(self, x, y):
        self.learn(x, y)
        return self.predict(x)


class ObserveLearnsTwice(Toy):
    def observe(self, x, y):
        scores = super().observe(x, y)
        self.learn(x, y)
        return scores


class DrawsFromNumpy(Toy):
    def step(self, x, y):
        super().step(x + np.random.rand(), y)


class ForgetsWhatItHasSeen(Toy):
    def state_dict(self):
        return {"w": self.w}

    def load_state_dict(self, state):
        if set(state) != {"w"}:
            raise CheckpointError("not a Toy's state")
        self.w = state["w"].clone()


class StateOfArrays(Toy):
    def state_dict(self):
        return {"w": self.w, "seen": np.int64(self.seen)}


class LoadsWithoutCopying(Toy):
    def step(self, x, y):
        before = self.w
        super().step(x, y)
        self.w = before.copy_(self.w)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.w = state["w"]


class LoadsAnything(Toy):
    def load_state_dict(self, state):
        self.w, self.seen = state.get("w", self.w).clone(), state.get("seen", 0)


class SqueezesOne(Toy):
    def predict(self, x):
        return super().predict(x).squeeze()


class ScoresDependOnTheBatch(Toy):
    def predict(self, x):
        self.check(x)
        return (x - x.mean(0)) @ self.w


class DividesByTheSpread(Toy):
    def step(self, x, y):
        super().step(x / (x - x.mean(0)).square().mean(0), y)


class ChecksNothing(Toy):
    def check(self, x, y=None):
        pass


class ChecksTooLate(Toy):
    def learn(self, x, y):
        self.seen += len(x)
        self.check(x, y)
        self.step(x, y)


class TrustsLabels(Toy):
    def check(self, x, y=None):
        super().check(x)


class LearnsFromTheLastBatchAgain(Toy):
    last = None

    def step(self, x, y):
        if self.last is not None:
            super().step(*self.last)
        super().step(x, y)
        self.last = x, y


class ScalesInPlace(Toy):
    def learn(self, x, y):
        self.check(x, y)
        self.step(x.mul_(0.5), y)


class ReturnsItsBuffer(Toy):
    def __init__(self):
        super().__init__()
        self.buffer = torch.zeros(64, 3)

    def predict(self, x):
        return self.buffer[: len(x)].copy_(super().predict(x))


class KeepsTheGraph(Toy):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(3, requires_grad=True)

    def predict(self, x):
        return super().predict(x) * self.scale


class LearnsInItsCheck(Toy):
    def check(self, x, y=None):
        if not self.trusted and y is not None:
            super().check(x, y)
            self.seen += 1
        else:
            super().check(x)


class StateGrows(Toy):
    def __init__(self):
        super().__init__()
        self.log = torch.empty(0)

    def step(self, x, y):
        super().step(x, y)
        self.log = torch.cat([self.log, self.w[0, :1]])

    def state_dict(self):
        return {**super().state_dict(), "log": self.log}

    def load_state_dict(self, state):
        super().load_state_dict({k: v for k, v in state.items() if k != "log"})
        self.log = state["log"]


class KeepsLosses(Toy):
    def __init__(self):
        super().__init__()
        self.losses = []

    def step(self, x, y):
        super().step(x, y)
        self.losses.append(float(self.w.sum()))


class KeepsLabels(KeepsLosses):
    def step(self, x, y):
        Toy.step(self, x, y)
        self.losses += y.tolist()


class KeepsTensors(KeepsLosses):
    def step(self, x, y):
        Toy.step(self, x, y)
        self.losses.append(x.mean())


class SumsLossesWithTheirGraphs(Toy):
    total = 0.0

    def step(self, x, y):
        super().step(x, y)
        scale = torch.ones(3, requires_grad=True)
        self.total = self.total + F.cross_entropy((x @ self.w) * scale, y)


BROKEN_LEARNERS = [
    (PredictCounts, "predict changes nothing"),
    (PredictDraws, "predict changes nothing"),
    (PredictLeavesEvaluation, "predict changes nothing"),
    (PredictCountsInSecret, "predict changes nothing"),
    (ObserveLearnsFirst, "observe is predict, then learn"),
    (ObserveLearnsTwice, "observe is predict, then learn"),
    (DrawsFromNumpy, "same seed, same result"),
    (ForgetsWhatItHasSeen, "the state round trip continues bit-identically"),
    (StateOfArrays, "the state round trip continues bit-identically"),
    (LoadsWithoutCopying, "loading a state copies it"),
    (LoadsAnything, "the state of another one is refused"),
    (SqueezesOne, "a batch of one works"),
    (ScoresDependOnTheBatch, "a batch of one works"),
    (DividesByTheSpread, "a batch of one works"),
    (ChecksNothing, "bad input is refused and changes nothing"),
    (ChecksTooLate, "bad input is refused and changes nothing"),
    (TrustsLabels, "bad input is refused and changes nothing"),
    (LearnsFromTheLastBatchAgain, "input is left alone, and copied where kept"),
    (ScalesInPlace, "input is left alone, and copied where kept"),
    (ReturnsItsBuffer, "returned scores stay as they are"),
    (KeepsTheGraph, "scores are plain"),
    (LearnsInItsCheck, "the loop gets what direct calls give"),
    (StateGrows, "memory is flat over a long stream"),
    (KeepsLosses, "memory is flat over a long stream"),
    (KeepsLabels, "memory is flat over a long stream"),
    (KeepsTensors, "memory is flat over a long stream"),
    (SumsLossesWithTheirGraphs, "memory is flat over a long stream"),
]


def test_a_learner_that_keeps_every_law_passes():
    check_learner(Toy, steps=800)


@pytest.mark.parametrize(("broken", "law"), BROKEN_LEARNERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_learner_is_caught_by_the_right_law(broken, law):
    flat = "memory is flat over a long stream"
    assert law in broken_laws(check_learner, broken, laws=[law], steps=2000 if law == flat else 1)


def test_only_the_law_that_is_broken_is_named():
    assert broken_laws(check_learner, LoadsAnything, steps=500) == {"the state of another one is refused"}


def test_the_message_says_who_broke_what_and_what_was_found():
    with pytest.raises(AssertionError, match=r"PredictCounts on cpu breaks 1 law\n.*predict changes nothing.*'seen'"):
        check_learner(PredictCounts, laws=["predict changes nothing"])


# --- adapters


class Centre(Adapter):
    """Subtracts the running mean of what it has seen; keeps every law."""

    input_shape = (4,)

    def __init__(self, model):
        self.model = copy.deepcopy(model).eval()
        self.reset()

    def reset(self):
        self.mean, self.seen = torch.zeros(4), 0

    def predict(self, x):
        self.check(x)
        with torch.no_grad():
            return self.model(x - self.mean.to(x.device))

    def adapt(self, x):
        self.check(x)
        self.seen += len(x)
        self.mean = self.mean.to(x.device) + (x - self.mean.to(x.device)).sum(0) / self.seen
        return self.predict(x)

    def state_dict(self):
        return {"mean": self.mean, "seen": self.seen}

    def load_state_dict(self, state):
        if set(state) != {"mean", "seen"}:
            raise CheckpointError("not a Centre's state")
        self.mean, self.seen = state["mean"].clone(), state["seen"]

    def to(self, device):
        self.model.to(device)
        self.mean = self.mean.to(device)
        return self


class WantsLabels(Centre):
    def adapt(self, x, y=None):
        return super().adapt(x)


class ResetForgetsTheCount(Centre):
    def reset(self):
        self.mean, self.seen = torch.zeros(4), getattr(self, "seen", 0)


class ResetsToWhatWasLoaded(Centre):
    home = torch.zeros(4)

    def reset(self):
        self.mean, self.seen = self.home.clone(), 0

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.home = self.mean


class AdaptsTheCallersModel(Centre):
    def __init__(self, model):
        super().__init__(model)
        self.theirs = model

    def adapt(self, x):
        scores = super().adapt(x)
        self.theirs.train()(x)
        return scores


class FreezesTheCallersModel(Centre):
    def __init__(self, model):
        super().__init__(model.requires_grad_(False))


class PredictAdapts(Centre):
    def predict(self, x):
        self.seen += 1
        return super().predict(x)


class AdaptsToAnything(Centre):
    def check(self, x):
        pass


BROKEN_ADAPTERS = [
    (WantsLabels, "adapt takes no labels"),
    (ResetForgetsTheCount, "reset restores the source"),
    (ResetsToWhatWasLoaded, "reset restores the source after loading"),
    (AdaptsTheCallersModel, "the caller's model is untouched"),
    (FreezesTheCallersModel, "the caller's model is untouched"),
    (PredictAdapts, "predict changes nothing"),
    (AdaptsToAnything, "bad input is refused and changes nothing"),
]


def test_an_adapter_that_keeps_every_law_passes():
    check_adapter(Centre, steps=800)


@pytest.mark.parametrize(("broken", "law"), BROKEN_ADAPTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_adapter_is_caught_by_the_right_law(broken, law):
    assert law in broken_laws(check_adapter, broken, laws=[law], steps=1)


# --- scenarios


def digits():
    return driftline.load("digits")


@driftline.scenario
def unseeded(data, rng):
    yield data.at(torch.randperm(len(data)))


@driftline.scenario
def deaf_to_its_seed(data, rng):
    yield data


@driftline.scenario
def loses_some(data, rng):
    yield data.shuffle(rng).take(1000)


@driftline.scenario
def centred_by_batch(data, rng):
    yield data.shuffle(rng).transform(centre)


@driftline.scenario
def random_from_outside(data, rng):
    yield data.shuffle(rng).transform(jitter)


@driftline.scenario
def transformed_on_the_spot(data, rng):
    yield data.shuffle(rng).transform(lambda x: 1 - x)


@driftline.scenario
def changes_shape(data, rng):
    yield data.shuffle(rng).take(100)
    yield data.transform(flatten)


def centre(x):
    return x - x.mean(0)


def jitter(x):
    return x + torch.rand(())


def flatten(x):
    return x.flatten(1)


class Wrong(Stream):
    """A stream in which one thing is wrong."""

    @classmethod
    def of(cls, seed):
        return cls([part.shuffle(torch.Generator().manual_seed(seed)) for part in Segment.of(digits()).batched(500)])


class LabelsOfTheDataset(Wrong):
    def labels(self):
        return self.segments[0].dataset.y


class CrossesSegments(Wrong):
    def batches(self, batch_size=1, start=0, device=None):
        info = self.infos()[0]
        for position in range(start, len(self), batch_size):
            x, y = self.read(position, min(position + batch_size, len(self)))
            yield driftline.stream.Batch(x, y, position, info, len(x))


class StartsOver(Wrong):
    def batches(self, batch_size=1, start=0, device=None):
        return super().batches(batch_size, start - start % batch_size, device)


class DelaysByBatches(Wrong):
    def due(self, batch):
        return torch.arange(batch.position, batch.stop) + len(batch)


class SwapsRows(Wrong):
    def reader(self, grid=1, device=None):
        return Stream([part.at(list(range(len(part)))[::-1]) for part in self.segments]).reader(grid, device)


class OffByOne(Wrong):
    def infos(self):
        return super().infos()[1:]


BROKEN_SCENARIOS = [
    (unseeded, "same seed, same stream"),
    (unseeded, "global randomness is untouched"),
    (deaf_to_its_seed, "another seed, another stream"),
    (loses_some, "every sample is used as declared"),
    (centred_by_batch, "transforms look at one sample at a time"),
    (random_from_outside, "seek: a position always gives the same sample"),
    (random_from_outside, "global randomness is untouched"),
    (transformed_on_the_spot, "it pickles"),
    (changes_shape, "samples fit a learner"),
    (LabelsOfTheDataset, "labels() is what is played"),
    (CrossesSegments, "batches are whole and follow each other"),
    (StartsOver, "seek: a position always gives the same sample"),
    (DelaysByBatches, "labels arrive the same for every batch size"),
    (SwapsRows, "rows are played as the segments say"),
    (OffByOne, "segment infos agree with batches"),
]


@pytest.mark.parametrize(("broken", "law"), BROKEN_SCENARIOS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_scenario_is_caught_by_the_right_law(broken, law):
    make = broken.of if isinstance(broken, type) else lambda seed: broken(digits(), seed=seed)
    assert law in broken_laws(check_scenario, make, each_once=True, laws=[law])


def test_a_stream_of_ones_own_that_keeps_every_law_passes():
    check_scenario(Wrong.of, each_once=True)


def test_a_seed_that_matters_is_noticed_where_none_is_declared():
    make = lambda seed: driftline.scenarios.iid(digits(), seed=seed)  # noqa: E731
    assert broken_laws(check_scenario, make, seeded=False) == {"another seed, another stream"}


# --- metrics


class Hits(Metric):
    """Counts right predictions; keeps every law."""

    definitions = {"hits": "samples predicted right"}

    def __init__(self):
        self._hits = torch.zeros(1)

    def update(self, step):
        self.take((step.prediction.argmax(1) == step.batch.y).sum())

    def take(self, hits):
        self._hits = self._hits.to(hits.device) + hits

    def value(self):
        return {"hits": float(self._hits)}

    def merge(self, later):
        self._hits = self._hits + later._hits

    def state_dict(self):
        return {"hits": self._hits}

    def load_state_dict(self, state):
        self._hits = state["hits"]


class ReadingResets(Hits):
    def value(self):
        values = super().value()
        self._hits = torch.zeros(1)
        return values


class ReadingCounts(Hits):
    reads = 0

    def value(self):
        self.reads += 1
        return {"hits": float(self._hits) + (self.reads > 20)}


class StateIsLost(Hits):
    def state_dict(self):
        return {"hits": torch.zeros(1)}


class LoadsTheSameTensor(Hits):
    def take(self, hits):
        self._hits += hits


class GivesIntegers(Hits):
    def value(self):
        return {"hits": int(self._hits)}


class HasNoDefinition(Hits):
    definitions = {"misses": "samples predicted wrong"}


class CountsBatches(Hits):
    def update(self, step):
        self.take(torch.ones(()))


class MergesWithItself(Hits):
    def merge(self, later):
        self._hits = self._hits * 2


class MergeEmptiesTheLater(Hits):
    def merge(self, later):
        super().merge(later)
        later._hits = torch.zeros(1)


class AsksForMoreLearning(Hits):
    def update(self, step):
        super().update(step)
        step.learner.learn(step.batch.x, step.batch.y)


class DrawsAtRandom(Hits):
    def update(self, step):
        super().update(step)
        torch.rand(1)


class ChangesScores(Hits):
    def update(self, step):
        super().update(step)
        step.prediction.zero_()


def all_hits(record):
    return {"hits": float(sum((scores.argmax(1) == y).sum() for _, y, scores in record))}


BROKEN_METRICS = [
    (ReadingResets, "reading changes nothing"),
    (ReadingResets, "read often or never, the result is the same"),
    (ReadingCounts, "read often or never, the result is the same"),
    (StateIsLost, "the state round trip continues bit-identically"),
    (LoadsTheSameTensor, "loading a state copies it"),
    (GivesIntegers, "values are named floats"),
    (HasNoDefinition, "values are named floats"),
    (CountsBatches, "batch size does not matter"),
    (CountsBatches, "the streaming value is the offline value"),
    (MergesWithItself, "merged parts give the whole"),
    (MergeEmptiesTheLater, "merged parts give the whole"),
    (AsksForMoreLearning, "measuring changes nothing"),
    (DrawsAtRandom, "measuring changes nothing"),
    (ChangesScores, "measuring changes nothing"),
]


def test_a_metric_that_keeps_every_law_passes():
    check_metric(Hits, offline=all_hits, any_batch_size=True)


@pytest.mark.parametrize(("broken", "law"), BROKEN_METRICS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_metric_is_caught_by_the_right_law(broken, law):
    assert law in broken_laws(check_metric, broken, offline=all_hits, any_batch_size=True, laws=[law])


# --- the suites themselves


def test_the_suites_leave_global_randomness_as_it_was():
    before = torch.get_rng_state()
    check_learner(Toy, steps=10)
    check_adapter(Centre, steps=10)
    check_scenario(Wrong.of)
    check_metric(OnlineAccuracy)
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_law_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'a batch of one works'"):
        check_learner(Toy, laws=["a batch of one work"])


def test_a_stream_without_labels_cannot_try_a_learner():
    with pytest.raises(ConfigError, match="no labels"):
        check_learner(Toy, Stream([Segment.of(driftline.Dataset(torch.rand(20, 4)))]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_an_error():
    with pytest.raises(ConfigError, match="no CUDA device"):
        check_metric(Hits, blobs(), devices=["cuda"])
