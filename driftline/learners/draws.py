"""Random numbers by address: what is drawn depends on seed, purpose and step, never on what was drawn before.

Philox 4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). A draw has no history, so
replicas draw side by side what each would draw alone, and a checkpoint needs the number of the step only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from driftline import native
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
        self._keys: dict[torch.device, Tensor] = {}
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
        where = torch.device(device)
        if where.type == "cpu" and native.available():
            drawn = native.philox_normal(self.keys, step, lane, count)
        else:
            drawn = normal_numbers(words(self._at(where), step, lane, count))[:, :count]
        return self._shaped(drawn, dtype)

    def uniform(
        self, step: int, count: int, lane: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return numbers uniform in (0, 1), 23 bits fine; parameters as for :meth:`normal`."""
        where = torch.device(device)
        if where.type == "cpu" and native.available():
            drawn = native.philox_uniform(self.keys, step, lane, count)
        else:
            drawn = uniform_numbers(words(self._at(where), step, lane, count))[:, :count]
        return self._shaped(drawn, dtype)

    def _at(self, device: torch.device) -> Tensor:
        if device not in self._keys:
            self._keys[device] = self.keys.to(device)
        return self._keys[device]

    def _shaped(self, drawn: Tensor, dtype: torch.dtype | None) -> Tensor:
        return (drawn if self._many else drawn[0]).to(dtype or torch.float32)


def words(keys: Tensor, step: int, lane: int, count: int) -> Tensor:
    """Return words (R, count rounded up to whole groups) in [0, 2**32), as int64, on the device of the keys (R, 2).

    Block b of replica r is the four words of counter (b, lane, step low, step high) under ``keys[r]``. A group is 8
    blocks: first their eight first words, then the second ones, and so on.
    """
    blocks = torch.arange(-(-count // GROUP) * BLOCKS, device=keys.device)
    fixed = (torch.full_like(blocks, n & MASK) for n in (lane, step, step >> 32))
    made = philox(torch.stack([blocks, *fixed]).unsqueeze(1), keys)
    return made.view(4, len(keys), -1, BLOCKS).permute(1, 2, 0, 3).flatten(1)


def philox(counter: Tensor, keys: Tensor) -> Tensor:
    """Return Philox 4x32-10 of counters (4, R or 1, n) under keys (R, 2): words (4, R, n), all int64.

    Examples
    --------
    >>> philox(torch.zeros(4, 1, 1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)).flatten().tolist()
    [1713891541, 3781805453, 3159862348, 2600524760]
    """
    factors, steps = _constants(keys.device)
    key = keys.T.unsqueeze(-1)
    even, odd = counter[0::2], counter[1::2]
    for turn in range(10):
        # Products wrap and shifts keep the sign, which is right in the 32 bits that are kept; odd words keep more.
        product = (even * factors).flip(0)
        even = ((product >> 32) ^ odd ^ (key + turn * steps)) & MASK
        odd = product
    return torch.stack((even, odd & MASK), 1).flatten(0, 1)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return factors and key steps (2, 1, 1); kept, since copying to a device makes it wait."""
    made = (torch.tensor(n, device=device).view(2, 1, 1) for n in (MULTIPLIERS, WEYL))
    return next(made), next(made)


def uniform_numbers(drawn: Tensor) -> Tensor:
    """Return a number in (0, 1) for each word: the middle of one of 2**23 steps, which float32 holds exactly."""
    return ((drawn >> 9).to(torch.float32) + 0.5) * 2.0**-23


def normal_numbers(drawn: Tensor) -> Tensor:
    """Return a standard normal number for each word of whole groups (Box & Muller 1958).

    A radius comes from the first word of a block, the angle from the second; likewise from the third and the fourth.
    """
    grouped = drawn.view(len(drawn), -1, 2, 2, BLOCKS)
    radius = torch.sqrt(-2.0 * torch.log(uniform_numbers(grouped[:, :, :, 0])))
    angle = ((grouped[:, :, :, 1] >> 9).to(torch.float32) * 2.0**-23 - 0.5) * (2.0 * math.pi)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), 3).flatten(1)


def split(flat: Tensor, like: Sequence[Tensor], many: bool) -> list[Tensor]:
    """Cut flat draws, (n,) or (R, n), into tensors shaped like these, in their order."""
    sizes = [t[0].numel() if many else t.numel() for t in like]
    return [part.reshape(t.shape) for part, t in zip(torch.split(flat, sizes, -1), like)]
