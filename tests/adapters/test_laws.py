"""The law suite of adapters, run over every public one; a new one without an entry in this table fails."""

import inspect

import pytest
import torch
from torch import nn

import driftline
from driftline import adapters, scenarios
from driftline.adapters import (
    DRM,
    EATA,
    ETA,
    LAME,
    LOW_RANK,
    MECTA,
    NOTE,
    RMT,
    ROID,
    SAR,
    T3A,
    AdaNPC,
    Adapter,
    BatchNormAdapter,
    CollapseGuard,
    CoTTA,
    DeYO,
    DisagreementGuard,
    DynamicEvaluation,
    PeTTA,
    RDumb,
    RealTime,
    RoTTA,
    SlidingWindow,
    Source,
    Tent,
    low_rank,
)
from driftline.testing import check_adapter


def conv():
    """A small convolutional network for the digits, with what adapters care about."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 10)
        )


def digits():
    return scenarios.iid(driftline.load("digits"))


def uniform(*shape):
    """Source samples."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def jiggle(x, random):
    """A view of samples that are no images."""
    return x + 0.1 * torch.randn(x.shape, generator=random, device=x.device)


def labelled(*shape):
    """Source samples of three classes, and their labels."""
    return uniform(*shape), torch.arange(shape[0]) % 3


def heads(features, classes):
    """Two heads, the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return [nn.Linear(features, classes) for _ in range(2)]


def characters():
    """A model of the next of seven tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 7))


def tokens():
    """Segments of six tokens, and the token that follows each."""
    text = torch.randint(7, (500, 7), generator=torch.Generator().manual_seed(0))
    return scenarios.iid(driftline.Dataset(text[:, :6], text[:, 6]))


CONV = {"make_model": conv, "stream": digits}
BY_BATCH = {"per_sample": False}

