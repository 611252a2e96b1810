"""Labels that come back: which answers they belong to, and what follows from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from driftline.learners import Learner
from driftline.stream.edge.adapting import Adapting
from driftline.stream.edge.floor import Floor
from driftline.stream.edge.journal import Journal
from driftline.stream.edge.samples import Served
from driftline.stream.edge.serving import Answer, Serving
from driftline.stream.events import Id


class Labels:
    """Remembers answers until their labels come; compares both models with them, and hands them to a learner.

    Parameters
    ----------
    serving : Serving
        Whose answers.
    adapting : Adapting
        Told of labelled samples, where a learner learns.
    floor : Floor
        Decides which model is served.
    journal : Journal
        Told what happens.
    limit : int
        Answers remembered; the oldest is forgotten.
    """

    def __init__(self, serving: Serving, adapting: Adapting, floor: Floor, journal: Journal, limit: int) -> None:
        self.serving, self.adapting, self.floor, self.journal, self.limit = serving, adapting, floor, journal, limit
        self._waiting: OrderedDict[Id, tuple[list[Tensor], Served, int]] = OrderedDict()

    def remember(self, id: Id, recent: Sequence[Tensor], answer: Answer) -> None:
        """Keep an answer to the last of the samples, each (1, *input), that were predicted together."""
        # The adapted model's own answer is known already, so the samples before it are not needed. Not joined: each
        # sample is in many windows, and in memory once.
        kept = [recent[-1]] if answer.served == "adapted" else list(recent)
        self._waiting[id] = kept, answer.served, int(answer.scores.argmax())
        if len(self._waiting) > self.limit:
            self._waiting.popitem(last=False)

    def feedback(self, id: Id, y: object) -> None:
        """Take in a label."""
        self.journal.health.count("feedback")
        known = self._waiting.pop(id, None)
        if known is None:
            return self.journal.health.count("feedback_unknown")
        kept, served, answer = known
        x = torch.cat(kept)
        scores = self.serving.by_shipped(x)
        label, shipped = class_index(y, len(scores)), int(scores.argmax())
        if label is None:
            return self.journal.health.count("feedback_unknown")
        adapted: int | None = answer
        if served != "adapted":
            shadow = self.serving.predict(x)
            adapted = int(shadow.scores.argmax()) if shadow.served == "adapted" else None
        if self.floor.feedback(answer == label, shipped == label, adapted == label):
            self.serving.reset()
            self.adapting.forget()
            why = f"{self.floor.excess} errors more than the shipped model in {self.floor.window} labels or fewer"
            self.adapting.went_back("floor", "the shipped model", why)
        if isinstance(self.serving.player, Learner):
            self.adapting.collect(x[-1:], torch.tensor([label]))


def class_index(y: object, classes: int) -> int | None:
    """Return a label as a class index; None when it is none.

    Examples
    --------
    >>> class_index(2, 3), class_index(3, 3), class_index("cat", 3), class_index(1.0, 3)
    (2, None, None, None)
    """
    try:
        label = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        return None
    if label.dim() or label.is_floating_point() or label.dtype == torch.bool or not 0 <= int(label) < classes:
        return None
    return int(label)
