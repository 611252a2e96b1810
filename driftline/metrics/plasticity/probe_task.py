"""Probe tasks: how well a copy of the network still learns something new, and how well it did at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from driftline.errors import ConfigError
from driftline.metrics.plasticity.periodic import PeriodicMetric, bare
from driftline.stream.seeds import derive_seed
from driftline.stream.step import Step


class ProbePlasticity(PeriodicMetric):
    """How well a copy of the network fits random targets in a few steps, beside the network as it was at first.

    At each measurement, copies of the current weights and of those before the stream's first step are trained on the
    same random targets for the same recent inputs; the learner is not touched.

    Parameters
    ----------
    every : int
        Samples between measurements.
    samples : int
        Most recent inputs, to each of which a target is drawn for every output, from N(0, 1).
    steps : int
        Adam steps over all of them.
    lr : float
        Their step size.
    targets : int
        Draws of targets, over which the result is averaged.
    seed : int
        Of the draws, together with the position.

    Raises
    ------
    InputError
        At the first step, when the learner shows no network.

    Notes
    -----
    After Lyle et al., "Understanding Plasticity in Neural Networks" (ICML 2023), who train copies on the outputs of
    random networks: here targets are independent for each input, so that what counts is how well they are fitted (not
    how they are continued), and the part of their variance that is fitted, ``1 - mean squared error``, is the value:
    0 is a network that says nothing, and large stale outputs give less. The network is in evaluation mode.

    Examples
    --------
    >>> import torch, driftline
    >>> from driftline.learners import GradientLearner
    >>> from driftline.metrics.plasticity import ProbePlasticity
    >>> stream = driftline.scenarios.iid(driftline.load("digits"))
    >>> network = driftline.models.mlp((1, 8, 8), classes=10, hidden=(16,))
    >>> learner = GradientLearner(network, torch.optim.SGD(network.parameters(), lr=0.05))
    >>> for step in driftline.play(stream, learner, batch_size=10, metrics=[ProbePlasticity(every=700)]):
    ...     pass
    >>> [*step.metrics()]
    ['probe_plasticity', 'probe_plasticity_fresh', 'probe_plasticity_lost']
    """

    looks_first: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = ("probe_plasticity", "probe_plasticity_fresh", "probe_plasticity_lost")
    definitions: ClassVar[Mapping[str, str]] = {
        "probe_plasticity": "share of the variance of random targets that a copy of the network fits in a few steps",
        "probe_plasticity_fresh": "the same for the network as it was before the stream's first step",
        "probe_plasticity_lost": "the fresh network's share minus that of the copy",
    }

    def __init__(
        self, every: int = 1000, samples: int = 128, steps: int = 50, lr: float = 0.01, targets: int = 2, seed: int = 0
    ) -> None:
        super().__init__(every, samples)
        for name, number in (("steps", steps), ("targets", targets)):
            if number < 1:
                raise ConfigError(f"{name}={number}: must be at least 1")
        if not lr > 0:
            raise ConfigError(f"lr={lr}: must be above 0")
        self.steps, self.lr, self.targets, self.seed = steps, lr, targets, seed
        self._fresh: dict[str, Tensor] = {}

    def cuts(self, position: int, batch_size: int) -> int | None:
        """Return where the next measurement is due; the first step is seen alone."""
        return batch_size if position == 0 else super().cuts(position, batch_size)

    def before(self, step: Step) -> None:
        """Keep the network as it is before the first step."""
        if step.batch.position == 0:
            self.introduce(step)
            self._fresh = {name: value.detach().clone() for name, value in self.network(step).state_dict().items()}

    def measure(self, step: Step, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the share of variance that is fitted by copies of the network now and at first, and the loss."""
        network = self.network(step)
        now = {name: value.detach() for name, value in network.state_dict().items()}
        shares = []
        with bare(network):
            for start in (now, self._fresh):
                each = [self._fit(network, start, x, step.position, i) for i in range(self.targets)]
                shares.append(torch.stack(each).mean())
        return [*shares, shares[1] - shares[0]]

    def _fit(self, network: nn.Module, start: Mapping[str, Tensor], x: Tensor, position: int, number: int) -> Tensor:
        """Train a copy that starts from a state; return how much of the targets it fits."""
        state = {name: start[name].to(x.device, copy=True) for name in start}
        params = [state[name].requires_grad_() for name, p in network.named_parameters() if p.requires_grad]
        draw = torch.Generator().manual_seed(derive_seed(self.seed, "probe task", position, number))
        targets: Tensor | None = None
        optimizer = torch.optim.Adam(params, lr=self.lr)
        for _ in range(self.steps):
            scores = functional_call(network, state, (x,))
            if targets is None:
                targets = torch.randn(scores.shape, generator=draw).to(scores)
            optimizer.zero_grad()
            nn.functional.mse_loss(scores, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            assert targets is not None
            scores = functional_call(network, state, (x,))
            return 1 - nn.functional.mse_loss(scores, targets).double() / targets.double().square().mean()

    def state_dict(self) -> dict[str, object]:
        """Return measurements, recent samples and the first weights."""
        return {**super().state_dict(), "fresh": dict(self._fresh)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a :meth:`state_dict`."""
        super().load_state_dict(state)
        # Never written to, so they need not be copied.
        self._fresh = dict(cast(Mapping[str, Tensor], state["fresh"]))
