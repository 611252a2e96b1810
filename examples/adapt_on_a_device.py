"""On a device: each sample is answered in time, the model adapts when there is time, and labels come back late."""

import tempfile
from collections.abc import Iterator

import torch

import driftline
from driftline.stream.edge import AdaptationLoop, Floor, Label, Sample, preset


def train_source(data: driftline.Dataset, steps: int = 200) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, len(data.classes))
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        index = torch.randint(len(data), (100,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.x[index]), data.y[index]).backward()
        optimizer.step()
    return model.eval()


def sensor(data: driftline.Dataset, late: int = 20) -> Iterator[Sample | Label]:
    """Samples whose scale drifts; one in five is labelled, some samples later."""
    for i, x in enumerate(data.x):
        yield Sample(x * (1 + 3 * i / len(data)) + 3 * i / len(data), id=i)
        if i >= late and i % 5 == 0:
            yield Label(i - late, int(data.y[i - late]))


def main() -> None:
    data = driftline.load("digits")
    model = train_source(data)
    way = preset("statistics")
    loop = AdaptationLoop(
        way.make(model),
        sensor(data.test),
        latency_budget=0.5,
        memory_budget=4_000_000_000,
        state_dir=tempfile.mkdtemp(),
        shipped=model,
        example=data.x[0],
        batch_size=way.batch_size,
        floor=Floor(window=50, margin=0.1),
    )
    print(loop.plan)
    with loop:
        right = sum(answer.label == int(data.test.y[answer.id]) for answer in loop)
    print(f"right: {right / len(data.test.x):.3f}", {name: n for name, n in loop.health.counts.items() if n})


if __name__ == "__main__":
    main()
