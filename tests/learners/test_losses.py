import pytest
import torch
from torch import nn

from driftline.errors import ConfigError, InputError
from driftline.learners import GradientLearner
from driftline.learners.losses import absolute_error, huber_error, squared_error

LOSSES = [squared_error, absolute_error, huber_error]
EACH = {
    squared_error: lambda away: away**2,
    absolute_error: abs,
    huber_error: lambda away: away**2 / 2 if abs(away) <= 1 else abs(away) - 0.5,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_it_is_the_mean_over_batch_and_outputs(loss, outputs, batch):
    rng = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(batch, outputs, generator=rng, dtype=torch.float64)
    y = torch.randn(batch, outputs, generator=rng, dtype=torch.float64)
    expected = sum(EACH[loss](away) for away in (scores - y).flatten().tolist()) / (batch * outputs)
    assert loss(scores, y).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_target_for_each_sample_meets_its_own_score(loss):
    scores, y = torch.tensor([[0.0], [5.0]]), torch.tensor([0.0, 5.0])
    assert loss(scores, y) == loss(scores, y.unsqueeze(1)) == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("scores", "y"), [((4, 2), (4,)), ((4, 1), (3,)), ((1, 1), (4,)), ((4, 2), (4, 1)), ((4, 2), (2, 4)), ((4,), (4,))]
)
def test_nothing_is_broadcast(loss, scores, y):
    with pytest.raises(InputError) as raised:
        loss(torch.zeros(scores), torch.zeros(y))
    assert f"{loss.__name__}: scores of shape {scores} and targets of shape {y}" in str(raised.value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_targets_come_in_any_real_dtype_and_the_loss_keeps_the_scores(loss, dtype):
    value = loss(torch.zeros(2, 1, requires_grad=True), torch.tensor([3, 4]).to(dtype))
    assert value.dtype == torch.float32
    value.backward()


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_a_bad_delta_is_refused(delta):
    with pytest.raises(ConfigError, match="must be above 0"):
        huber_error(torch.zeros(1, 1), torch.zeros(1), delta=delta)


@pytest.mark.parametrize(("loss", "lr"), [(squared_error, 0.1), (absolute_error, 0.05), (huber_error, 0.2)])
def test_a_learner_fits_a_line_with_it(loss, lr):
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=lr), loss)
    rng = torch.Generator().manual_seed(0)
    for _ in range(600):
        x = torch.rand(8, 1, generator=rng)
        learner.learn(x, 2 * x[:, 0] - 1)
    assert learner.predict(torch.tensor([[0.0], [1.0]])).flatten().tolist() == pytest.approx([-1, 1], abs=0.1)


def test_a_learner_is_not_changed_by_targets_of_the_wrong_shape():
    model = nn.Linear(1, 2)
    learner = GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)
    before = model.weight.detach().clone()
    with pytest.raises(InputError, match="squared_error: scores of shape"):
        learner.learn(torch.ones(3, 1), torch.ones(3))
    assert torch.equal(model.weight, before)
