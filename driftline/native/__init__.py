"""Small kernels in C, built on demand with the machine's compiler; everything works without them.

They are built at the first use, which takes a few seconds once and is kept in the user's cache directory. Where there
is no compiler, or with ``DRIFTLINE_NATIVE=0`` in the environment, callers go on in PyTorch.
"""

from __future__ import annotations

from functools import cache

from driftline.native.build import BuildError, library
from driftline.native.kernels import (
    absolute_sums,
    fits,
    philox_normal,
    philox_uniform,
    upgd_step,
)
from driftline.native.views import image_views

__all__ = [
    "absolute_sums",
    "available",
    "fits",
    "image_views",
    "philox_normal",
    "philox_uniform",
    "problem",
    "upgd_step",
]


def available() -> bool:
    """Whether the kernels can be used here; builds them if they are not yet."""
    return problem() is None


@cache
def problem() -> str | None:
    """Return why the kernels cannot be used here, or None when they can."""
    try:
        library()
    except (BuildError, OSError) as error:
        return str(error)
    return None
