"""What a live source may give: samples, and labels that come for them later, by id."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Id = int | str


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample to predict.

    Parameters
    ----------
    x : array
        Its values, (*input).
    y : object, optional
        Its truth when it is known at once.
    id : int or str, optional
        By which a :class:`Label` finds it later; unique over the stream.
    """

    x: object
    y: object = None
    id: Id | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """The truth of a sample that came earlier (or is still to come).

    Parameters
    ----------
    id : int or str
        That of the sample.
    y : object
        Class index, or regression target.
    """

    id: Id
    y: object


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels that have come in, as the runtime takes them.

    Parameters
    ----------
    ids : tuple of int or str
        Of the samples they belong to.
    y : tuple of Tensor
        One for each.
    """

    ids: tuple[Id, ...]
    y: tuple[Tensor, ...]