ADAPTERS = {
    "Source": (Source, {}),
    "Source: conv": (Source, CONV),
    "BatchNormAdapter": (BatchNormAdapter, BY_BATCH),
    "BatchNormAdapter: conv": (BatchNormAdapter, {**CONV, **BY_BATCH}),
    "BatchNormAdapter: mix": (lambda model: BatchNormAdapter(model, "mix"), BY_BATCH),
    "BatchNormAdapter: prior": (lambda model: BatchNormAdapter(model, "prior"), BY_BATCH),
    "BatchNormAdapter: running": (lambda model: BatchNormAdapter(model, "running"), CONV),
    "Tent": (lambda model: Tent(model, lr=0.01), BY_BATCH),
    "Tent: conv": (lambda model: Tent(model, optimizer="nesterov", steps=2), {**CONV, **BY_BATCH}),
    "Tent: low rank": (lambda model: Tent(low_rank(model, 1), parameters=LOW_RANK, lr=0.01), BY_BATCH),
    "RealTime": (lambda model: RealTime(Source(model), cost=3), {}),
    "RealTime: Tent": (lambda model: RealTime(Tent(model, lr=0.01), cost=1.5, rate=2), BY_BATCH),
    "Tent: episodic": (lambda model: Tent(model, episodic=True), BY_BATCH),
    "ETA": (lambda model: ETA(model, lr=0.01, entropy_margin=1.0, redundancy=0.9), BY_BATCH),
    "ETA: conv": (lambda model: ETA(model, entropy_margin=2.25, redundancy=0.99, steps=2), {**CONV, **BY_BATCH}),
    "EATA": (lambda model: EATA(model, uniform(20, 4), entropy_margin=1.0, redundancy=0.9), BY_BATCH),
    "EATA: conv": (lambda model: EATA(model, uniform(20, 1, 8, 8), redundancy=0.99), {**CONV, **BY_BATCH}),
    "RDumb": (lambda model: RDumb(model, reset_every=4, entropy_margin=1.0, redundancy=0.9), BY_BATCH),
    "RDumb: conv": (lambda model: RDumb(model, entropy_margin=2.25, redundancy=0.99), {**CONV, **BY_BATCH}),
    "SAR": (lambda model: SAR(model, entropy_margin=1.0, reset_threshold=0.4, exclude=[]), BY_BATCH),
    "SAR: conv": (lambda model: SAR(model, optimizer="sgd", entropy_margin=2.25, exclude=[]), {**CONV, **BY_BATCH}),
    "DeYO: conv": (
        lambda model: DeYO(model, lr=0.01, entropy_margin=2.3, plpd_threshold=0.0, exclude=[]),
        {**CONV, **BY_BATCH},
    ),
    "ROID": (lambda model: ROID(model, consistency=False), BY_BATCH),
    "ROID: conv": (lambda model: ROID(model, lr=0.01), {**CONV, **BY_BATCH}),
    "CoTTA": (lambda model: CoTTA(model, lr=0.01, views=2, augmentations=[jiggle]), BY_BATCH),
    "CoTTA: conv": (lambda model: CoTTA(model, optimizer="nesterov", views=2), {**CONV, **BY_BATCH}),
    "RoTTA": (lambda model: RoTTA(model, lr=0.01, update_every=20, augmentation=jiggle), {}),
    "RMT": (lambda model: RMT(model, lr=0.01, augmentation=jiggle), BY_BATCH),
    "RMT: conv": (
        lambda model: RMT(model, (uniform(40, 1, 8, 8), torch.arange(40) % 10), projection=8, batch=10),
        {**CONV, **BY_BATCH},
    ),
    "RoTTA: conv": (lambda model: RoTTA(model, capacity=4, update_every=15), CONV),
    "NOTE": (lambda model: NOTE(model, lr=0.01, update_every=20, epochs=2), {}),
    "NOTE: conv": (lambda model: NOTE(model, lr=0.01, capacity=10, update_every=15), CONV),
    "NOTE: as trained": (lambda model: NOTE(model, capacity=10, update_every=15, instance_aware=False), CONV),
    "PeTTA": (lambda model: PeTTA(model, uniform(60, 4), lr=0.01, update_every=20, augmentation=jiggle), {}),
    "PeTTA: conv": (
        lambda model: PeTTA(model, uniform(60, 1, 8, 8), symmetric=False, capacity=10, update_every=15),
        CONV,
    ),
    "MECTA": (lambda model: MECTA(model, lr=0.01, prune=0.4, threshold=0.0), BY_BATCH),
    "MECTA: conv": (MECTA, {**CONV, **BY_BATCH}),
    "LAME": (LAME, BY_BATCH),
    "LAME: conv": (lambda model: LAME(model, "knn", symmetric=True), {**CONV, **BY_BATCH}),
    "T3A": (lambda model: T3A(model, filter_k=5), {}),
    "T3A: conv": (lambda model: T3A(model, filter_k=1), CONV),
    "AdaNPC": (lambda model: AdaNPC(model, labelled(20, 4), k=5, capacity=30), {}),
    "AdaNPC: reservoir": (lambda model: AdaNPC(model, labelled(20, 4), k=5, capacity=30, eviction="reservoir"), {}),
    "AdaNPC: conv": (
        lambda model: AdaNPC(
            model, labelled(40, 1, 8, 8), capacity=30, eviction="balanced", eps_ball=0.9, variant="released"
        ),
        {**CONV, **BY_BATCH},
    ),
    "SlidingWindow": (lambda model: SlidingWindow(Source(model), size=16), {}),
    "SlidingWindow: Tent": (lambda model: SlidingWindow(Tent(model, lr=0.01), size=16), BY_BATCH),
    "SlidingWindow: conv": (lambda model: SlidingWindow(Tent(model), size=4), {**CONV, **BY_BATCH}),
    "CollapseGuard": (lambda model: CollapseGuard(Source(model), every=2), {}),
    "CollapseGuard: Tent": (lambda model: CollapseGuard(Tent(model, lr=0.01), every=2), BY_BATCH),
    "CollapseGuard: rolled back": (
        lambda model: CollapseGuard(Tent(model, lr=1.0), every=2, pause=0, accuracy=0.9),
        {**CONV, **BY_BATCH},
    ),
    "DisagreementGuard": (lambda model: DisagreementGuard(Tent(model, lr=0.01), every=2), BY_BATCH),
    "DisagreementGuard: returned": (
        lambda model: DisagreementGuard(CollapseGuard(Tent(model, lr=1.0)), level=0.02, window=50, every=1),
        {**CONV, **BY_BATCH},
    ),
    "DRM": (lambda model: DRM(model[:-1], heads(8, 3)), {}),
    "DRM: conv": (
        lambda model: DRM(model[:-1], heads(36, 10), pseudo_labels="combined", beta=0.1, lr=0.01),
        CONV,
    ),
    "DynamicEvaluation": (
        lambda model: DynamicEvaluation(model, lr=0.1, rule="sgd"),
        {"make_model": characters, "stream": tokens},
    ),
}


@pytest.mark.parametrize("entry", ADAPTERS)
def test_adapters_keep_the_laws(entry):
    make, options = ADAPTERS[entry]
    stream = {"stream": options["stream"]()} if "stream" in options else {}
    check_adapter(make, **{"steps": 300, **options, **stream})


def test_every_adapter_is_tried():
    concrete = {
        name
        for name in adapters.__all__
        if inspect.isclass(entry := getattr(adapters, name))
        and issubclass(entry, Adapter)
        and not inspect.isabstract(entry)
    }
    assert concrete == {entry.partition(":")[0] for entry in ADAPTERS}
