"""Parts without the runtime: a seekable stream and a replay memory in a plain PyTorch loop."""

import torch
from torch.nn import functional as F

import driftline
from driftline.learners import ClassBalancedReplay


def main() -> None:
    stream = driftline.scenarios.imbalanced(driftline.load("digits"), seed=1, kind="long_tailed", imbalance=50)
    model = driftline.models.mlp(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = ClassBalancedReplay(capacity=100)
    for batch in stream.batches(10):
        x, y = batch.x, batch.y
        if (past := memory.sample(10)) is not None:
            x, y = torch.cat([x, past[0]]), torch.cat([y, past[1]])
        loss = F.cross_entropy(model(x.flatten(1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.add(batch.x, batch.y)
    _, kept = memory.sample(100)
    print("in the stream:", torch.bincount(stream.labels(), minlength=10).tolist())
    print("in the memory:", torch.bincount(kept, minlength=10).tolist())


if __name__ == "__main__":
    main()
