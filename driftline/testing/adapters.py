"""The laws of adapters, to be tried on any class that implements :class:`driftline.adapters.Adapter`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from driftline.adapters.base import Adapter
from driftline.stream.stream import Stream
from driftline.testing.data import blobs
from driftline.testing.laws import (
    PLAY_SEED,
    Law,
    copied,
    demand,
    demand_same,
    enforce,
    name_of,
    seed_torch,
    usable_devices,
)
from driftline.testing.players import FEW, Case, materialise, shared_laws
from driftline.testing.refusals import Attempt, bad_input_is_refused, bad_samples, foreign_states_are_refused


@dataclass(frozen=True)
class AdapterCase(Case[Adapter]):
    """An adapter, and the source models it is made around."""

    make_adapter: Callable[[nn.Module], Adapter] | None = None
    make_model: Callable[[], nn.Module] | None = None


def check_adapter(
    make_adapter: Callable[[nn.Module], Adapter],
    make_model: Callable[[], nn.Module] | None = None,
    stream: Stream | None = None,
    *,
    per_sample: bool = True,
    steps: int = 2000,
    devices: Sequence[str] | None = None,
    laws: Collection[str] | None = None,
) -> None:
    """Try the laws of adapters on a class; needs no test framework.

    Parameters
    ----------
    make_adapter : callable
        Makes a new adapter around a source model, the same one each time (it seeds what it draws).
    make_model : callable, optional
        Makes the source model, with the same weights each time. Default: a small network with batch normalisation
        for the default stream.
    stream : Stream, optional
        What to adapt to: the first 640 samples, over and over. Default: :func:`driftline.testing.blobs`.
    per_sample : bool
        Whether ``predict`` scores each sample by itself; False for a method that predicts with the statistics of the
        batch.
    steps : int
        Length of the stream on which memory must be flat, in batches of 10; whatever fills up must be full after 0.6
        of them.
    devices : sequence of str, optional
        Where to try the laws. Default: the CPU, and CUDA where there is one.
    laws : collection of str, optional
        Names of the laws to try, of :data:`ADAPTER_LAWS`. Default: all.

    Raises
    ------
    LawBroken
        Names the laws that do not hold, and what was found.
    ConfigError
        When there is no such law or device.

    Examples
    --------
    >>> from driftline.adapters import Source
    >>> from driftline.testing import check_adapter
    >>> check_adapter(Source, steps=200)
    """
    stream = blobs() if stream is None else stream
    make_model = make_model or small_network

    def build() -> Adapter:
        return make_adapter(make_model())

    for device in usable_devices(devices):
        x, y = materialise(stream, device)
        y = torch.zeros(len(x), dtype=torch.long, device=device) if y is None else y
        case = AdapterCase(
            build,
            adapt,
            x,
            y,
            stream.classes,
            device,
            steps,
            per_sample,
            make_adapter=make_adapter,
            make_model=make_model,
        )
        enforce(name_of(build, device), ADAPTER_LAWS, case, laws)


def adapt(adapter: Adapter, x: Tensor, y: Tensor) -> Tensor:
    """Meet a batch; the labels stay here."""
    return adapter.adapt(x)


def small_network() -> nn.Module:
    """Return a source model for :func:`driftline.testing.blobs`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def no_labels(case: AdapterCase) -> None:
    """``adapt`` and ``predict`` take samples and nothing else."""
    adapter = case.fresh()
    for method in (adapter.adapt, adapter.predict):
        parameters = list(inspect.signature(method).parameters.values())
        found = ", ".join(str(p) for p in parameters) or "nothing"
        demand(len(parameters) == 1, f"{method.__name__} takes {found}; it must take x alone")
        demand(parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL, f"{method.__name__} takes {found}")


def reset_restores_the_source(case: AdapterCase) -> None:
    """After ``reset`` state and scores are bit for bit those of a new one, and so is all that follows."""
    batches = case.batches(FEW, first=FEW)
    source, adapter = case.fresh(), case.warm()
    x, _ = case.batch(2 * FEW)
    for times in ("once", "twice"):
        adapter.reset()
        demand_same(source.state_dict(), adapter.state_dict(), f"reset {times}, compared with a new one")
        demand_same(source.predict(x), adapter.predict(x), f"reset {times}, compared with a new one", "scores")
    seed_torch(PLAY_SEED, case.device)
    expected = case.trace(source, batches)
    seed_torch(PLAY_SEED, case.device)
    found = case.trace(adapter, batches)
    demand_same(expected, found, "adapting after a reset, compared with a new one", "scores")
    demand_same(source.state_dict(), adapter.state_dict(), "adapting after a reset, compared with a new one")


def reset_after_loading(case: AdapterCase) -> None:
    """A state brings along what it takes to return to the source: ``reset`` after loading gives a new one, too."""
    source, warm, adapter = case.fresh(), case.warm(), case.fresh()
    adapter.load_state_dict(copied_state(warm))
    adapter.reset()
    demand_same(
        source.state_dict(), adapter.state_dict(), "reset after loading an adapted state, compared with a new one"
    )


def copied_state(adapter: Adapter) -> Mapping[str, object]:
    """Return an adapter's state, copied."""
    state = copied(adapter.state_dict())
    assert isinstance(state, dict)
    return state


def the_callers_model_stays(case: AdapterCase) -> None:
    """The model given to the adapter keeps its weights, statistics, modes, flags and hooks."""
    assert case.make_adapter is not None and case.make_model is not None
    for training in (False, True):
        model = case.make_model().train(training).to(case.device)
        before = photograph(model)
        adapter = case.make_adapter(model).to(case.device)
        demand_same(before, photograph(model), "building the adapter changed the caller's model", "model")
        case.trace(adapter, case.batches(FEW))
        adapter.predict(case.batch(FEW)[0])
        demand_same(before, photograph(model), "adapting changed the caller's model", "model")
        adapter.reset()
        demand_same(before, photograph(model), "reset changed the caller's model", "model")


def photograph(model: nn.Module) -> dict[str, object]:
    """Return everything about a model that an adapter could change."""
    return {
        "weights": copied(dict(model.state_dict())),
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [copied(p.grad) for p in model.parameters()],
        "modules": [type(module).__qualname__ for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "batch statistics": [getattr(module, "track_running_stats", None) for module in model.modules()],
    }


def bad_batches_are_refused(case: AdapterCase) -> None:
    """NaN, Inf, wrong shapes, dtypes and empty batches raise InputError before any state changes."""

    def attempts(adapter: Adapter, known: bool) -> Iterator[Attempt]:
        for what, bad in bad_samples(case.batch(FEW)[0], known).items():
            yield f"predict({what})", partial(adapter.predict, bad)
            yield f"adapt({what})", partial(adapter.adapt, bad)

    bad_input_is_refused(case, attempts)


ADAPTER_LAWS: Mapping[str, Law[AdapterCase]] = {
    **shared_laws(),
    "adapt takes no labels": no_labels,
    "reset restores the source": reset_restores_the_source,
    "reset restores the source after loading": reset_after_loading,
    "the caller's model is untouched": the_callers_model_stays,
    "bad input is refused and changes nothing": bad_batches_are_refused,
    "the state of another one is refused": foreign_states_are_refused,
}
"""The laws of adapters, by name."""
