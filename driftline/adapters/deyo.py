"""DeYO: entropy is not enough, so that samples whose class hangs on shape count most (Lee et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.adapters.choosing import MakeOptimizer, Parameters, choose, make_optimizer, patterns
from driftline.adapters.losses import entropy, entropy_level
from driftline.adapters.model import ModelAdapter, demand_finite
from driftline.adapters.normalization import replace_batch_norm
from driftline.adapters.sar import LAST_STAGES
from driftline.adapters.settings import at_least, between
from driftline.errors import InputError
from driftline.stream.seeds import derive_seed, generator


class DeYO(ModelAdapter):
    """Step down the entropy of images whose predicted class suffers when their patches are shuffled.

    Parameters
    ----------
    model : nn.Module
        The source, of images. Batch normalisations use the statistics of the batch from then on; others stay.
    lr : float
        Step size. Used for CIFAR-10-C: 1e-3 with Adam (batches of 200). Published for ImageNet-C (SGD, batches of 64):
        2.5e-4 for ResNets, 1e-3 for ViTs.
    optimizer : str or callable
        See :data:`driftline.adapters.choosing.MakeOptimizer`.
    entropy_margin : float, optional
        Images of at least this entropy (nats) are left out. Default, as published: 0.5 ln C for C classes.
    entropy_scale : float, optional
        E0 in the weight exp(E0 - entropy) + exp(PLPD). Default, as published: 0.4 ln C.
    plpd_threshold : float
        Images are left out whose PLPD (pseudo-label probability difference: how much less probable shuffling makes the
        predicted class) is at most this, -1 to 1. Published for ImageNet-C: 0.3; in its wild settings, and used for
        CIFAR-10-C: 0.2.
    patches : int
        An image is cut into this many rows and columns of patches.
    steps : int
        Steps on each batch; the scores are those of the last step's first pass.
    parameters : str, sequence of str, or callable
        What is trained, see :data:`driftline.adapters.choosing.Parameters`.
    exclude : sequence of str
        Patterns of parameters that stay. Default: the last stages of ImageNet's networks, as in
        :class:`driftline.adapters.sar.SAR`, which says what to give for others.
    seed : int
        Patches are shuffled by draws that this, the number of the batch and the step say.
    inplace : bool
        Adapt the model itself.

    Attributes
    ----------
    batches : int
        Batches met.

    Raises
    ------
    ConfigError
        For a model without the chosen parameters, or a setting out of range.
    InputError
        From ``adapt``, for samples that are not images of at least ``patches`` pixels on each side.

    Notes
    -----
    Source: Lee, Jung, Lee, Park, Shin, Hwang & Yoon, *Entropy is not enough for test-time adaptation: from the
    perspective of disentangled factors*, ICLR 2024. As in the authors' code only images that pass the first filter are
    shuffled, each by its own order, and their second pass, without gradients, is normalised by themselves; sizes that
    ``patches`` does not divide are scaled to one that it does, and back. The code leaves the model in training mode, so
    that dropout stays active; here it is off.
    Single samples: each is kept or left out like in a batch. With batch normalisation an image is normalised by itself,
    which is poor; wrap it in a ``SlidingWindow``. Models with layer or group normalisation need nothing.

    Examples
    --------
    >>> source = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    >>> adapter = DeYO(source, lr=0.01, entropy_margin=1.1, plpd_threshold=-1.0, exclude=[])
    >>> x = torch.rand(20, 3, 8, 8)
    >>> before = entropy(adapter.predict(x)).mean()
    >>> for _ in range(10):
    ...     scores = adapter.adapt(x)
    >>> bool(entropy(adapter.predict(x)).mean() < before)
    True
    """

    held = ("model", "optimizer", "batches")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        optimizer: MakeOptimizer = "adam",
        entropy_margin: float | None = None,
        entropy_scale: float | None = None,
        plpd_threshold: float = 0.2,
        patches: int = 4,
        steps: int = 1,
        parameters: Parameters = "affine",
        exclude: Sequence[str] = LAST_STAGES,
        seed: int = 0,
        inplace: bool = False,
    ) -> None:
        at_least("steps", steps, 1)
        at_least("patches", patches, 2)
        between("plpd_threshold", plpd_threshold, -1, 1)
        for name, level in (("entropy_margin", entropy_margin), ("entropy_scale", entropy_scale)):
            if level is not None:
                between(name, level, 0)
        super().__init__(model, inplace)
        self.lr, self.entropy_margin, self.entropy_scale = lr, entropy_margin, entropy_scale
        self.plpd_threshold, self.patches, self.steps, self.seed = plpd_threshold, patches, steps, seed
        self.parameters, self.exclude = parameters, patterns(exclude)
        chosen = choose(self.model, parameters, self.exclude)
        self.model = replace_batch_norm(self.model)
        self.optimizer = make_optimizer(optimizer, [*chosen.values()], lr)
        self.batches = 0
        self.remember()

    def changes_on(self, samples: int) -> int:
        """Return the steps on a batch."""
        return self.steps

    def update(self, x: Tensor) -> Tensor:
        """Step down the weighted entropy of the images kept; return the scores from before."""
        self.demand_images(x)
        for step in range(self.steps):
            scores: Tensor = self.model(x)
            entropies = entropy(scores)
            demand_finite(entropies, "entropies of this batch")
            sure = entropies < entropy_level(self.entropy_margin, scores, share=0.5)
            if not sure.any():
                continue
            plpd = self.plpd(x[sure], scores[sure], step)
            kept = plpd > self.plpd_threshold
            if not kept.any():
                continue
            entropies, plpd = entropies[sure][kept], plpd[kept]
            scale = entropy_level(self.entropy_scale, scores, share=0.4)
            weights = (scale - entropies.detach()).exp() + plpd.exp()
            self.step((weights * entropies).mean())
        self.batches += 1
        return scores

    def plpd(self, x: Tensor, scores: Tensor, step: int) -> Tensor:
        """Return how much less probable shuffling makes the class predicted for images, (B,)."""
        draws = generator(derive_seed(self.seed, "DeYO", self.batches, step), x.device)
        with torch.no_grad():
            shuffled: Tensor = self.model(shuffle_patches(x, self.patches, draws))
            demand_finite(shuffled, "scores of this batch with its patches shuffled")
            probable, predicted = scores.softmax(1).max(1)
            return probable - shuffled.softmax(1).gather(1, predicted[:, None]).squeeze(1)

    def demand_images(self, x: Tensor) -> None:
        """Raise unless samples can be cut into patches.

        Raises
        ------
        InputError
        """
        if x.dim() != 4 or not x.is_floating_point() or min(x.shape[-2:]) < self.patches:
            raise InputError(
                f"x {tuple(x.shape)} {x.dtype}: DeYO shuffles {self.patches} x {self.patches} patches of images "
                "(B, C, H, W) of floats, at least that many pixels high and wide; choose SAR or ETA for other data"
            )


def shuffle_patches(x: Tensor, patches: int, draws: torch.Generator) -> Tensor:
    """Cut images (B, C, H, W) into rows and columns of patches, and return them with each image's in random order.

    Examples
    --------
    >>> image = torch.arange(4.0).view(1, 1, 2, 2)
    >>> shuffle_patches(image, 2, generator(1)).flatten().sort().values
    tensor([0., 1., 2., 3.])
    """
    b, c, height, width = x.shape
    h, w = height // patches, width // patches
    if (h * patches, w * patches) != (height, width):
        x = F.interpolate(x, (h * patches, w * patches), mode="bilinear", antialias=True)
    pieces = x.view(b, c, patches, h, patches, w).permute(0, 2, 4, 1, 3, 5).reshape(b, patches**2, c, h, w)
    order = torch.rand(b, patches**2, generator=draws, device=x.device).argsort(1)
    pieces = pieces[torch.arange(b, device=x.device)[:, None], order]
    x = pieces.view(b, patches, patches, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h * patches, w * patches)
    if x.shape[-2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    return x
