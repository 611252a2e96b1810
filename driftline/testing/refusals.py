"""Input that must be refused: which, and whether a refusal leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from driftline.errors import CheckpointError, InputError
from driftline.testing.laws import PLAY_SEED, copied, demand, demand_same, no_global_draws, seed_torch
from driftline.testing.players import FEW, Case, P, modes

Attempt = tuple[str, Callable[[], object]]
"""What is tried, and how."""


def bad_input_is_refused(case: Case[P], attempts: Callable[[P, bool], Iterator[Attempt]]) -> None:
    """Each attempt raises InputError and changes nothing, now or later."""
    batches = case.batches(FEW, first=FEW)
    for age in ("new", "warm"):
        undisturbed = case.fresh() if age == "new" else case.warm()
        seed_torch(PLAY_SEED, case.device)
        expected = case.trace(undisturbed, batches)
        player = case.fresh() if age == "new" else case.warm()
        state, training = copied(player.state_dict()), modes(player)
        for what, attempt in attempts(player, age == "warm"):
            with no_global_draws(f"{what}, given to a {age} one,"):
                demand_refusal(attempt, f"{what}, given to a {age} one")
            demand_same(state, player.state_dict(), f"{what} was refused by a {age} one, but changed its state")
            demand(training == modes(player), f"{what} was refused by a {age} one, but changed its training mode")
        seed_torch(PLAY_SEED, case.device)
        when = f"after refusing bad input, a {age} one went on otherwise"
        demand_same(expected, case.trace(player, batches), when, "scores")
        demand_same(undisturbed.state_dict(), player.state_dict(), when)


def demand_refusal(attempt: Callable[[], object], what: str) -> None:
    """Raise AssertionError unless the attempt raises InputError."""
    try:
        attempt()
    except InputError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} ({error}) instead of InputError") from error
    raise AssertionError(f"{what}: accepted")


def bad_samples(x: Tensor, known: bool) -> dict[str, Tensor]:
    """Return samples that must be refused; ``known`` when the shape of a sample is known already."""
    bad = {"an empty batch": x[:0], "x of dtype bool": x > 0}
    if x.is_floating_point():
        for name, value in (("NaN", float("nan")), ("Inf", float("inf"))):
            spoiled = x.clone()
            spoiled.view(len(x), -1)[len(x) // 2, -1] = value
            bad[f"{name} in x"] = spoiled
    if known:
        bad["samples with a value too many"] = torch.cat((x, x[..., -1:]), dim=-1)
        bad["a sample without the batch dimension"] = x[0]
    return bad


def bad_labels(y: Tensor, classes: Sequence[str], known: int | None) -> dict[str, Tensor]:
    """Return labels for a batch that must be refused; ``known`` is the learner's number of classes."""
    bad = {"a label too few": y[:-1], "labels and no batch dimension": y[0]}
    spoiled = y.clone()
    if not classes:
        spoiled.view(len(y), -1)[0, 0] = float("nan")
        return {**bad, "NaN among the targets": spoiled}
    spoiled[len(y) // 2] = -1
    bad |= {"a negative label": spoiled, "labels of dtype float": y.float(), "labels of dtype bool": y > 0}
    if known is not None:
        bad["a label out of range"] = torch.where(spoiled < 0, known, spoiled)
    return bad


def foreign_states_are_refused(case: Case[P]) -> None:
    """A state of something else raises CheckpointError, and nothing has been changed."""
    player = case.warm()
    state: Mapping[str, object] = player.state_dict()
    own = copied(state)
    foreign = {"an empty state": {}, "a state with an entry too many": {**state, "of another class": 1}}
    foreign |= {f"a state without {key!r}": {k: v for k, v in state.items() if k != key} for key in state}
    for what, other in foreign.items():
        try:
            player.load_state_dict(other)
        except CheckpointError:
            demand_same(own, player.state_dict(), f"load_state_dict({what}) was refused, but changed something")
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__} ({error}) instead of CheckpointError") from error
        else:
            demand(False, f"{what}: loaded without an error")
