import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from driftline.adapters import DynamicEvaluation
from driftline.errors import ConfigError, InputError


class Recurrent(nn.Module):
    """A small recurrent model of characters."""

    def __init__(self, tokens=8, hidden=24):
        super().__init__()
        self.embed, self.body = nn.Embedding(tokens, 8), nn.GRU(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, tokens)

    def forward(self, x):
        return self.head(self.body(self.embed(x))[0])


def text(length, shift, seed, tokens=8):
    """A cyclic text: the next character is the last one plus ``shift``, or at random one time in ten."""
    random = torch.Generator().manual_seed(seed)
    noise, other = torch.rand(length, generator=random) < 0.1, torch.randint(tokens, (length,), generator=random)
    found = [0]
    for noisy, character in zip(noise.tolist(), other.tolist()):
        found.append(character if noisy else (found[-1] + shift) % tokens)
    return torch.tensor(found[1:])


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Recurrent()
        x = text(6000, 1, seed=0).view(-1, 20)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(3):
            for part in x.split(20):
                optimizer.zero_grad()
                F.cross_entropy(model(part)[:, :-1].flatten(0, 1), part[:, 1:].flatten()).backward()
                optimizer.step()
    return model.eval(), x


def perplexity(adapter, stream):
    losses = []
    for segment in stream.view(-1, 1, 20):
        adapter.adapt(segment)
        losses.append(adapter.loss)
    return math.exp(sum(losses[len(losses) // 2 :]) / len(losses[len(losses) // 2 :]))


@pytest.mark.parametrize("rule", ["rms", "sgd"])
def test_it_lowers_the_perplexity_of_a_text_that_drifts(trained, rule):
    model, source = trained
    drifting = torch.cat([text(1000, 1, seed=1), text(1000, 2, seed=2)])
    lr = 2e-3 if rule == "rms" else 0.3
    still = perplexity(DynamicEvaluation(model, lr=1e-30, rule="sgd", decay=0.0), drifting)
    found = perplexity(DynamicEvaluation(model, lr=lr, rule=rule, source=source), drifting)
    assert found < 0.5 * still, (still, found)


def test_the_steps_are_those_of_the_paper(trained):
    model, source = trained
    adapter = DynamicEvaluation(model, lr=1e-3, decay=0.01, rule="rms", source=source[:16], parameters=["head.bias"])
    x = text(20, 2, seed=3)[None]
    bias = model.head.bias

    def gradient(batch):
        loss = F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        return torch.autograd.grad(loss, bias)[0]

    root = gradient(source[:16]).abs()
    expected = bias.detach() - 1e-3 * gradient(x) / (root + 1e-5)
    adapter.adapt(x)
    torch.testing.assert_close(adapter.model.head.bias.detach(), expected)
    # At the second step it also returns to the source, fastest where the source's gradients are largest.
    second = torch.autograd.grad(
        F.cross_entropy(adapter.model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten()), adapter.model.head.bias
    )[0]
    back = (0.01 * root / root.mean()).clamp(max=1) * (bias.detach() - expected)
    adapter.adapt(x)
    torch.testing.assert_close(adapter.model.head.bias.detach(), expected + back - 1e-3 * second / (root + 1e-5))


def test_scores_are_those_of_the_next_token_before_the_step(trained):
    model, _ = trained
    x = text(20, 1, seed=4)[None]
    with torch.no_grad():
        torch.testing.assert_close(DynamicEvaluation(model, rule="sgd").adapt(x), model(x)[:, -1])


def test_a_single_token_changes_nothing(trained):
    model, _ = trained
    adapter = DynamicEvaluation(model, rule="sgd", lr=1.0)
    assert adapter.adapt(torch.tensor([[3]])).shape == (1, 8)
    assert torch.equal(adapter.model.head.bias, model.head.bias) and math.isnan(adapter.loss)


def test_tokens_that_are_none_are_refused(trained):
    model, _ = trained
    adapter = DynamicEvaluation(model, rule="sgd")
    for bad in (torch.rand(1, 20), torch.full((1, 20), 8), torch.full((1, 20), -1)):
        with pytest.raises(InputError):
            adapter.adapt(bad)
    adapter.adapt(text(20, 1, seed=4)[None])
    with pytest.raises(InputError, match="0..7"):
        adapter.adapt(torch.full((1, 20), 8))


def test_a_model_that_scores_only_the_end_is_refused():
    with pytest.raises(InputError, match="each next token"):
        DynamicEvaluation(nn.Sequential(nn.Embedding(4, 3), nn.Flatten()), rule="sgd").adapt(torch.tensor([[0, 1]]))


def test_nan_activations_change_nothing(trained):
    model, _ = trained
    adapter = DynamicEvaluation(model, rule="sgd")
    with torch.no_grad():
        adapter.model.head.bias[0] = float("nan")
    before = adapter.model.embed.weight.clone()
    with pytest.raises(InputError, match="NaN"):
        adapter.adapt(text(20, 1, seed=4)[None])
    assert torch.equal(before, adapter.model.embed.weight)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.0}, {"decay": 2.0}, {"rule": "adam"}, {"eps": 0.0}, {"source": None}, {"parameters": "x"}]
)
def test_settings_out_of_range_are_refused(settings):
    given = {"source": torch.zeros(2, 5, dtype=torch.long), **settings}
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DynamicEvaluation(Recurrent(), **given)
