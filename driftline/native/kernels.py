"""The kernels on tensors: arguments are laid out for C here, and nowhere else."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from driftline.native.build import library


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: contiguous float32 on the CPU."""
    return all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() and t.layout == torch.strided
        for t in tensors
    )


def philox_normal(keys: Tensor, step: int, lane: int, count: int) -> Tensor:
    """Return standard normal numbers (R, count); see :meth:`driftline.learners.draws.Draws.normal`."""
    return _draw("philox_normal", keys, step, lane, count)


def philox_uniform(keys: Tensor, step: int, lane: int, count: int) -> Tensor:
    """Return uniform numbers (R, count); see :meth:`driftline.learners.draws.Draws.uniform`."""
    return _draw("philox_uniform", keys, step, lane, count)


def _draw(name: str, keys: Tensor, step: int, lane: int, count: int) -> Tensor:
    keys = keys.contiguous()
    drawn = torch.empty(len(keys), count)
    getattr(library(), name)(_at(keys), c_int64(len(keys)), c_int64(step), c_int64(lane), c_int64(count), _at(drawn))
    return drawn


def absolute_sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of |W| over each row and over each column, in one pass.

    Parameters
    ----------
    weight : Tensor, shape (out, in) or (R, out, in)
        For which :func:`fits` is true.

    Examples
    --------
    >>> from driftline import native
    >>> if native.available():
    ...     print(*native.absolute_sums(torch.tensor([[1.0, -2.0], [3.0, 4.0]])))
    ... else:
    ...     print("tensor([3., 7.]) tensor([4., 6.])")
    tensor([3., 7.]) tensor([4., 6.])
    """
    *lead, rows, columns = weight.shape
    row_sums, column_sums = weight.new_empty(*lead, rows), weight.new_empty(*lead, columns)
    replicas = lead[0] if lead else 1
    sizes = (c_int64(n) for n in (replicas, rows, columns))
    library().absolute_sums(_at(weight), *sizes, _at(row_sums), _at(column_sums))
    return row_sums, column_sums


class _UpgdParameter(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("weight", "trace", "gradient")),
        *((name, c_int64) for name in ("size", "unit")),
    ]


class _UpgdPlan(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("parameters", "replicas")),
        ("keys", c_void_p),
        *((name, c_int64) for name in ("step", "lane")),
        *((name, c_int32) for name in ("local", "released", "protecting")),
    ]


def upgd_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    traces: Sequence[Tensor],
    *,
    beta: Sequence[float],
    correction: Sequence[float],
    keep: Sequence[float],
    rate: Sequence[float],
    sigma: Sequence[float],
    keys: Tensor,
    step: int,
    lane: int = 0,
    released: bool = False,
    protecting: bool = True,
    units: Sequence[int] | None = None,
    replicas: int | None = None,
) -> None:
    """Make one step of weight-wise first-order UPGD: change traces and parameters in place.

    It does what :mod:`driftline.learners.optimizers.utility` describes. Settings are lists with one number for each
    replica (one in all without replicas).

    Parameters
    ----------
    params, grads, traces : sequence of Tensor
        Of all parameters, for all of which :func:`fits` is true; (R, ...) with replicas.
    beta, correction : sequence of float
        Decay of the traces, and 1 - beta^t.
    keep, rate : sequence of float
        1 - lr weight_decay, and lr.
    sigma : sequence of float
        Standard deviation of the noise; 0 for all: none is drawn.
    keys, step, lane : Tensor, int, int
        Keys (R, 2) and address of the noise: ``Draws.normal(step, count, lane)`` over all parameters in order.
    released : bool
        Divide by the largest uncorrected utility, signed.
    protecting : bool
        Whether utility gates the gradient too, or only the noise.
    units : sequence of int, optional
        Scale utilities by the norm of so many consecutive ones, a number for each parameter; default: all by the
        largest of the replica's network.
    replicas : int, optional
        Number of runs in lockstep.

    Raises
    ------
    MemoryError
        Before anything is changed.
    """
    many = replicas or 1
    made = (_UpgdParameter * len(params))()
    for i, (p, u, g) in enumerate(zip(params, traces, grads)):
        size = p.numel() // many
        made[i] = _UpgdParameter(p.data_ptr(), u.data_ptr(), g.data_ptr(), size, size if units is None else units[i])
    rows = [(b, b - 1, c, k, -a, s, -a * s) for b, c, k, a, s in zip(beta, correction, keep, rate, sigma)]
    numbers = (c_float * (7 * many))(*(number for row in rows for number in row))
    keys = keys.contiguous()
    plan = _UpgdPlan(
        parameters=len(params),
        replicas=many,
        keys=keys.data_ptr() if any(sigma) else None,
        step=step,
        lane=lane,
        local=units is not None,
        released=released,
        protecting=protecting,
    )
    if not library().upgd_step(ctypes.byref(plan), made, numbers):
        raise MemoryError("no memory for a draw of noise")


def _at(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
