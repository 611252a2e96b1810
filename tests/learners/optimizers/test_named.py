"""Optimizers by name, and those of the pytorch_optimizer package in a learner."""

import copy
import warnings

import pytest
import torch

import driftline
from driftline import build
from driftline.errors import ConfigError
from driftline.learners import GradientLearner, in_lockstep
from driftline.learners.optimizers import named_optimizer
from driftline.metrics import OnlineAccuracy
from driftline.models import mlp
from driftline.stream import checkpoint

others = pytest.importorskip("pytorch_optimizer")

TEN = {
    "prodigy": {},
    "dadaptadam": {},
    "dadaptsgd": {"d0": 1e-2},  # its estimate grows too slowly for 72 steps from 1e-6
    "adan": {"lr": 1e-2},
    "lion": {"lr": 1e-3},
    "adabelief": {"lr": 3e-3},
    "ranger": {"lr": 0.1},
    "ademamix": {"lr": 3e-3},
    "madgrad": {"lr": 3e-3},
    "schedulefreeadamw": {"lr": 1e-2},
    "soap": {"lr": 3e-3},
    "sophiah": {"lr": 1.0},
}
DRAWS = ("sophiah",)
"""Those that draw from torch's global generator at each step, which a learner alone does not save."""


def digits():
    return driftline.scenarios.iid(driftline.load("digits"), seed=0)


def learner(name, **settings):
    return GradientLearner(mlp((1, 8, 8), 10, (32,), seed=0), named_optimizer(name, **settings))


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters()))


@pytest.mark.parametrize("name", TEN)
def test_it_learns_digits_and_resumes_bit_identically(name, tmp_path):
    stream, accuracy = digits(), OnlineAccuracy()
    whole = driftline.play(stream, learner(name, **TEN[name]), batch_size=20, metrics=[accuracy])
    for step in whole:
        if step.position == 400:
            checkpoint.save(tmp_path / "state", whole.state_dict())
            generator = torch.get_rng_state()
    assert accuracy.value()["online_accuracy"] > 0.3  # chance is 0.1
    resumed = driftline.play(stream, learner(name, **TEN[name]), batch_size=20, metrics=[OnlineAccuracy()])
    resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
    if name in DRAWS:
        torch.set_rng_state(generator)
    for _ in resumed:
        pass
    assert same(whole.learner, resumed.learner)


def test_a_run_with_an_optimizer_that_draws_resumes_bit_identically(tmp_path):
    def go(**given):
        return driftline.run(
            digits()[:300], learner("sophiah"), batch_size=20, out=tmp_path / "run", checkpoint_every=100, **given
        )

    stopped = go(until=lambda step: step.position >= 200, overwrite=True)
    assert stopped.record["status"] == "stopped"
    resumed = go(resume=True)
    whole = driftline.run(digits()[:300], learner("sophiah"), batch_size=20)
    assert resumed.results == whole.results


@pytest.mark.slow
def test_every_optimizer_of_the_package_takes_steps_or_is_refused_before_anything_changes():
    refused, unmoved = {}, set()
    x, y = torch.randn(8, 6), torch.randint(4, (8,))
    for name in others.get_supported_optimizers():
        model = mlp(6, 4, (5,), seed=0)
        before = copy.deepcopy(model.state_dict())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer = named_optimizer(name)(model.parameters())
                generator = torch.get_rng_state()
                made = GradientLearner(model, optimizer)
        except ConfigError as error:
            refused[name] = str(error)
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), name
            continue
        assert torch.equal(torch.get_rng_state(), generator), name
        for _ in range(12):  # some collect gradients first
            made.learn(x, y)
        assert all(p.isfinite().all() for p in model.parameters()), name
        if all(torch.equal(value, before[key]) for key, value in model.state_dict().items()):
            unmoved.add(name)
    assert unmoved <= {"sara"}  # whose rate is to be set
    assert {"alig", "lbfgs", "bsam"} <= set(refused)
    assert len(refused) < 20, refused


def test_one_that_needs_a_closure_is_refused_by_name():
    model = mlp(6, 4, (5,))
    with pytest.raises(ConfigError, match="AliG cannot take a step from gradients alone .*closure"):
        GradientLearner(model, others.AliG(model.parameters()))
    with pytest.raises(ConfigError, match="LBFGS cannot take a step"):
        GradientLearner(model, torch.optim.LBFGS(model.parameters()))
    sam = others.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match="SAM cannot take a step"):
        GradientLearner(model, sam)


def test_gradients_keep_no_graph_for_longer_than_a_step_needs_it():
    made = learner("adahessian")
    x, y = digits().read(0, 20)
    made.learn(x, y)
    assert all(p.grad is not None and p.grad.grad_fn is None for p in made.model.parameters())


def test_trying_a_step_leaves_parameters_state_and_the_global_generator_alone():
    model = mlp(6, 4, (5,))
    optimizer = others.SophiaH(model.parameters())
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    GradientLearner(model, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not optimizer.state and torch.equal(torch.get_rng_state(), generator)


def test_a_name_is_taken_in_place_of_an_optimizer_with_the_class_own_settings():
    made = GradientLearner(mlp(6, 4, (5,)), "prodigy")
    assert type(made.optimizer).__name__ == "Prodigy"
    assert made.optimizer.defaults["lr"] == 1.0


def test_the_learner_named_optimizer_takes_name_rate_and_settings():
    model = mlp(6, 4, (5,))
    made = build.learner("optimizer", model, 4, 0, optimizer="Prodigy", lr=0.5, settings={"weight_decay": 0.1})
    assert made.optimizer.defaults["lr"] == 0.5 and made.optimizer.defaults["weight_decay"] == 0.1
    assert made.describe()["parameters"]["optimizer"]["name"] == "Prodigy"
    with pytest.raises(ConfigError, match="unknown optimizer 'prodgy'; did you mean 'prodigy'"):
        build.learner("optimizer", model, 4, 0, optimizer="prodgy")
    with pytest.raises(ConfigError, match="settings='lr=1': give a mapping"):
        build.learner("optimizer", model, 4, 0, settings="lr=1")
    with pytest.raises(ConfigError, match=r"optimizer sgd\(speed=3\) cannot be made"):
        build.learner("optimizer", model, 4, 0, optimizer="sgd", settings={"speed": 3})


def test_in_lockstep_each_replica_does_what_it_does_alone():
    with pytest.warns(RuntimeWarning, match="replicas cannot be kept apart in Prodigy"):
        both = in_lockstep([learner("prodigy"), learner("prodigy")])
    alone = learner("prodigy")
    x, y = digits().read(0, 20)
    for _ in range(3):
        both.learn(x.expand(2, *x.shape), y.expand(2, -1))
        alone.learn(x, y)
    assert torch.equal(both.predict(x.expand(2, *x.shape))[1], alone.predict(x))
