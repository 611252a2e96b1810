"""What adapting costs beside the network itself: ratios of times measured within one run, alternating.

    python benchmarks/adapters.py                     # everything; about ten minutes on one core
    python benchmarks/adapters.py multiples --threads 1

Parts: tent (beside a bare PyTorch loop that does the same), multiples (a step of other methods, in bare steps), views
(CoTTA's step that averages 32 views: what is not the network's), sure (CoTTA's step that needs no views, beside the
order of the released code, which makes and predicts them for each batch). The network is a CIFAR ResNet with
random weights on random images: selections are set so that all samples are kept, which is the most a method can cost.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from driftline import adapters, models
from driftline.adapters.augmentation import Augment, Augmentation, augment
from driftline.stream.seeds import generator

KEPT = math.log(10) + 0.1
"""A margin above every entropy of ten classes."""


@dataclass
class Setting:
    """What all parts measure with."""

    model: str
    batch: int
    rounds: int
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x = torch.rand(self.batch, 3, 32, 32, generator=generator(0))

    def network(self) -> nn.Module:
        """Return a source model, its running statistics those of the images."""
        model: nn.Module = getattr(models, self.model)(seed=0).train()
        with torch.no_grad():
            model(self.x)
        return model.eval()

    def adapting(self, adapter: adapters.Adapter) -> Callable[[], object]:
        """Return a step of an adapter."""
        return lambda: adapter.adapt(self.x)


def bare(setting: Setting) -> Callable[[], object]:
    """Return a hand-written step: forward, entropy, backward to scales and shifts of batch normalisation, Adam."""
    model = setting.network().train()
    model.requires_grad_(False)
    chosen: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            chosen += [module.weight.requires_grad_(), module.bias.requires_grad_()]
    optimizer = torch.optim.Adam(chosen, lr=1e-3)

    def step() -> Tensor:
        scores: Tensor = model(setting.x)
        loss = -(scores.softmax(1) * scores.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return scores.detach()

    return step


def seconds(function: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> list[float]:
    """Return our time over theirs, for each of some alternating rounds."""
    ours(), theirs()
    found = []
    for turn in range(rounds):
        if turn % 2:
            mine, other = seconds(ours), seconds(theirs)
        else:
            other, mine = seconds(theirs), seconds(ours)
        found.append(mine / other)
    return found


def row(name: str, values: list[float], form: str = "{:.2f}") -> None:
    """Print the median and the range."""
    shown = [form.format(v) for v in (statistics.median(values), min(values), max(values))]
    print(f"| {name} | {shown[0]} | {shown[1]} to {shown[2]} | {len(values)} |", flush=True)


# --- parts


def tent(setting: Setting) -> None:
    """Tent beside the same written by hand."""
    ours = setting.adapting(adapters.Tent(setting.network()))
    row("Tent's step / bare step", ratios(ours, bare(setting), 3 * setting.rounds), "{:.3f}")


def multiples(setting: Setting) -> None:
    """Other methods in bare steps."""
    labels = torch.arange(setting.batch) % 10
    made: dict[str, Callable[[nn.Module], adapters.Adapter]] = {
        "batch statistics alone": lambda model: adapters.BatchNormAdapter(model),
        "EATA, all samples kept": lambda model: adapters.EATA(model, setting.x, entropy_margin=KEPT, redundancy=1.0),
        "SAR, all samples kept": lambda model: adapters.SAR(model, entropy_margin=KEPT),
        "DeYO, all samples kept": lambda model: adapters.DeYO(model, entropy_margin=KEPT, plpd_threshold=-1.0),
        "ROID": lambda model: adapters.ROID(model),
        "RoTTA": lambda model: adapters.RoTTA(model),
        "RMT, with source samples": lambda model: adapters.RMT(model, (setting.x, labels)),
    }
    for name, make in made.items():
        ours = setting.adapting(make(setting.network()))
        row(f"{name}: step / bare step", ratios(ours, bare(setting), setting.rounds))


class Timed(adapters.CoTTA):
    """CoTTA that adds up the time of its networks' passes: all forwards, the backward and the optimizer's step."""

    network_time = 0.0

    def timed(self) -> None:
        """Begin to measure."""
        for network in (self.model, self.teacher, self.anchor):
            network.register_forward_pre_hook(lambda *_: self.count(-time.perf_counter()))
            network.register_forward_hook(lambda *_: self.count(time.perf_counter()))

    def count(self, time: float) -> None:
        self.network_time += time

    def step(self, loss: Tensor) -> None:
        start = time.perf_counter()
        super().step(loss)
        self.network_time += time.perf_counter() - start


def views(setting: Setting) -> None:
    """CoTTA's step with 32 views: the share of all that is not the network's, and of making the views alone."""
    making = 0.0

    def measured(x: Tensor, random: torch.Generator) -> Tensor:
        nonlocal making
        start = time.perf_counter()
        made = augment(x, random)
        making += time.perf_counter() - start
        return made

    adapter = Timed(setting.network(), threshold=1.0, augmentations=[measured])
    adapter.adapt(setting.x)
    adapter.timed()
    beyond, shares, each = [], [], []
    for _ in range(setting.rounds):
        adapter.network_time = making = 0.0
        total = seconds(setting.adapting(adapter))
        beyond.append(100 * (1 - adapter.network_time / total))
        shares.append(100 * making / total)
        each.append(1e3 * making / adapter.views / setting.batch)
    row("CoTTA, 32 views: beyond the network, % of the step", beyond, "{:.1f}")
    row("CoTTA, 32 views: making the views, % of the step", shares, "{:.1f}")
    row("CoTTA, 32 views: making one view of one image, ms", each, "{:.3f}")


def sure(setting: Setting) -> None:
    """CoTTA's step without views beside the released code's order of operations."""
    ours = adapters.CoTTA(setting.network(), threshold=0.0)
    made: dict[str, list[Augment] | None] = {"our views": None}
    if torchvision := by_torchvision():
        made["torchvision's transforms"] = [torchvision]
    for name, makers in made.items():
        released = adapters.CoTTA(setting.network(), threshold=0.0, variant="released", augmentations=makers)
        found = ratios(setting.adapting(released), setting.adapting(ours), setting.rounds)
        row(f"CoTTA, sure: released order with {name} / step", found)


def by_torchvision() -> Augment | None:
    """Return the released code's augmentation: torchvision's operations on the batch, one draw for all."""
    try:
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as tv
    except ImportError:
        return None
    colour = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue, tv.adjust_gamma)
    drawn = Augmentation(per_sample=False)

    def make(x: Tensor, random: torch.Generator) -> Tensor:
        height, width = x.shape[-2:]
        view = drawn.draw(x, random)
        x = x.clamp(0, 1)
        for operation in view.order[0].tolist():
            x = colour[operation](x.clamp(1e-8, 1), float(view.colour[0, operation]))
        x = tv.pad(x, [width // 2, height // 2], padding_mode="edge")
        angle, shift, scale = float(view.angle[0]), view.shift[0].tolist(), float(view.scale[0])
        x = tv.affine(x, angle, shift, scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        x = tv.gaussian_blur(x, [5, 5], [float(view.sigma[0])] * 2)
        x = tv.center_crop(x, [height, width])
        x = tv.horizontal_flip(x) if view.flip[0] else x
        return (x + view.noise).clamp(0, 1)

    return make


PARTS = (tent, multiples, views, sure)


def main() -> None:
    """Print the table."""
    names = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(names))
    parser.add_argument("--model", choices=("resnet20", "resnet32", "resnet56"), default="resnet20")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="three times as many for Tent, whose step is short")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    for name in chosen.parts:
        if name not in names:
            parser.error(f"no part {name!r}; there are {', '.join(names)}")
    torch.set_num_threads(chosen.threads)
    setting = Setting(chosen.model, chosen.batch, chosen.rounds)
    machine = f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{chosen.model}, batches of {setting.batch} images (3, 32, 32), {machine}\n")
    print("| | median | range | rounds |\n|---|---|---|---|")
    for name in chosen.parts or names:
        names[name](setting)


if __name__ == "__main__":
    main()
