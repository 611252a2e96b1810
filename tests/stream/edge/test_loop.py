from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from driftline.adapters import BatchNormAdapter, CollapseGuard, DisagreementGuard, Tent
from driftline.adapters.wrapper import Wrapper
from driftline.errors import CheckpointError, ConfigError
from driftline.learners import GradientLearner
from driftline.stream.edge import Floor, Label, Sample, StateStore
from driftline.stream.edge.serving import guards_of
from driftline.stream.modules import evaluate
from tests.stream.edge.parts import Clock, Costly, Tape, Wrong, adapter, fixed, make, network, samples, told


def scores_of(loop):
    with loop:
        return [prediction.scores for prediction in loop]


def test_every_sample_is_answered_in_order_by_the_model_as_it_is_then(tmp_path):
    x = samples(20)
    with make(tmp_path, x, fixed()) as loop:
        answers = list(loop)
    assert [answer.id for answer in answers] == list(range(20))
    assert torch.allclose(torch.stack([answer.scores for answer in answers]), evaluate(network(), x), atol=1e-6)
    assert loop.health.counts["adaptations"] == 0, "there is nothing to adapt"


def test_a_sample_is_answered_before_anything_is_learned_from_it(tmp_path):
    x = samples(9)
    by_hand = adapter()
    expected = [by_hand.predict(x[i : i + 1])[0] for i in range(8)]
    by_hand.adapt(x[:8])
    expected.append(by_hand.predict(x[8:])[0])
    assert all(map(torch.equal, scores_of(make(tmp_path, x)), expected))


def test_stopped_and_resumed_it_answers_as_if_it_had_never_stopped(tmp_path):
    x = samples(60)
    whole = scores_of(make(tmp_path / "whole", x))
    first = make(tmp_path / "parts", Tape(x))
    with first:
        parts = [next(first).scores for _ in range(29)]
    second = make(tmp_path / "parts", Tape(x))
    assert second.position == 29
    parts += scores_of(second)
    assert len(parts) == 60
    assert all(map(torch.equal, whole, parts))
    assert second.health.counts["predictions"] == 60
    assert told(tmp_path / "parts", "resumed")[0]["position"] == 29


def test_an_answer_that_the_caller_fails_to_deal_with_is_given_again(tmp_path):
    with pytest.raises(KeyError), make(tmp_path, Tape(samples(10))) as loop:
        next(loop)
        next(loop)
        raise KeyError
    assert make(tmp_path, Tape(samples(10))).position == 1


@pytest.mark.parametrize(("when_late", "batches"), [("skip", []), ("smaller", [2, 2])])
def test_a_batch_for_which_there_is_no_time_is_cut_or_skipped(tmp_path, when_late, batches):
    clock = Clock()
    player = Costly(adapter(), clock, predict=0.01, adapt=0.1)
    settings = {"latency_budget": 0.25, "when_late": when_late, "clock": clock, "example": samples(1)[0]}
    loop = make(tmp_path, samples(17), player, **settings)
    scores_of(loop)
    assert player.batches == batches
    assert loop.health.counts["late"] == 0
    assert loop.health.counts["skipped_samples"] == 16 - sum(batches)


class Gated(Wrapper):
    """Adapts when it is let."""

    gate = threading.Event()

    def adapt(self, x):
        assert self.gate.wait(60)
        return super().adapt(x)


def test_in_the_background_answers_go_on_and_the_adapted_weights_come_later(tmp_path):
    Gated.gate.clear()
    x = samples(40)
    with make(tmp_path, x, Gated(adapter()), when_late="background") as loop:
        before = [next(loop).scores for _ in range(20)]
        assert loop.health.counts["adaptations"] == 0
        Gated.gate.set()
        job = loop.serving._job
        assert job is not None
        assert job.wait(60)
        rest = [answer.scores for answer in loop]
    assert torch.allclose(torch.stack(before), evaluate(network(), x[:20]), atol=1e-6)
    by_hand = adapter()
    by_hand.adapt(x[:8])
    assert torch.allclose(rest[0], by_hand.predict(x[20:21])[0], atol=1e-6)
    assert not torch.allclose(rest[0], evaluate(network(), x[20:21])[0], atol=1e-3)


def test_labels_that_come_at_once_or_later_are_taken_in_and_unknown_ones_counted(tmp_path):
    x = samples(3)
    source = [(x[0], 1), Sample(x[1], id="a"), Label("a", 2), Label("a", 2), Sample(x[2], 7), Label("b", 0)]
    loop = make(tmp_path, source)
    scores_of(loop)
    assert loop.health.counts["predictions"] == 3
    assert (loop.health.counts["feedback"], loop.health.counts["feedback_unknown"]) == (5, 3)
    assert loop.position == 6


def test_a_learner_learns_from_the_labels_and_falls_back_on_the_model_it_began_with(tmp_path):
    model = network()
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = samples(64)
    labels = [int(value) for value in (x.sum(1) > 4)]
    with make(tmp_path, zip(x, labels), learner, shipped=None) as loop:
        first = next(loop).scores
        *_, last = loop
    assert loop.health.counts["adaptations"] == 8
    assert torch.equal(first, evaluate(network(), x[:1])[0])
    assert not torch.allclose(last.scores, evaluate(network(), x[-1:])[0], atol=1e-2)
    assert all(map(torch.equal, loop.serving.shipped.state_dict().values(), network().state_dict().values()))


