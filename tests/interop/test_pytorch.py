from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import driftline
from driftline.errors import ConfigError, DataError, SourceError
from driftline.interop.pytorch import dataset_of, from_torch
from driftline.learners import GradientLearner, NearestClassMean
from driftline.metrics import HeldOut, OnlineAccuracy
from driftline.stream import LiveStream, Stream

DATA = driftline.load("digits")
X, Y = DATA.x[:200], DATA.y[:200]
PAIRS = TensorDataset(X, Y)


class Augmented(Dataset):
    def __init__(self, count=200):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(X[index].shape), int(Y[index])


class Sensor(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y)


def everything(stream, batch_size=7):
    batches = list(stream.batches(batch_size))
    return torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])


@pytest.mark.parametrize(
    "source",
    [
        PAIRS,
        Sensor(),
        DataLoader(PAIRS, batch_size=32),
        DataLoader(PAIRS, batch_size=None),
        DataLoader(Sensor(), batch_size=9),
        torch.utils.data.ConcatDataset([TensorDataset(X[:50], Y[:50]), TensorDataset(X[50:], Y[50:])]),
    ],
)
def test_datasets_and_loaders_are_played_sample_by_sample(source):
    x, y = everything(from_torch(source, classes=10))
    assert torch.equal(x, X) and torch.equal(y, Y)


def test_a_stateful_loader_is_played_like_any_other():
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    stream = from_torch(loaders.StatefulDataLoader(PAIRS, batch_size=32), classes=10)
    assert isinstance(stream, LiveStream)
    assert torch.equal(everything(stream)[0], X)


def test_a_map_style_dataset_is_a_seekable_stream_with_classes_and_held_out_data():
    stream = from_torch(PAIRS, test=TensorDataset(DATA.test.x[:50], DATA.test.y[:50]))
    assert isinstance(stream, Stream) and len(stream.classes) == 10
    metrics = [OnlineAccuracy(), HeldOut(every=100)]
    [*_, step] = driftline.play(stream, NearestClassMean(), batch_size=10, metrics=metrics)
    assert step.metrics()["a_last"] > 0.7


def test_the_words_of_scenarios_are_there():
    segment = dataset_of(PAIRS, resident=False)
    dark = segment.classes(3, 5).corrupt("gaussian_noise", severity=1)
    mine = torch.isin(Y, torch.tensor([3, 5]))
    assert torch.equal(dark.labels(), Y[mine])
    assert (Stream([dark]).read(0, 10)[0] - X[mine][:10]).abs().mean() < 0.1
    made = driftline.scenarios.class_incremental(segment.dataset, tasks=2)
    assert len(made) == 200


def test_augmentations_are_keyed_by_seed_and_position():
    stream = from_torch(Augmented(), seed=1)
    x, _ = stream.read(0, 200)
    assert torch.equal(x, everything(from_torch(Augmented(), seed=1))[0])
    assert not torch.equal(x, from_torch(Augmented(), seed=2).read(0, 200)[0])
    assert torch.equal(pickle.loads(pickle.dumps(stream)).read(60, 70)[0], x[60:70])
    frozen = from_torch(Augmented(), resident=True)
    assert torch.equal(frozen.read(0, 200)[0], everything(frozen)[0])


def test_samples_without_labels_and_numbers_as_targets_are_played():
    assert from_torch(TensorDataset(X)).labels() is None
    assert next(from_torch(DataLoader(TensorDataset(X), batch_size=3)).batches(3)).y is None
    numbers = TensorDataset(X.flatten(1), X.flatten(1)[:, :2])
    assert from_torch(numbers).classes == ()
    assert torch.equal(from_torch(numbers, resident=False).read(0, 5)[1], X.flatten(1)[:5, :2])


def test_going_back_needs_a_loader_that_gives_the_same_order_again():
    def loader(**more):
        return from_torch(DataLoader(PAIRS, batch_size=10, shuffle=True, **more), classes=10)

    with pytest.raises(ConfigError, match="another order each time; a loader that shuffles needs a generator="):
        next(loader().batches(5, start=20))
    whole = list(loader(generator=torch.Generator().manual_seed(4)).batches(5))
    later = list(loader(generator=torch.Generator().manual_seed(4)).batches(5, start=20))
    assert torch.equal(later[0].x, whole[4].x) and later[0].position == 20


def test_what_cannot_be_played_is_refused_by_name():
    with pytest.raises(ConfigError, match="int is neither a dataset of PyTorch nor a loader"):
        from_torch(3)
    with pytest.raises(ConfigError, match="test= goes with a map-style dataset"):
        from_torch(Sensor(), test=PAIRS)
    with pytest.raises(DataError, match="torch: no samples"):
        from_torch(TensorDataset(X[:0], Y[:0]))
    with pytest.raises(SourceError, match="batch 0 of the loader: found Tensor, Tensor, Tensor"):
        list(from_torch(DataLoader(TensorDataset(X, Y, Y), batch_size=5), classes=10).batches())

    class Broken(Augmented):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("disk gone")
            return super().__getitem__(index)

    with pytest.raises(SourceError, match="torch, item 7: the dataset raised OSError: disk gone"):
        from_torch(Broken(), resident=True)


def test_models_and_optimizers_placed_by_fabric_work_as_they_are():
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)

    def trained(placed):
        model = driftline.models.mlp(DATA.input_shape, 10, hidden=(16,), seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if placed:
            model, optimizer = fabric.setup(model, optimizer)
        learner = GradientLearner(model, optimizer)
        [*_, step] = driftline.play(from_torch(PAIRS), learner, batch_size=10, metrics=[OnlineAccuracy()])
        state = learner.state_dict()
        learner.load_state_dict(state)
        return step.metrics(), torch.cat([p.detach().flatten() for p in model.parameters()])

    ours, theirs = trained(False), trained(True)
    assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])


def test_a_loader_placed_by_fabric_is_played():
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(DataLoader(PAIRS, batch_size=32))
    assert torch.equal(everything(from_torch(loader, classes=10))[0], X)
