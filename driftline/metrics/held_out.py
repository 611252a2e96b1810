"""Held-out evaluation while the stream runs: accuracy on what has been met, forgetting and transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from driftline.errors import ConfigError
from driftline.metrics import summaries
from driftline.metrics.base import Metric, Point
from driftline.metrics.online import need_classes
from driftline.metrics.probe import Probe, Tasks, live_probe, stream_probe, tasks_of
from driftline.metrics.summaries import EvaluationSchedule
from driftline.stream.dataset import Dataset
from driftline.stream.live import LiveStream
from driftline.stream.step import Step
from driftline.stream.stream import Stream


class HeldOut(Metric):
    """Accuracy on held-out samples, every so many samples and at the end of each segment.

    A held-out sample counts once its class has been met, in the segment's own form (domain); an evaluation thus
    gets harder as classes appear. At the ends of segments all segments' held-out samples are evaluated apart, which
    gives the accuracy matrix R behind forgetting and transfer.

    Parameters
    ----------
    every : int, optional
        Samples between evaluations; None: only at the ends of segments.
    test : Dataset, optional
        Held-out data for a live stream, or in place of the stream's ``"test"`` split.
    compete : "met", "all" or "task"
        Which classes' scores compete: those met so far (the Si-Blurry and i-Blurry protocol), all, or those of the
        sample's own task, which the learner is then told too (task-incremental evaluation). The task is that of the
        first segment that the sample stands for.
    batch_size : int
        Samples per forward pass.
    schedule : "paper" or "released"
        When an evaluation is due, see :class:`driftline.metrics.summaries.EvaluationSchedule`.

    Raises
    ------
    DataError
        When there is nothing to evaluate on.

    Examples
    --------
    >>> import driftline
    >>> from driftline.learners import NearestClassMean
    >>> from driftline.metrics import HeldOut
    >>> stream = driftline.scenarios.class_incremental(driftline.load("digits"), tasks=5)
    >>> for step in driftline.play(stream, NearestClassMean(), batch_size=10, metrics=[HeldOut(every=200)]):
    ...     pass
    >>> {name: round(value, 2) for name, value in step.metrics().items() if name in ("a_last", "forgetting")}
    {'a_last': 0.92, 'forgetting': 0.03}
    """

    looks_first: ClassVar[bool] = True
    definitions: ClassVar[Mapping[str, str]] = {
        "held_out_accuracy": "accuracy on held-out samples of what has been met so far, at the latest evaluation",
        "held_out_accuracy/*": "the same on the held-out samples of one segment, by its number, at ends of segments",
        "a_auc": "mean of the held-out accuracies of all periodic evaluations",
        "a_avg": "mean of the held-out accuracies at the ends of segments",
        "a_last": "held-out accuracy at the end of the last segment played",
        "f_last": "per class: best accuracy at the end of an earlier segment minus the last; mean over classes",
        "average_accuracy": "mean over segments of the final accuracy on each segment's held-out samples",
        "forgetting": "mean over earlier segments of the best earlier accuracy minus the final one",
        "backward_transfer": "mean over earlier segments of the final accuracy minus that right after learning it",
        "forward_transfer": "mean over later segments of the accuracy just before learning it minus the untrained "
        "model's",
    }

    def __init__(
        self,
        every: int | None = 1000,
        *,
        test: Dataset | None = None,
        compete: Literal["met", "all", "task"] = "met",
        batch_size: int = 512,
        schedule: Literal["paper", "released"] = "paper",
    ) -> None:
        if compete not in ("met", "all", "task"):
            raise ConfigError(f'compete={compete!r}: must be "met", "all" or "task"')
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        self.every, self.test, self.compete, self.batch_size = every, test, compete, batch_size
        self.schedule = schedule
        self._schedule = EvaluationSchedule(every, schedule) if every is not None else None
        self._probe: Probe | None = None
        self._tasks: Tasks | None = None
        self._log: list[Point] = []
        self._last = float("nan")
        self.periodic: list[float] = []
        """Accuracy of each periodic evaluation."""
        self.ends: list[float] = []
        """Accuracy at the end of each segment played."""
        self.class_rows: list[list[float]] = []
        """Accuracy per class at the end of each segment played (NaN: not met)."""
        self.matrix_rows: list[list[float]] = []
        """Accuracy on each segment's held-out samples at the end of each segment played."""
        self.baseline: list[float] = []
        """Accuracy of the untrained model on each segment's held-out samples."""

    def describe(self) -> dict[str, object]:
        """Return name and parameters, the test data among them."""
        return {**super().describe(), "test": None if self.test is None else self.test.name}

    def begin(self, stream: Stream | LiveStream, batch_size: int) -> None:
        """Collect the held-out samples."""
        need_classes(self, stream)
        if isinstance(stream, LiveStream):
            if self.every is None:
                raise ConfigError("HeldOut(every=None) evaluates at the ends of segments, which a live stream lacks")
            if self.compete == "task":
                raise ConfigError('HeldOut(compete="task") needs tasks, which a live stream does not have')
            self._probe = live_probe(stream, self.test)
        else:
            self._probe = stream_probe(stream, self.test)
            self._tasks = tasks_of(self._probe, stream) if self.compete == "task" else None

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return where the next evaluation is due."""
        if self.every is None:
            return None
        return (position // self.every + 1) * self.every if self.schedule == "paper" else position + batch_size

    def before(self, step: Step) -> None:
        """Evaluate the untrained model, once."""
        if step.batch.position == 0 and len(self._members()) > 1:
            _, free = self._predict(step, torch.ones_like(self._need().met, dtype=torch.bool), 0)
            self.baseline = [_mean(free[m]) for m in self._members()]

    def update(self, step: Step) -> None:
        """Evaluate where it is due."""
        seen = step.batch.stop
        due = self._schedule is not None and self._schedule.due(seen)
        if not due and not step.batch.ends_segment:
            return
        probe = self._need()
        met = probe.met < seen
        wanted = met.clone()
        index = len(self.ends)
        if step.batch.ends_segment and index + 1 < len(probe.members):
            wanted[probe.members[index + 1]] = True
        hits, free = self._predict(step, wanted, seen)
        accuracy = self._last = _mean(hits[met])
        self._log.append((seen, "held_out_accuracy", accuracy))
        if due and accuracy == accuracy:
            self.periodic.append(accuracy)
        if step.batch.ends_segment:
            self.ends.append(accuracy)
            classes = len(probe.class_met)
            self.class_rows.append([_mean(hits[met & (probe.classes == c)]) for c in range(classes)])
            row = [_mean(free[m] if j == index + 1 else hits[m][met[m]]) for j, m in enumerate(probe.members)]
            self.matrix_rows.append(row)
            self._log += [(seen, f"held_out_accuracy/{j}", v) for j, v in enumerate(row[: index + 1]) if v == v]

    def _predict(self, step: Step, wanted: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """For each wanted sample, whether it is predicted right with the competing classes, and with all."""
        probe = self._need()
        hits = torch.full((len(wanted),), float("nan"))
        free = hits.clone()
        reader = probe.stream.reader(self.batch_size, step.batch.x.device)
        barred = (probe.class_met >= seen).to(step.batch.x.device) if self.compete == "met" else None
        step.learner.trusted = True
        try:
            for start in range(0, len(wanted), self.batch_size):
                stop = min(start + self.batch_size, len(wanted))
                mine = wanted[start:stop]
                if not bool(mine.any()):
                    continue
                x, y = reader.read(start, stop)
                place = mine.to(x.device)
                assert y is not None
                scores = self._scores(step, x[place], torch.arange(start, stop)[mine])
                right = scores.argmax(-1) == y[place]
                free[start:stop][mine] = right.float().cpu()
                if barred is not None:
                    # Outputs beyond the stream's classes are never met.
                    scores = scores[:, : len(barred)]
                    scores = scores.masked_fill(barred[: scores.shape[-1]], float("-inf"))
                    right = scores.argmax(-1) == y[place]
                hits[start:stop][mine] = right.float().cpu()
        finally:
            step.learner.trusted = False
        return hits, free

    def _scores(self, step: Step, x: Tensor, samples: Tensor) -> Tensor:
        """Return the learner's scores for held-out samples, of those of a task with only its classes competing."""
        if self._tasks is None:
            return step.learner.predict(x)
        # Adapters know no tasks.
        ask = getattr(step.learner, "predict_task", lambda x, task: step.learner.predict(x))
        task_of = self._tasks.of[samples]
        found: list[tuple[Tensor, Tensor]] = []
        for task in sorted(set(task_of.tolist())):
            mine = (task_of == task).nonzero().flatten().to(x.device)
            scores = ask(x[mine], task)
            rivals = F.pad(self._tasks.classes[task], (0, max(0, scores.shape[-1] - self._tasks.classes.shape[-1])))
            rivals = rivals[: scores.shape[-1]].to(x.device)
            found.append((mine, scores.masked_fill(~rivals, float("-inf"))))
        order = torch.cat([mine for mine, _ in found]).argsort()
        return torch.cat([scores for _, scores in found])[order]

    def _need(self) -> Probe:
        if self._probe is None:
            raise ConfigError("HeldOut has not begun; pass it to play() or run() as a metric")
        return self._probe

    def _members(self) -> list[Tensor]:
        return self._need().members

    @property
    def matrix(self) -> np.ndarray:
        """R[i, j]: accuracy on segment j's held-out samples after segment i, NaN where unknown; (played, segments)."""
        return np.array(self.matrix_rows, dtype=np.float64)

    def value(self) -> dict[str, float]:
        """Return the latest accuracy and the summaries of all evaluations so far, see ``definitions``."""
        values = {
            "held_out_accuracy": self._last,
            "a_auc": summaries.a_auc(self.periodic),
            "a_avg": summaries.a_avg(self.ends),
            "a_last": summaries.a_last(self.ends),
        }
        if len(self.ends) > 1:
            values["f_last"] = summaries.f_last(self.class_rows)
            values |= self._transfer()
        return values

    def _transfer(self) -> dict[str, float]:
        """Summaries of the accuracy matrix up to the last segment played, those without held-out samples left out."""
        played = len(self.matrix_rows)
        matrix = self.matrix[:, :played]
        kept = ~np.isnan(matrix.diagonal())
        matrix = matrix[kept][:, kept]
        if len(matrix) < 2:
            return {}
        values = {
            "average_accuracy": summaries.average_accuracy(matrix),
            "forgetting": summaries.forgetting(matrix),
            "backward_transfer": summaries.backward_transfer(matrix),
        }
        if self.baseline:
            baseline = np.array(self.baseline[:played])[kept]
            values["forward_transfer"] = summaries.forward_transfer(matrix, baseline)
        return values

    def points(self, position: int) -> list[Point]:
        """Return the evaluations made since the last call, each at its own position."""
        log, self._log = self._log, []
        return log

    def state_dict(self) -> dict[str, object]:
        """Return all evaluations so far."""
        return {
            "schedule": self._schedule.state_dict() if self._schedule is not None else None,
            "log": [list(point) for point in self._log],
            "last": self._last,
            "periodic": list(self.periodic),
            "ends": list(self.ends),
            "classes": [list(row) for row in self.class_rows],
            "matrix": [list(row) for row in self.matrix_rows],
            "baseline": list(self.baseline),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        if self._schedule is not None:
            self._schedule.load_state_dict(cast(Mapping[str, int], state["schedule"]))
        self._log = [(int(p), str(n), float(v)) for p, n, v in cast(list[tuple[int, str, float]], state["log"])]
        self._last = cast(float, state["last"])
        self.periodic = list(cast(list[float], state["periodic"]))
        self.ends = list(cast(list[float], state["ends"]))
        self.class_rows = [list(row) for row in cast(list[list[float]], state["classes"])]
        self.matrix_rows = [list(row) for row in cast(list[list[float]], state["matrix"])]
        self.baseline = list(cast(list[float], state["baseline"]))


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else float("nan")
