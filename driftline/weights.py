"""Released weights of the reference networks, and the hash that identifies any model's weights."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from driftline import models
from driftline.data.files import data_root
from driftline.errors import ChecksumError, ConfigError, MissingDataError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# github.com/akamaster/pytorch_resnet_cifar10, BSD-2: file and sha256.
RELEASED = {
    "resnet20": ("resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "resnet56": ("resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
}


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Parameters
    ----------
    mean, std : sequence of float
        One value per channel, in the units of the images; ``std`` positive. Kept as buffers (C, 1, 1).

    Raises
    ------
    ConfigError
        For different lengths or a standard deviation that is not positive.

    Examples
    --------
    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ConfigError(f"mean={mean}, std={std}: give one mean and one positive std per channel")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised images (B, C, H, W)."""
        return (x - self.mean) / self.std


def load_weights(name: str | Path, root: str | Path | None = None, normalize: bool = True) -> models.Network:
    """ResNet-20 or ResNet-56 with the released CIFAR-10 weights, in evaluation mode.

    Parameters
    ----------
    name : str or Path
        ``"resnet20"`` (91.8 % on the test images), ``"resnet56"`` (93.6 %), or the path of one of their files.
    root : str or Path, optional
        Folder that holds ``weights/``. Default: the environment's ``DRIFTLINE_DATA``, else ``~/.cache/driftline``.
    normalize : bool
        Put the :class:`Normalize` these weights expect in front, so that the network takes images in [0, 1].

    Raises
    ------
    ConfigError
        For a name without released weights.
    MissingDataError
        When the file is not there; nothing is downloaded.
    ChecksumError
        When the file is not, byte for byte, a released one.

    Notes
    -----
    Weights by Yerlan Idelbayev, github.com/akamaster/pytorch_resnet_cifar10. They were trained on all of CIFAR-10's
    training images, with ImageNet's mean and standard deviation.

    Examples
    --------
    >>> model = load_weights("resnet20")  # doctest: +SKIP
    >>> load_weights("resnet21")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    driftline.errors.ConfigError: unknown released weights 'resnet21'; did you mean 'resnet20'? ...
    """
    path = _weights_path(name, root)
    if not path.is_file():
        raise MissingDataError(
            f"no weights at {path}; get the file from github.com/akamaster/pytorch_resnet_cifar10 "
            "(pretrained_models/) and put it there, or set DRIFTLINE_DATA to the folder that holds weights/"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    architecture = next((key for key, (_, released) in RELEASED.items() if digest == released), None)
    if architecture is None or (name in RELEASED and architecture != name):
        expected = {key: released for key, (_, released) in RELEASED.items() if name == key or name not in RELEASED}
        raise ChecksumError(f"{path}: sha256 {digest}, expected {expected}; the file is damaged, get it again")
    # The verified bytes are what is loaded, whatever happens to the file meanwhile.
    saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["state_dict"]
    renamed = {k.replace("module.linear.", "head.").replace("module.", "body."): v for k, v in saved.items()}
    network = models.build(architecture, (3, 32, 32), 10)
    network.load_state_dict(renamed)
    if normalize:
        front = OrderedDict[str, nn.Module](normalize=Normalize(IMAGENET_MEAN, IMAGENET_STD).cpu())
        network.body = nn.Sequential(front | OrderedDict(network.body.named_children()))
    return network.eval()


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a model's parameters and buffers, the same on every device.

    It covers names (sorted), dtypes, shapes and bytes of the tensors in ``state_dict()``; other entries do not count.

    Examples
    --------
    >>> one, same, other = models.mlp(4, 2), models.mlp(4, 2), models.mlp(4, 2, seed=1)
    >>> weights_hash(one) == weights_hash(same), weights_hash(one) == weights_hash(other)
    (True, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights_path(name: str | Path, root: str | Path | None) -> Path:
    if isinstance(name, str) and name in RELEASED:
        return data_root(root) / "weights" / RELEASED[name][0]
    if isinstance(name, str) and Path(name).name == name and not Path(name).suffix:
        raise unknown("released weights", name, RELEASED)
    return Path(name).expanduser()
