import copy
import subprocess
import sys

import pytest
import torch

import driftline
from driftline.diagnosis.course import LOOK, follow, look
from driftline.diagnosis.remedies import REMEDIES
from driftline.errors import ConfigError, InputError
from driftline.learners import GradientLearner, InputNormalizer, NearestClassMean, squared_error
from driftline.learners.renewers import ContinualBackprop
from driftline.metrics import OnlineAccuracy
from driftline.models import mlp
from driftline.scenarios import drifting_regression, permuted_inputs
from driftline.stream import Segment, Stream, from_iterable
from tests.golden import data_root


def digits(tasks, samples=300):
    return permuted_inputs(driftline.load("digits"), tasks=tasks, samples=samples)


def learner(lr=0.05, hidden=(32,), **given):
    network = mlp((1, 8, 8), 10, hidden, seed=0)
    return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=lr), **given)


def normalised(lr):
    network = mlp((1, 8, 8), 10, (32,), seed=0)
    return GradientLearner(network, torch.optim.SGD(network.parameters(), lr=lr), normalizer=InputNormalizer())


def test_large_steps_on_new_permutations_lose_plasticity_and_it_says_why():
    found = driftline.diagnose(normalised(0.2), digits(8, samples=250), batch_size=10, remedies=[])
    assert found.verdict.state == "losing plasticity"
    first, second, _ = str(found).splitlines()
    assert first.startswith("Losing plasticity, because the mean absolute weight rises from")
    assert "against a fresh network" in second and "8 tasks" in second


def test_tasks_that_are_all_alike_are_held_and_need_no_remedies():
    data = Segment.of(driftline.load("digits"))
    stream = Stream([data.take(150, start=150 * i) for i in range(8)])
    found = driftline.diagnose(normalised(0.05), stream, batch_size=10)
    assert found.verdict.state == "holding"
    assert str(found).startswith("Holding: it learns new tasks no worse than a fresh network.")
    assert found.trials == []


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_stream_with_few_tasks_gives_no_answer(tasks):
    found = driftline.diagnose(learner(), digits(tasks, samples=100), batch_size=10)
    assert found.verdict.state == "cannot tell"
    assert str(found) == f"Cannot tell: {tasks} tasks are too few; it takes at least 4."


def test_a_learner_that_cannot_learn_at_all_gives_no_answer():
    found = driftline.diagnose(learner(lr=0.0), digits(5, samples=100), batch_size=10)
    assert found.verdict.state == "cannot tell"


