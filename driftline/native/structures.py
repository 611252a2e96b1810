"""The structures of C's training loop, field by field as in ``lockstep.c``, ``moving.h`` and ``renewing.h``."""

from __future__ import annotations

from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_void_p

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")
LOSSES = ("squared_error", "cross_entropy")
OPTIMIZERS = ("descent", "upgd")
NOISES = ("quiet", "normal", "uniform")
UTILITIES = (
    "contribution", "zero_contribution", "adaptable_contribution", "adaptation", "feature_by_input", "weight", "random"
)  # fmt: skip
"""The order of C's enumerations."""


class Numbers(Structure):
    """What one parameter of one replica is moved with."""

    _fields_ = [(name, c_double) for name in ("pull", "pull_initial", "keep", "rate", "noise", "beta")]


class Parameter(Structure):
    """A weight or a bias of one layer, of all replicas."""

    _fields_ = [
        *((name, c_void_p) for name in ("value", "trace", "initial", "each")),
        *((name, c_int64) for name in ("size", "place", "drawn")),
    ]


class Span(Structure):
    """Parameters one behind the other that UPGD moves as one."""

    _fields_ = [
        ("each", c_void_p),
        *((name, c_int64) for name in ("size", "place", "drawn", "unit", "steps")),
    ]


class Layer(Structure):
    """A linear layer and the activation function behind it."""

    _fields_ = [
        *((name, c_int64) for name in ("inputs", "outputs")),
        ("activation", c_int32),
        ("slope", c_float),
        ("weight", Parameter),
        ("bias", Parameter),
    ]


class Optimizer(Structure):
    """What all parameters are moved with."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "noise", "local", "released", "protecting", "unused")),
        ("keys", c_void_p),
        *((name, c_int64) for name in ("step", "draw", "spans")),
        ("span", c_void_p),
    ]


class Counter(Structure):
    """A :class:`driftline.learners.renewers.counting.RenewalCounter`."""

    _fields_ = [
        *((name, c_double) for name in ("rate", "carry")),
        *((name, c_int64) for name in ("maturity", "eligible", "first", "length")),
        *((name, c_void_p) for name in ("steps", "counts")),
    ]


class UnitGroup(Structure):
    """The units of one hidden layer."""

    _fields_ = [
        *((name, c_int64) for name in ("layer", "number", "units")),
        *(
            (name, c_void_p)
            for name in ("utility", "activation", "birth", "counters", "decay", "take", "mature")
        ),
        ("bound", c_double),
    ]  # fmt: skip


class Renewal(Structure):
    """Continual backprop."""

    _fields_ = [
        *((name, c_int64) for name in ("groups", "step")),
        *((name, c_void_p) for name in ("group", "keys")),
        *(
            (name, c_int32)
            for name in ("utility", "running", "accumulate", "released", "compensate", "forget", "sweep")
        ),
        ("faded", c_float),
    ]


class Training(Structure):
    """A whole training loop."""

    _fields_ = [
        *((name, c_int64) for name in ("replicas", "layers", "samples", "batch")),
        *((name, c_void_p) for name in ("layer", "x", "y")),
        *((name, c_int64) for name in ("x_stride", "y_stride")),
        ("scores", c_void_p),
        *((name, c_int32) for name in ("loss", "unused")),
        ("optimizer", Optimizer),
        ("renewal", Renewal),
    ]
