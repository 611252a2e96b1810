"""The loop on the device: answer each sample in time, adapt in what time is left, and survive what happens."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from driftline.adapters import Adapter
from driftline.adapters import Source as Unadapted
from driftline.adapters.collapse_guard import Detector
from driftline.adapters.settings import above, at_least, one_of
from driftline.errors import CheckpointError, ConfigError, InputError, SourceError
from driftline.learners import Learner
from driftline.stream.dataset import as_input
from driftline.stream.edge.adapting import Adapting
from driftline.stream.edge.events import EventLog
from driftline.stream.edge.floor import Floor
from driftline.stream.edge.health import Health, uncertainty
from driftline.stream.edge.int8 import Int8
from driftline.stream.edge.intake import Arrival, Intake, Overload
from driftline.stream.edge.journal import Journal
from driftline.stream.edge.labels import Labels
from driftline.stream.edge.memory import MemoryPlan, give_back
from driftline.stream.edge.pace import Pace, WhenLate
from driftline.stream.edge.placed import Placed, State
from driftline.stream.edge.planning import plan
from driftline.stream.edge.samples import Prediction, as_sample
from driftline.stream.edge.saving import Saving
from driftline.stream.edge.service_manager import ServiceManager
from driftline.stream.edge.serving import Answer, Player, Serving, describe, guarded, shipped_model
from driftline.stream.edge.sink import Receiver, Sink
from driftline.stream.edge.state import StateStore
from driftline.stream.edge.watch import Watch
from driftline.stream.events import Id, Label
from driftline.stream.live import Entrance, Source
from driftline.weights import weights_hash

TICK = 0.1
"""Seconds between looks at the clock and at signals while no sample comes."""
CLOSING = 10.0
"""Seconds that a receiver, a checkpoint being written and an adaptation are waited for at the end."""
LEAVING = 2.0
"""Seconds that the source is waited for at the end: it may be one that never says anything again."""

VERSION = 1
"""Of the state's layout."""

Handler = Callable[[int, FrameType | None], object] | int | None