def test_with_labels_the_served_model_is_never_worse_than_the_shipped_one_by_more_than_the_margin(tmp_path):
    x = samples(600)
    right = evaluate(network(), x).argmax(1)
    floor = Floor(window=50, margin=0.06)
    with make(tmp_path, zip(x, right), Wrong(fixed(), after=3), floor=floor) as loop:
        errors = torch.tensor([answer.label != int(y) for answer, y in zip(loop, right)]).int()
    assert errors.unfold(0, 50, 1).sum(1).max() == 3
    assert floor.falls == 1
    assert loop.health.counts["served_shipped"] > 500
    assert told(tmp_path, "rollback")[0]["signal"] == "floor"


def test_a_signal_ends_it_with_a_checkpoint_and_gives_the_handler_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def endless():
        while True:
            yield samples(1)[0]

    with make(tmp_path, endless) as loop:
        for answer in loop:
            if answer.position == 10:
                os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert loop.position == 11
    assert StateStore(tmp_path).newest()[1]["position"] == 11
    assert told(tmp_path, "stopped")[0]["why"] == "it was asked to"


def test_memory_is_planned_and_refused_before_anything_is_read(tmp_path):
    read = []
    example = samples(1)[0]
    loop = make(tmp_path / "fits", [], example=example, memory_budget=10**12)
    assert loop.plan.total > loop.plan.process > 10**7
    assert "one step, batch of 8" in str(loop.plan)
    loop.close()
    with pytest.raises(ConfigError, match="(?s)does not fit.*budget"):
        make(tmp_path / "no", (read.append(1) for _ in range(1)), example=example, memory_budget=1000)
    assert not read
    with pytest.raises(ConfigError, match="needs example"):
        make(tmp_path / "no", [], memory_budget=1000)


def test_the_state_of_another_model_is_refused(tmp_path):
    scores_of(make(tmp_path, samples(9)))
    with pytest.raises(CheckpointError, match="another shipped model"):
        make(tmp_path, [], shipped=network(seed=1))
    with pytest.raises(CheckpointError):
        make(tmp_path, [], Tent(network()))
    # The folder was given back each time.
    make(tmp_path, []).close()


def guards(loop):
    return [type(guard) for guard in guards_of(loop.serving.player)]


def test_guards_are_put_around_adapters_of_batches_and_none_around_another_guard(tmp_path):
    with make(tmp_path / "a", [], Tent(network()), guard=None) as loop:
        assert guards(loop) == [DisagreementGuard, CollapseGuard]
    with make(tmp_path / "b", [], Tent(network()), guard=None, batch_size=1) as loop:
        assert guards(loop) == [DisagreementGuard]
    with make(tmp_path / "c", [], BatchNormAdapter(network(), "running"), guard=None) as loop:
        assert guards(loop) == [CollapseGuard]
    with make(tmp_path / "d", [], Tent(network()), guard=False) as loop:
        assert guards(loop) == []
    for folder, guarded in {"e": CollapseGuard(Tent(network())), "f": DisagreementGuard(Tent(network()))}.items():
        with make(tmp_path / folder, [], guarded, guard=None) as loop:
            assert loop.serving.player is guarded


def test_a_collapse_is_rolled_back_and_told(tmp_path):
    loop = make(tmp_path, samples(240), Tent(network(), lr=5.0), guard=True)
    with pytest.warns(UserWarning, match="collapsed"):
        scores_of(loop)
    assert told(tmp_path, "rollback")[0]["signal"].startswith("guard")


def test_training_that_leads_too_far_away_is_undone_and_told(tmp_path):
    player = DisagreementGuard(Tent(network(), lr=1.0), level=0.05, window=40, every=1)
    loop = make(tmp_path, samples(240), player)
    scores_of(loop)
    assert loop.health.counts["rollbacks"] == player.rollbacks > 0
    event = told(tmp_path, "rollback")[0]
    assert (event["signal"], event["to"]) == ("guard: disagreement", "the shipped model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latency_budget": 0}, "latency_budget=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"overload": "drop"}, "overload='drop'"),
        ({"when_late": "later"}, "when_late='later'"),
        ({"checkpoint_every": 0.0}, "checkpoint_every=0"),
        ({"source": 3}, "source is int"),
        ({"shipped": None}, "normalisation of its own"),
        ({"player": 3}, "player is int"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **({"source": [], "player": Tent(network())} | settings))
    make(tmp_path, []).close()


def test_memory_is_given_back_with_each_line_of_health(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("driftline.stream.edge.loop.give_back", lambda: asked.append(1))
    clock = Clock()
    loop = make(tmp_path, samples(90), Costly(BatchNormAdapter(network(), "running"), clock, predict=1.0), clock=clock)
    scores_of(loop)
    assert len(asked) == len(told(tmp_path, "health")) == 1