def test_it_is_the_same_again_and_leaves_the_learner_and_the_global_generator_alone():
    one, generator = learner(), torch.get_rng_state()
    before = copy.deepcopy(one.state_dict())
    first = driftline.diagnose(one, digits(4, samples=60), batch_size=10, remedies=["shrink and perturb"])
    again = driftline.diagnose(learner, digits(4, samples=60), batch_size=10, remedies=["shrink and perturb"])
    assert str(first) == str(again) and first.course == again.course
    assert str(one.state_dict()) == str(before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_scores_are_those_of_playing_the_stream_and_of_a_fresh_learner_on_each_task():
    stream = digits(3, samples=60)
    course, fresh, guess = follow(learner(), stream, 10, {0, 2})
    metric, expected = OnlineAccuracy(None), []
    for step in driftline.play(stream, learner(), batch_size=10):
        metric.update(step)
        if step.batch.ends_segment:
            expected.append(metric.value()["online_accuracy"])
            metric = OnlineAccuracy(None)
    assert course.scores == pytest.approx(expected)
    alone = driftline.run(stream[120:180], learner(), batch_size=10).results["online_accuracy"]
    assert fresh == {0: pytest.approx(expected[0]), 2: pytest.approx(alone)}
    y = stream.read(0, 60)[1]
    assert guess[0] == pytest.approx(float(torch.bincount(y).max()) / 60)


def test_looking_changes_nothing_and_sees_the_units():
    one = learner()
    with torch.no_grad():
        one.model.body[1].bias[:8] = -100.0
    before = copy.deepcopy(one.state_dict())
    found = look(one, digits(1), 0, LOOK)
    assert found["dead units"] >= 8 / 32
    assert set(found) == {"dead units", "effective rank", "mean absolute weight", "sharpness"}
    assert str(one.state_dict()) == str(before) and one.model.training


@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_makes_a_learner_that_learns(name):
    changed = REMEDIES[name](learner(), 0)
    x, y = digits(1).read(0, 200)
    for i in [*range(0, 200, 10)] * 8:
        changed.learn(x[i : i + 10], y[i : i + 10])
    assert float((changed.predict(x).argmax(1) == y).double().mean()) > 0.3


def test_a_remedy_that_does_not_fit_is_said_to_be_left_out():
    found = driftline.diagnose(
        lambda: learner(hidden=()), digits(4, samples=50), batch_size=10, remedies=["layer norm", "L2-init"]
    )
    assert [trial.name for trial in found.trials] == ["L2-init"]
    assert "layer norm was not tried: layer norm: no activation follows a linear layer" in str(found)


def test_numbers_to_predict_are_scored_by_their_squared_error():
    stream = drifting_regression(samples=400, dimension=3, shift=[0.0] * 5, noise=0.1)
    network = torch.nn.Linear(3, 1)
    one = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.02), squared_error)
    found = driftline.diagnose(one, stream)
    # The function stays, so that what was learned is of use.
    assert found.verdict.state == "holding"
    assert all(score <= 0 for score in found.course.scores)
    assert "Minus squared error within a task" in str(found)


def test_learners_without_a_network_are_compared_and_not_looked_into():
    found = driftline.diagnose(NearestClassMean, digits(5, samples=100), batch_size=10)
    assert found.course.looks == {}
    assert found.verdict.tasks == 5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"remedies": ["cbp"]}, ConfigError, "unknown remedy 'cbp'"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"comparisons": 0}, ConfigError, "comparisons=0"),
        ({"learner": NearestClassMean, "remedies": ["UPGD"]}, ConfigError, "NearestClassMean"),
        ({"stream": from_iterable(iter([(torch.zeros(1, 8, 8), 0)]), classes=10)}, InputError, "live"),
    ],
)
def test_bad_input_is_refused(given, error, message):
    settings = {"learner": learner, "stream": digits(4, samples=20), **given}
    with pytest.raises(error, match=message):
        driftline.diagnose(settings.pop("learner"), settings.pop("stream"), **settings)


def test_the_command_prints_the_words_and_draws_the_figure(tmp_path):
    command = [sys.executable, "-m", "driftline", "diagnose", "permuted_inputs", "--set", "tasks=4"]
    command += ["--set", "samples=60", "--model-set", "hidden=[16]", "--remedies", "UPGD", "--figure", "d.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "within a task, against a fresh network" in done.stdout and "UPGD" in done.stdout
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_on_permuted_mnist_backprop_loses_and_continual_backprop_holds():
    """The published effect, on a stream of 16 tasks."""
    data = driftline.load("mnist", root=data_root(), input_range=(-1.0, 1.0))
    stream = permuted_inputs(data, seed=0, tasks=16, samples=2000)

    def make(renew=False):
        network = mlp((1, 28, 28), 10, (100,), seed=0)
        renewers = [ContinualBackprop(network, 1e-4, 100)] if renew else []
        step = torch.optim.SGD(network.parameters(), lr=0.01)
        return GradientLearner(network, step, renewers=renewers, compile=True)

    plain = driftline.diagnose(make, stream, remedies=[])
    assert plain.verdict.state == "losing plasticity", str(plain)
    assert str(plain).startswith("Losing plasticity, because")
    renewed = driftline.diagnose(lambda: make(True), stream, remedies=[])
    assert renewed.verdict.state == "holding", str(renewed)
