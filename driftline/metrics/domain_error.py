"""Error per domain, and the plain mean over domains: the number of the literature on test-time adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from driftline.errors import CheckpointError
from driftline.metrics.base import Metric, Point
from driftline.metrics.online import FLUSH, need_classes
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class DomainError(Metric):
    """Share of samples predicted wrong in each domain before being learned from, and the plain mean over domains.

    A sample's domain is the stream's (:attr:`driftline.stream.Stream.domain_names`): that of its recipe in mixed
    streams, else the name of its segment. Where a domain comes back, each segment that shows it is a visit. Every
    domain counts the same in the mean, however many samples it has. Samples without a known truth do not count. A live
    stream is one domain.

    In the series, ``domain_error_now/*`` is the error among the domain's samples since the last recorded value: the
    curve within the domain.

    Two counts are kept for each visit, that is each domain that a segment shows, and for each domain: 40 bytes a visit
    at most, also where a long walk brings a new domain with every segment.

    References
    ----------
    Wang et al., "Continual Test-Time Domain Adaptation" (CVPR 2022): the mean over 15 corruptions.
    Hoang, Vo & Do, "Persistent Test-time Adaptation in Recurring Testing Scenarios" (NeurIPS 2024): error by visit.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics import DomainError
    >>> data = driftline.stream.Segment.of(driftline.load("digits"))
    >>> day, night = data.named("day"), data.corrupt("gaussian_noise", severity=5).named("night")
    >>> stream = driftline.stream.Stream([day, night, day])
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[DomainError()]):
    ...     pass
    >>> values = step.metrics()
    >>> [*values]
    ['domain_error', 'domain_error/day', 'domain_error/night', 'domain_error_visit/day/0', 'domain_error_visit/day/1']
    >>> values["domain_error"] == (values["domain_error/day"] + values["domain_error/night"]) / 2
    True
    """

    definitions: ClassVar[Mapping[str, str]] = {
        "domain_error": "mean over the domains met of the share of samples predicted wrong",
        "domain_error/*": "share of samples predicted wrong in one domain, before being learned from",
        "domain_error_visit/*": "the same in one visit to a domain that came back, counted from 0",
        "domain_error_now/*": "share predicted wrong among a domain's samples since the last recorded value",
    }

    def __init__(self) -> None:
        self._names: list[str] = []
        self._visits = torch.empty(0, dtype=torch.long)  # (V,): segment * domains + domain, ascending
        self._table = torch.empty(0, 2)  # (V, 2): samples, and those predicted wrong
        self._noted = torch.empty(0, 2)  # (domains, 2): the same when last recorded
        self._pending: list[tuple[Tensor, Tensor, int, Tensor]] = []

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Make room for the stream's segments and domains."""
        need_classes(self, stream)
        # The series on disk has commas and line breaks between its entries.
        self._names = [" ".join(name.replace(",", ";").split()) for name in stream.domain_names]
        width = len(self._names)
        visits = [segment * width + domain for segment, shown in enumerate(stream.domains_shown) for domain in shown]
        self._visits = torch.tensor(visits, dtype=torch.long)
        self._table = torch.zeros(len(visits), 2, dtype=torch.float64)
        self._noted = torch.zeros(width, 2, dtype=torch.float64)
        self._pending = []

    def update(self, step: Step) -> None:
        """Take in the step's predictions."""
        batch, stream = step.batch, step.stream
        if batch.y is None or step.prediction is None:
            return
        assert isinstance(stream, (Stream, LiveStream))
        domains = stream.domains(batch)
        # Kept as they are, since calls for each small batch would cost more than the sums.
        self._pending.append((step.prediction.argmax(-1), batch.y, batch.segment.index, domains))
        if len(self._pending) >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        predicted = torch.cat([classes for classes, _, _, _ in self._pending])
        y = torch.cat([truth for _, truth, _, _ in self._pending])
        width = len(self._names)
        visit = torch.cat([domains + segment * width for _, _, segment, domains in self._pending])
        place = torch.searchsorted(self._visits, visit)
        self._pending = []
        known = y >= 0
        counts = torch.stack([known, known & (predicted != y)], 1).double()
        self._table = self._table.to(y.device, non_blocking=True)
        found = torch.zeros_like(self._table)
        found.index_add_(0, place.to(y.device, non_blocking=True), counts)
        self._table = self._table + found

    def _by_domain(self, visits: Tensor) -> Tensor:
        """Return the counts of each domain, (domains, 2), from those of visits on the CPU."""
        domains = torch.zeros(len(self._names), 2, dtype=torch.float64)
        return domains.index_add_(0, self._visits % max(1, len(self._names)), visits)

    def value(self) -> dict[str, float]:
        """Return ``domain_error``, that of each domain met, and of each visit to one that came back; in [0, 1]."""
        self._flush()
        visits = self._table.cpu()
        errors = self._errors(self._by_domain(visits))
        values = {"domain_error": _mean(errors), **{f"domain_error/{name}": e for name, e in errors.items()}}
        each: dict[int, list[float]] = {}
        for visit, (samples, wrong) in zip(self._visits.tolist(), visits.tolist()):
            if samples > 0:
                each.setdefault(visit % len(self._names), []).append(wrong / samples)
        for domain, shown in sorted(each.items()):
            if len(shown) > 1:
                values |= {f"domain_error_visit/{self._names[domain]}/{i}": error for i, error in enumerate(shown)}
        return values

    def _errors(self, domains: Tensor) -> dict[str, float]:
        """Return the error in each domain that has samples, by name."""
        return {name: wrong / n for name, (n, wrong) in zip(self._names, domains.tolist()) if n > 0}

    def points(self, position: int) -> list[Point]:
        """Return the mean so far, and the error of each domain among its samples since the last call."""
        self._flush()
        domains = self._by_domain(self._table.cpu())
        now = self._errors(domains - self._noted)
        self._noted = domains
        curve = [(position, f"domain_error_now/{name}", error) for name, error in now.items()]
        return [(position, "domain_error", _mean(self._errors(domains))), *curve]

    def merge(self, later: Self) -> None:
        """Add what was measured on a later part of the stream."""
        self._flush()
        later._flush()
        self._table = self._table + later._table.to(self._table.device)

    def state_dict(self) -> dict[str, object]:
        """Return the counts."""
        self._flush()
        return {"table": self._table, "noted": self._noted}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            When it was measured on a stream with other segments or domains.
        """
        table, noted = cast(Tensor, state["table"]), cast(Tensor, state["noted"])
        if (table.shape, noted.shape) != (self._table.shape, self._noted.shape):
            raise CheckpointError(
                f"DomainError: the state has {len(table)} visits to {len(noted)} domains, "
                f"the stream {len(self._table)} to {len(self._noted)}"
            )
        self._pending = []
        self._table, self._noted = table, noted.cpu()


def _mean(errors: Mapping[str, float]) -> float:
    return sum(errors.values()) / len(errors) if errors else float("nan")
