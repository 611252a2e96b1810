"""Random numbers by address: what is drawn depends on seed, purpose and step, never on what was drawn before.

Philox 4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). A draw has no history, so
replicas draw side by side what each would draw alone, and a checkpoint needs the number of the step only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from driftline.learners import native
from driftline.learners.replicas import Seeds, seeds_of
from driftline.stream.seeds import derive_seed

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
BLOCKS = 8
"""Blocks of four words in a group, in which words are ordered as vector units compute them."""
GROUP = 4 * BLOCKS


class Draws:
    """Normal and uniform numbers, each replica's from its own seed.

    Parameters
    ----------
    seed : int or sequence of int
        One seed, or one for each replica.
    purpose : str
        Two purposes with the same seed draw independently.
    replicas : int, optional
        Number of replicas; None: numbers have no leading dimension.

    Examples
    --------
    >>> both = Draws([3, 4], "noise", replicas=2).normal(step=7, count=5)
    >>> alone = Draws(4, "noise").normal(step=7, count=5)
    >>> both.shape, torch.equal(both[1], alone)
    (torch.Size([2, 5]), True)
    """

    def __init__(self, seed: Seeds, purpose: str, replicas: int | None = None) -> None:
        keys = [derive_seed(s, purpose) for s in seeds_of(seed, replicas)]
        self.keys = torch.tensor([[k & MASK, k >> 32] for k in keys], dtype=torch.int64)
        self._many = replicas is not None

    def normal(
        self, step: int, count: int, lane: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return ``count`` standard normal numbers for each replica: (count,) or (R, count).

        Parameters
        ----------
        step : int
            Address of the draw, at least 0.
        count : int
            How many.
        lane : int
            Further part of the address, below 2**32: such as a layer's number.
        device : torch.device
            Where they are wanted.
        dtype : torch.dtype, optional
            Default: float32, in which they are drawn.
        """
        if torch.device(device).type == "cpu" and native.available():
            drawn = native.philox_normal(self.keys, step, lane, count)
        else:
            drawn = normal_numbers(philox(self.keys, step, lane, count, device))[:, :count]
        return (drawn if self._many else drawn[0]).to(dtype or torch.float32)

    def uniform(
        self, step: int, count: int, lane: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return numbers uniform in (0, 1), 23 bits fine; parameters as for :meth:`normal`."""
        if torch.device(device).type == "cpu" and native.available():
            drawn = native.philox_uniform(self.keys, step, lane, count)
        else:
            drawn = uniform_numbers(philox(self.keys, step, lane, count, device))[:, :count]
        return (drawn if self._many else drawn[0]).to(dtype or torch.float32)


def philox(keys: Tensor, step: int, lane: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return words (R, count rounded up to whole groups) in [0, 2**32), as int64.

    Block b of replica r is Philox 4x32-10 of the counter (b, lane, step low, step high) under ``keys[r]``: four words.
    A group is 8 blocks: first the eight first words, then the second ones, and so on.
    """
    groups = -(-count // GROUP)
    key = [keys[:, i : i + 1].to(device) for i in (0, 1)]
    shape = (len(keys), groups * BLOCKS)
    first = torch.arange(shape[1], dtype=torch.int64, device=device).expand(shape)
    counter: list[Tensor] = [
        first,
        *(torch.full(shape, n & MASK, dtype=torch.int64, device=device) for n in (lane, step, step >> 32)),
    ]
    for turn in range(10):
        high0, low0 = _product(MULTIPLIERS[0], counter[0])
        high1, low1 = _product(MULTIPLIERS[1], counter[2])
        k0, k1 = ((k + turn * w) & MASK for k, w in zip(key, WEYL))
        counter = [high1 ^ counter[1] ^ k0, low1, high0 ^ counter[3] ^ k1, low0]
    return torch.stack([word.view(len(keys), groups, BLOCKS) for word in counter], 2).flatten(1)


def _product(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low half of the 64-bit products; in two steps, since int64 has a sign."""
    low, high = (factor & 0xFFFF) * words, (factor >> 16) * words
    whole_low = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (whole_low >> 32), whole_low & MASK


def uniform_numbers(words: Tensor) -> Tensor:
    """Return a number in (0, 1) for each word: the middle of one of 2**23 steps, which float32 holds exactly."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def normal_numbers(words: Tensor) -> Tensor:
    """Return a standard normal number for each word of whole groups (Box & Muller 1958).

    A radius comes from the first word of a block, the angle from the second; likewise from the third and the fourth.
    """
    grouped = words.unflatten(1, (-1, 2, 2, BLOCKS))
    radius = torch.sqrt(-2.0 * torch.log(uniform_numbers(grouped[:, :, :, 0])))
    angle = ((grouped[:, :, :, 1] >> 9).to(torch.float32) * 2.0**-23 - 0.5) * (2.0 * math.pi)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), 3).flatten(1)


def split(flat: Tensor, like: Sequence[Tensor], many: bool) -> list[Tensor]:
    """Cut flat draws, (n,) or (R, n), into tensors shaped like these, in their order."""
    sizes = [t[0].numel() if many else t.numel() for t in like]
    return [part.reshape(t.shape) for part, t in zip(torch.split(flat, sizes, -1), like)]
