"""The parts in a plain loop of PyTorch, without the runtime."""

import torch
from torch.nn import functional as F

import driftline
from driftline.learners.optimizers import UPGD
from driftline.learners.penalties import L2Init
from driftline.learners.renewers import ContinualBackprop

model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
optimizer = UPGD(model.parameters(), lr=0.05, sigma=0.001, weight_decay=0.001)
penalty = L2Init(model, strength=1e-4)
renewer = ContinualBackprop(model, replacement_rate=1e-3, maturity=50)

data = driftline.load("digits")
x, y = data.x.flatten(1), data.y
right = 0
for i in range(0, len(x), 10):
    scores = model(x[i : i + 10])
    right += int((scores.argmax(1) == y[i : i + 10]).sum())
    optimizer.zero_grad()
    (F.cross_entropy(scores, y[i : i + 10]) + penalty(model)).backward()
    optimizer.step()
    renewer.renew(model, optimizer)
print(f"online accuracy {right / len(x):.3f}")