class AdaptationLoop:
    """Answers every sample of a live source within a latency budget, and adapts when there is time.

    An iterator of :class:`Prediction`. A sample is predicted first; when the caller comes back for the next one, what
    it was answered counts as delivered, and the loop adapts, saves and reports as far as is due. As a context manager
    it stops on SIGTERM and SIGINT with a last checkpoint; :meth:`run` does that and hands the predictions to a
    ``sink``. Made anew on the same folder it goes on where the last checkpoint was. A source with ``seek(position)`` is
    taken there, and what came after the checkpoint is answered once more, and so is a
    :class:`~driftline.stream.edge.placed.Placed` source of records; others go on with what comes next.

    Parameters
    ----------
    player : Adapter or Learner
        An adapter adapts to the samples, a learner learns from the labels that come back. Used, not copied.
    source : iterable or callable
        Gives ``x``, ``(x, y)``, :class:`Sample` or :class:`Label`; a function that returns such an iterable is
        called again when reading it fails. It is read in a thread of its own.
    latency_budget : float
        Seconds from a sample's arrival to its prediction.
    state_dir : path or StateStore
        Folder of the state and the log.
    memory_budget : int, optional
        Bytes that the process may take in all; needs ``example``.
    shipped : nn.Module, optional
        The model as it was shipped, copied. Needed unless the player's network is still just that.
    example : Tensor, shape (*input), optional
        A sample such as will come. With it, memory and time are planned before the start (``plan``).
    guard : bool, optional
        Put guards around the adapter, unless it has one: a :class:`~driftline.adapters.CollapseGuard` that watches
        entropy and marginal, and, where it trains, a :class:`~driftline.adapters.DisagreementGuard`. Default: the
        former when it adapts to 8 samples at a time or more, the latter always.
    floor : Floor, optional
        When labels show that the adapted model errs more than the shipped one, the shipped one answers.
    sink : callable, optional
        ``sink(prediction)``, called in a thread of its own.
    quantize : "int8", optional
        Let the player predict in eight bits where torch can (:class:`~driftline.stream.edge.int8.Int8`): convolutions
        and linear layers. It adapts in float, and each change of the weights is served at once. The shipped model
        answers in float.
    batch_size : int
        Samples collected for one adaptation.
    window : int
        Samples that are predicted together, the newest last; for adapters that normalise by the batch.
    when_late : "smaller", "skip" or "background"
        See :class:`Pace`.
    queue, overload
        See :class:`Intake`.
    checkpoint_every, report_every : float
        Seconds between states written, and between lines of health in the log.
    stall_after : float
        Seconds without a sample after which the source is said to stall.
    pause : float
        Seconds without adapting after a failure; doubled with each further one, up to an hour.
    pending : int
        Samples that may wait for their label; the oldest is forgotten.
    detector : object, optional
        A drift detector, told 1 - confidence of each answer. It starts anew with the process.
    log : EventLog, optional
        Default: ``events.jsonl`` in the folder.
    clock : callable
        Returns seconds; a monotonic clock. One that goes back counts as standing still.
    reconnect : (float, float)
        See :class:`Intake`.

    Attributes
    ----------
    health : Health
        Counters and latency.
    position : int
        Items of the source that are dealt with.
    plan : MemoryPlan or None
        What memory it needs, where an example was given.

    Raises
    ------
    ConfigError
        For a setting out of range, a folder that another loop owns, or a plan that does not fit the budget.
    CheckpointError
        When the folder holds the state of another model or adapter.
    SourceError
        By the iterator: when the source failed and cannot be opened again. What came before is answered and saved.

    Notes
    -----
    Regression is not supported: answers are class scores. Labels that wait are forgotten when the process ends.

    Examples
    --------
    >>> import tempfile
    >>> from driftline.adapters import BatchNormAdapter
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> adapter = BatchNormAdapter(model, "running")
    >>> folder = tempfile.mkdtemp()
    >>> with AdaptationLoop(adapter, torch.randn(40, 4), latency_budget=5, state_dir=folder, shipped=model) as loop:
    ...     labels = [prediction.label for prediction in loop]
    >>> len(labels), loop.position, loop.health.counts["predictions"]
    (40, 40, 40)
    """

    def __init__(
        self,
        player: Player,
        source: Source,
        *,
        latency_budget: float,
        state_dir: str | Path | StateStore,
        memory_budget: int | None = None,
        shipped: nn.Module | None = None,
        example: Tensor | None = None,
        guard: bool | None = None,
        floor: Floor | None = None,
        sink: Receiver | None = None,
        quantize: Literal["int8"] | None = None,
        batch_size: int = 16,
        window: int = 1,
        when_late: WhenLate = "smaller",
        queue: int = 64,
        overload: Overload = "block",
        checkpoint_every: float = 300.0,
        report_every: float = 60.0,
        stall_after: float = 10.0,
        pause: float = 60.0,
        pending: int = 256,
        detector: Detector | None = None,
        log: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
        reconnect: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        if not isinstance(player, (Adapter, Learner)):
            raise ConfigError(f"player is {type(player).__name__}; give an adapter or a learner")
        for name, value in (("batch_size", batch_size), ("window", window), ("pending", pending)):
            at_least(name, value, 1)
        periods = {"checkpoint_every": checkpoint_every, "report_every": report_every, "stall_after": stall_after}
        for name, seconds in (periods | {"pause": pause}).items():
            above(name, seconds, 0)
        if memory_budget is not None and example is None:
            raise ConfigError("memory_budget needs example=..., a sample such as will come, to plan with")
        self.clock, self.window, self.detector = clock, window, detector
        self.pace, self.floor = Pace(latency_budget, when_late), floor or Floor()
        model = shipped_model(player, shipped)
        self._hash = weights_hash(model)
        if quantize is not None:
            one_of("quantize", quantize, ("int8",))
        int8 = None if quantize is None else Int8(player.network() or model)
        player = guarded(player, model, guard, batch_size, int8)
        self._gate, self.plan = Entrance("sample", 0), cast(MemoryPlan | None, None)
        if example is not None:
            x = as_input(self._gate((example, None), 0)[0])[None]
            self.plan = plan(
                *(player, x),
                batch_size=batch_size,
                window=window,
                waiting=queue + pending + window,
                background=when_late == "background",
                limit=memory_budget,
                pace=self.pace,
                int8=int8,
                clock=clock,
            )
            batch_size = self.plan.batch_size
        self.position = 0
        self._recent: deque[Tensor] = deque(maxlen=window)
        self._last: tuple[Prediction, Tensor | None, Answer | None, object] | None = None
        self.store = state_dir if isinstance(state_dir, StateStore) else StateStore(state_dir, clock=clock)
        try:
            self.journal = Journal(log or EventLog(self.store.folder / "events.jsonl"), report_every, clock)
            self.health = self.journal.health
            state = self._found(player)
            self.serving = Serving(player, model, when_late == "background", load=state.get("player"), int8=int8)
            self.adapting = Adapting(self.serving, self.pace, batch_size, pause, self.journal, clock)
            self._labels = Labels(self.serving, self.adapting, self.floor, self.journal, pending)
            self._resume(state)
            self._placed = source if isinstance(source, Placed) else None
            if self._placed and not self._placed.begin(self.position, cast("State | None", state.get("source"))):
                self.journal.log.write("another_source", name=self._placed.name)
            self._intake = Intake(source, queue, overload, self.position, clock, reconnect)
        except BaseException:
            self.store.close()
            raise
        self._sink = Sink(sink) if sink is not None else None
        self._saving = Saving(self.store, checkpoint_every, self.journal, clock)
        if not state:
            self._saving.start(self._state(), force=True)
        self._watch = Watch(self._intake, self._sink, self.journal, stall_after, clock)
        self._stop = self.closed = False
        self._manager: ServiceManager | None = None
        self._handlers: dict[signal.Signals, Handler] = {}

    # --- use

    def __iter__(self) -> Iterator[Prediction]:
        return self

    def __next__(self) -> Prediction:
        """Deal with what the last sample left to do, wait for the next one and answer it."""
        if self.closed:
            raise StopIteration
        self._after()
        while not self._stop:
            arrival = self._intake.get(TICK)
            if arrival is None:
                if self._intake.ended:
                    break
                self._watch.nothing_came(self.position)
                self._chores()
                continue
            self._watch.heard()
            if not isinstance(arrival.item, Label):
                return self._answer(arrival)
            self.feedback(arrival.item.id, arrival.item.y)
            self.position = arrival.position + 1
            self._chores()
        failed = None if self._stop or callable(self._intake.source) else self._intake.error
        self.close("it was asked to" if self._stop else failed or "the source is over")
        if failed:
            raise SourceError(f"the source failed at position {self.position}: {failed}; all before it is answered")
        raise StopIteration

    def run(self) -> Health:
        """Go on until the source ends or the loop is stopped; predictions go to the sink alone.

        A service manager with a watchdog, such as systemd's, is told that the loop is alive
        (:class:`~driftline.stream.edge.service_manager.ServiceManager`).
        """
        self._manager = ServiceManager()
        self._manager.ready()
        with self:
            for _ in self:
                pass
        return self.health

    def stop(self, *_: object) -> None:
        """Ask the loop to end before the next sample, from a signal handler or another thread."""
        self._stop = True

    @property
    def checkpoint_age(self) -> float:
        """Seconds since a state was written, or since the start."""
        return self._saving.age

    @property
    def slowest_write(self) -> float:
        """Seconds that the slowest write of a state has taken since the start."""
        return self._saving.slowest

    def feedback(self, id: Id, y: object) -> None:
        """Take in the label of a sample that was answered; call it from the thread that iterates."""
        self._labels.feedback(id, y)

    def close(self, why: str = "closed") -> None:
        """Save, let the receiver take what waits, and give the folder back; called again it does nothing."""
        if self.closed:
            return
        self.closed = True
        if self._manager:
            self._manager.stopping()
        self._after()
        self._intake.close(LEAVING)
        if self._sink is not None:
            self._sink.close(CLOSING)
        saved = self._saving.finish(self._state, CLOSING)
        self._watch.look()
        self.serving.close(CLOSING)
        self.journal.log.write("stopped", why=why, position=self.position, state=saved, **self.health.report())
        self.journal.log.close()
        self.store.close()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Elsewhere than in the main thread Python takes no handlers.
            with contextlib.suppress(ValueError):
                self._handlers[number] = signal.signal(number, self.stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is not None:
            # The caller has not dealt with the last answer, so it does not count as delivered.
            self._last = None
        self.close("closed" if kind is None else f"{kind.__name__} in the caller's code")

    # --- a sample

    def _answer(self, arrival: Arrival) -> Prediction:
        sample = as_sample(arrival.item)
        name = arrival.position if sample.id is None else sample.id
        x: Tensor | None = None
        answer: Answer | None = None
        try:
            if isinstance(sample.x, InputError):
                raise sample.x
            x = as_input(self._gate((sample.x, None), arrival.position)[0])[None]
            answer = self.serving.predict(torch.cat([*self._recent, x])[-self.window :], not self.floor.adapted)
        except Exception as error:
            if x is None:
                self.health.count("damaged")
                self.journal.say("damaged", position=arrival.position, error=describe(error))
            else:
                self.journal.say("no_answer", position=arrival.position, error=describe(error))
            prediction = Prediction(name, arrival.position, None, "none", self._since(arrival.at), describe(error))
        else:
            prediction = Prediction(name, arrival.position, answer.scores, answer.served, self._since(arrival.at))
        if answer is not None:
            self.pace.predicted(min(prediction.latency, self._since(self._watch.heard_at)))
        self.health.answered(prediction.latency, prediction.latency > self.pace.budget)
        if self._sink is not None:
            self._sink.put(prediction)
        self._last = prediction, x, answer, sample.y
        return prediction

    def _after(self) -> None:
        """Do what the last answer left to do."""
        if self._last is None:
            return
        (prediction, x, answer, y), self._last = self._last, None
        self.position = prediction.position + 1
        if x is not None and answer is not None:
            self.health.count("served_shipped", answer.served == "shipped")
            if answer.trouble is not None:
                self.health.count("predict_failures")
                if not answer.memory:
                    self.adapting.recover(answer.trouble)
            self._recent.append(x)
            self._labels.remember(prediction.id, self._recent, answer)
            # A learner waits for labels, and a model that is not adapted for nothing.
            if not isinstance(self.serving.player, (Learner, Unadapted)):
                self.adapting.collect(x)
            if y is not None:
                self.feedback(prediction.id, y)
            self._look_for_drift(answer.scores)
        self._chores()

    def _look_for_drift(self, scores: Tensor) -> None:
        if self.detector is not None:
            self.detector.update(uncertainty(scores))
            if self.detector.drift_detected:
                self.health.count("drift_alarms")
                self.journal.say("drift", position=self.position)

    # --- what is done between samples

    def _chores(self) -> None:
        if self._placed:
            # Only what is not dealt with has to be found again.
            self._placed.place(self._delivered)
        self.adapting.step(self._intake.waiting)
        self._saving.look()
        if self._saving.due:
            self._saving.start(self._state())
        self._watch.look()
        served = "adapted" if self.floor.adapted else "shipped"
        if self._manager:
            self._manager.alive(f"{self.health.counts['predictions']} answered, {served} model")
        reported = self.journal.report(
            position=self.position,
            checkpoint_age=round(self.checkpoint_age, 3),
            slowest_write=round(self.slowest_write, 3),
            served=served,
        )
        if reported:
            give_back()

    @property
    def _delivered(self) -> int:
        """Items that need not be read again."""
        undelivered = None if self._sink is None else self._sink.first_undelivered()
        return self.position if undelivered is None else min(self.position, undelivered)

    def _since(self, start: float) -> float:
        return max(0.0, self.clock() - start)

    # --- state

    def _state(self) -> dict[str, object]:
        """Return all that a later process needs to go on; what is saved counts as good from now on."""
        self.serving.good = self.serving.snapshot()
        position = self._delivered
        return {
            "version": VERSION,
            "shipped": self._hash,
            "player": self.serving.good,
            "position": position,
            "source": self._placed.place(position) if self._placed else None,
            "health": self.health.state_dict(),
            "floor": self.floor.state_dict(),
            "adapting": self.adapting.state_dict(),
            "recent": list(self._recent),
            "allowance": self.store.allowance - self.store.last_size,
        }

    def _found(self, player: Player) -> dict[str, object]:
        """Return the state in the folder, empty when there is none, having checked that it is this model's."""
        found = self.store.newest()
        for damage in self.store.damaged:
            self.journal.log.write("damaged_state", error=damage)
        if not self.store.writable:
            self.journal.log.write("read_only", folder=str(self.store.folder))
        if found is None:
            self.journal.log.write("started", player=player.describe()["name"], lost=bool(self.store.damaged))
            return {}
        generation, state = found
        if state.get("version") != VERSION or state.get("shipped") != self._hash:
            raise CheckpointError(
                f"{self.store.folder} holds the state of another shipped model (or of another version of driftline); "
                "choose another folder, or remove it"
            )
        self.journal.log.write("resumed", generation=generation, position=state["position"])
        return state

    def _resume(self, state: dict[str, object]) -> None:
        if self.plan is not None:
            self.journal.log.write("plan", bytes=self.plan.total, batch_size=self.plan.batch_size)
        if not state:
            return
        self.position = cast(int, state["position"])
        self.health.load_state_dict(cast("dict[str, object]", state["health"]))
        self.store.allowance = min(self.store.allowance, cast(float, state["allowance"]))
        # A roll-back by hand leaves these two out.
        if state["floor"] is not None:
            self.floor.load_state_dict(cast("dict[str, object]", state["floor"]))
        if state["adapting"] is not None:
            self.adapting.load_state_dict(cast("dict[str, object]", state["adapting"]))
        self._recent.extend(cast("list[Tensor]", state["recent"]))
