"""Records with named fields as samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from driftline.errors import ConfigError, InputError
from driftline.stream.events import Label, Sample


class Columns:
    """Makes samples of records with named fields, such as CSV rows and JSON objects.

    A record that has the id and the label, and none of the features, is a label that comes later.

    Parameters
    ----------
    features : sequence of str
        Fields that become the values of x, in this order.
    label : str, optional
        Field of the truth; a record without it (or with an empty one) has none.
    classes : sequence of str
        Names of the classes, for labels that are names or numbers; none: the label is a number to predict.
    id : str, optional
        Field by which a label finds its sample.

    Raises
    ------
    InputError
        For a field that is missing or no finite number, or an unknown class.

    Examples
    --------
    >>> columns = Columns(["height", "width"], label="kind", classes=["cat", "dog"], id="name")
    >>> columns({"name": "a", "height": "1.5", "width": 2, "kind": "dog"})
    Sample(x=[1.5, 2.0], y=1, id='a')
    >>> columns({"name": "b", "kind": "cat"})
    Label(id='b', y=0)
    """

    def __init__(
        self, features: Sequence[str], label: str | None = None, classes: Sequence[str] = (), id: str | None = None
    ) -> None:
        if not features:
            raise ConfigError("features=[]: name at least one field")
        self.features, self.label, self.id = tuple(features), label, id
        self.classes = {str(name): index for index, name in enumerate(classes)}

    def __call__(self, record: Mapping[str, Any]) -> Sample | Label:
        """Return what a record is."""
        if not isinstance(record, Mapping):
            raise InputError(f"expected named fields, found {type(record).__name__}")
        name = record.get(self.id) if self.id is not None else None
        y = record.get(self.label) if self.label is not None else None
        truth = None if y is None or y == "" else self._truth(y)
        if name is not None and truth is not None and not any(field in record for field in self.features):
            return Label(name, truth)
        return Sample([_number(record, field) for field in self.features], truth, name)

    def _truth(self, y: object) -> int | float:
        if not self.classes:
            return _number({"label": y}, "label")
        if str(y) not in self.classes:
            raise InputError(f"unknown class {y!r}; there are: {', '.join(self.classes)}")
        return self.classes[str(y)]


def _number(record: Mapping[str, Any], field: str) -> float:
    if field not in record:
        raise InputError(f"there is no field {field!r}")
    try:
        value = float(record[field])
    except (TypeError, ValueError):
        raise InputError(f"field {field!r} is {record[field]!r}, not a number") from None
    if not math.isfinite(value):
        raise InputError(f"field {field!r} is {value}")
    return value
