"""Every optimizer of PyTorch that can be used in a plain loop learns here, and goes on exactly from its state."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from driftline.errors import ConfigError
from driftline.learners import GradientLearner

ALL = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
X = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Words(nn.Module):
    """Scores from an embedding of three words, whose gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 3, sparse=True)

    def forward(self, x):
        return self.table(x).sum(1)


def setup(name):
    torch.manual_seed(0)
    if name == "SparseAdam":
        rng = torch.Generator().manual_seed(0)
        y = torch.randint(3, (400,), generator=rng)
        return Words(), torch.randint(16, (400, 3), generator=rng) + 16 * y.unsqueeze(1), y
    bias = name != "Muon"  # which takes matrices only
    return nn.Sequential(nn.Linear(4, 16, bias=bias), nn.ReLU(), nn.Linear(16, 3, bias=bias)), X, Y


def build(name):
    model, x, y = setup(name)
    lr = {"Adadelta": 1.0, "Adafactor": 0.05, "Rprop": 0.001}.get(name, 0.02)
    return GradientLearner(model, ALL[name](model.parameters(), lr=lr)), x, y


def meet(learner, x, y, first, last):
    return [learner.observe(x[i : i + 10], y[i : i + 10]) for i in range(first, last, 10)]


@pytest.mark.parametrize("name", sorted(set(ALL) - {"LBFGS"}))
def test_it_learns_and_goes_on_exactly_from_its_state(name):
    learner, x, y = build(name)
    scores = torch.cat(meet(learner, x, y, 0, 400))
    start, end = (nn.functional.cross_entropy(s, t) for s, t in ((scores[:100], y[:100]), (scores[300:], y[300:])))
    assert end < start
    half, other = build(name)[0], build(name)[0]
    meet(half, x, y, 0, 200)
    other.load_state_dict(half.state_dict())
    assert torch.equal(torch.cat(meet(other, x, y, 200, 400)), scores[200:])


def test_one_that_evaluates_the_loss_several_times_is_refused():
    model = nn.Linear(4, 3)
    with pytest.raises(ConfigError, match="LBFGS cannot take a step from gradients alone"):
        GradientLearner(model, torch.optim.LBFGS(model.parameters()))
