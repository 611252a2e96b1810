import copy
import math

import pytest
import torch
from torch.nn import functional as F

from driftline.adapters import PeTTA, RoTTA
from driftline.errors import ConfigError, InputError
from driftline.stream.seeds import generator
from tests.adapters.recorded import Recorded
from tests.adapters.trained import digits, shifted, source_model

SOURCE = torch.rand(200, 3, 8, 8, generator=generator(7), dtype=torch.float64)
X = torch.rand(24, 3, 8, 8, generator=generator(8), dtype=torch.float64)


def mirrored(x, random):
    return x.flip(3)


def model():
    torch.manual_seed(0)
    return Recorded().double()


class ByHand:
    """The method in plain PyTorch, one batch at a time, as the paper's Algorithm 1 and the released code have it."""

    def __init__(self, net, source, lr, alpha, weight, anchor):
        self.nets = {name: copy.deepcopy(net).eval() for name in ("student", "teacher", "source")}
        self.lr, self.alpha, self.weight, self.anchor = lr, alpha, weight, anchor
        features, labels = self.look(net.eval(), source)
        self.mean = torch.stack([features[labels == c].mean(0) for c in range(10)]).nan_to_num()
        self.var = torch.stack([features[labels == c].T.cov().diagonal() for c in range(10)])
        self.running = self.mean.clone()
        affine = [p for n, p in self.nets["student"].named_parameters() if n.startswith("bn")]
        self.trained = affine
        self.original = [p.detach().clone() for p in affine]
        self.optimizer = torch.optim.Adam(affine, lr=lr)

    @staticmethod
    def look(net, x):
        seen = []
        handle = net.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad():
            scores = net(x)
        handle.remove()
        return seen[0], scores.argmax(1)

    @staticmethod
    def training_pass(net, x):
        """Statistics are mixed with the batch's first, and gradients flow through them."""
        z = x
        for conv, bn in ((net.conv1, net.bn1), (net.conv2, net.bn2)):
            z = conv(z)
            mean = 0.95 * bn.running_mean + 0.05 * z.mean((0, 2, 3))
            var = 0.95 * bn.running_var + 0.05 * z.var((0, 2, 3), correction=0)
            bn.running_mean, bn.running_var = mean.detach(), var.detach()
            shape = (1, -1, 1, 1)
            z = (z - mean.view(shape)) / (var.view(shape) + bn.eps).sqrt()
            z = (z * bn.weight.view(shape) + bn.bias.view(shape)).relu()
        return net.fc(z.mean((2, 3)))

    def step(self, x, memory):
        features, labels = self.look(self.nets["teacher"], x)
        with torch.no_grad():
            scores = self.nets["teacher"](x)
            teacher = self.training_pass(self.nets["teacher"], memory)
            source = self.training_pass(self.nets["source"], memory)
        plain = self.training_pass(self.nets["student"], memory)
        view = self.training_pass(self.nets["student"], memory.flip(3))
        classes = [c for c in labels.unique().tolist() if bool(self.var[c].isfinite().all())]
        square = ((self.running[classes] - self.mean[classes]) ** 2 / (self.var[classes] + 1e-6)).mean()
        divergence = 1 - math.exp(-float(square))
        for c in labels.unique().tolist():
            self.running[c] = 0.95 * self.running[c] + 0.05 * features[labels == c].mean(0)

        def ce(a, b):
            return -(b.softmax(1) * a.log_softmax(1)).sum(1).mean()

        loss = (ce(plain, teacher) + ce(teacher, plain) + ce(view, teacher) + ce(teacher, view)) / 4
        cosine = torch.stack(
            [F.cosine_similarity(p, o, dim=0) for p, o in zip(self.trained, self.original, strict=True)]
        )
        loss = loss + self.anchor * ce(view, source) - divergence * self.weight * cosine.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        rate = (1 - divergence) * self.alpha
        for t, s in zip(self.nets["teacher"].parameters(), self.nets["student"].parameters(), strict=True):
            t.data.lerp_(s.data, rate)
        return scores, divergence


def test_steps_are_those_of_the_algorithm():
    settings = {"lr": 0.01, "alpha": 0.2}
    adapter = PeTTA(model(), SOURCE, **settings, capacity=40, update_every=8, augmentation=mirrored, lambda_t=0.0)
    reference = ByHand(model(), SOURCE, **settings, weight=10.0, anchor=1.0)
    for x in X.split(8):
        scores = adapter.adapt(x)
        wanted, divergence = reference.step(x, adapter.memory.by_class()[0])
        torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-9)
        assert adapter.divergence == pytest.approx(divergence, abs=1e-9)
    assert adapter.divergence > 0
    for mine, theirs in ((adapter.model, "student"), (adapter.teacher, "teacher"), (adapter.anchor_model, "source")):
        for name, value in reference.nets[theirs].state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(mine.state_dict()[name], value, rtol=0, atol=1e-9)


def test_one_image_at_a_time_learns_as_from_batches():
    single, batch = (
        PeTTA(model(), SOURCE, lr=0.01, capacity=20, update_every=4, augmentation=mirrored) for _ in range(2)
    )
    for x in X:
        single.adapt(x[None])
    for part in X.split(4):
        batch.adapt(part)
    for one, other in zip(single.model.parameters(), batch.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_features_that_drift_away_are_sensed_and_hold_the_teacher():
    adapter = PeTTA(source_model(), digits()[0], update_every=50)
    x, _ = shifted()
    for part in x[:500].split(50):
        adapter.adapt(part)
    # The running means need a while; on source images the divergence stays small.
    same = PeTTA(source_model(), digits()[0], update_every=50)
    for part in digits()[2][:500].split(50):
        same.adapt(part)
    assert adapter.divergence > 2 * same.divergence


def test_it_stays_better_than_rotta_where_domains_recur():
    x, y = shifted()
    order = torch.randperm(300, generator=generator(0))
    x, y = x[order], y[order]

    def last(adapter):
        """Error of the last of twelve visits."""
        for _ in range(12):
            wrong = torch.cat([adapter.adapt(part).argmax(1) for part in x.split(50)]) != y
        return float(wrong.float().mean())

    fast = {"lr": 0.02, "update_every": 50}
    petta = last(PeTTA(source_model(), digits()[0], **fast, alpha=0.05))
    rotta = last(RoTTA(source_model(), **fast, nu=0.05))
    assert petta < rotta


def test_settings_and_sources_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="no samples"):
        PeTTA(model(), SOURCE[:0])
    with pytest.raises(ConfigError, match="anchor"):
        PeTTA(model(), SOURCE, anchor=-1.0)
    with pytest.raises(ConfigError, match="feature_momentum"):
        PeTTA(model(), SOURCE, feature_momentum=2.0)
    with pytest.raises(ConfigError, match="no batch normalisation"):
        PeTTA(Recorded("gn").double(), SOURCE)


def test_a_batch_that_fails_late_leaves_nothing_behind():
    adapter = PeTTA(model(), SOURCE, capacity=20, update_every=4)
    adapter.adapt(X[:6])
    before = copy.deepcopy(adapter.state_dict())
    adapter._augment = lambda x, random: x * torch.nan
    with pytest.raises(InputError, match="NaN or Inf"):
        adapter.adapt(X[6:12])
    after = adapter.state_dict()
    assert after["seen"] == before["seen"] == 6
    for part in ("model", "teacher", "anchor_model"):
        assert all(torch.equal(v, after[part][k]) for k, v in before[part].items())
    assert torch.equal(before["counts"], after["counts"])
