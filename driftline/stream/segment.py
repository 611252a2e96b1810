"""Segments: which samples, in which order, how they look and when their labels arrive.

A segment is a table with one line per sample: a row of a dataset and the number of a recipe. The words of the
scenario language (shuffle, take, interleave, ...) only rearrange lines or change recipes, so they combine freely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from driftline.errors import ScenarioError
from driftline.stream.dataset import Dataset, check_labels, check_samples
from driftline.stream.recipe import Recipe, Transform


@dataclass(frozen=True, eq=False)
class Segment:
    """An ordered selection of samples: the noun of the scenario language.

    Every method returns a new segment; nothing is copied but row numbers.

    Parameters
    ----------
    rows : Tensor, shape (n,)
        Row of the dataset for each sample.
    recipes : tuple of Recipe
        How rows become samples.
    which : Tensor, shape (n,), optional
        Recipe number of each sample; None: all use the first.
    name : str
        Shown in records and plots.
    judged : tuple of int, optional
        Classes this segment stands for in held-out evaluation; default: those that occur in it.

    Examples
    --------
    >>> import torch
    >>> from driftline import Dataset
    >>> from driftline.stream import Segment
    >>> data = Segment.of(Dataset(torch.arange(6.0).unsqueeze(1), torch.tensor([0, 1, 2, 0, 1, 2])))
    >>> data.classes(0, 2).take(3).rows.tolist()
    [0, 2, 3]
    >>> data.classes(1).transform(torch.neg).delay_labels(10).labels().tolist()
    [1, 1]
    """

    rows: Tensor
    recipes: tuple[Recipe, ...]
    which: Tensor | None = None
    name: str = ""
    judged: tuple[int, ...] | None = None

    @classmethod
    def of(cls, data: Dataset) -> Segment:
        """All rows of a dataset, in its order."""
        return cls(torch.arange(len(data)), (Recipe(data),))

    def __len__(self) -> int:
        return len(self.rows)

    # --- what is in it

    @property
    def dataset(self) -> Dataset:
        """The dataset of the first recipe (every recipe agrees with it on classes and input shape)."""
        return self.recipes[0].data

    @property
    def num_classes(self) -> int:
        """Number of classes of the dataset, whether they occur here or not."""
        return len(self.dataset.classes)

    def labels(self) -> Tensor:
        """Return the truth of each sample in order, on the CPU.

        Raises
        ------
        ScenarioError
            When the data has no labels.
        """
        truths = [r.truth for r in self.recipes]
        if any(t is None for t in truths):
            raise ScenarioError(f"{self.dataset.name} has no labels, which this scenario needs")
        if self.which is None:
            assert truths[0] is not None
            return truths[0].cpu()[self.rows]
        out = torch.empty(0)
        for number, truth in enumerate(truths):
            assert truth is not None
            if number == 0:
                out = torch.zeros((len(self), *truth.shape[1:]), dtype=truth.dtype)
            mine = self.which == number
            out[mine] = truth.cpu()[self.rows[mine]]
        return out

    def class_labels(self) -> Tensor:
        """Return :meth:`labels`, which must be classes.

        Raises
        ------
        ScenarioError
            When the data has no labels, or regression targets.
        """
        labels = self.labels()
        if not self.dataset.classes:
            raise ScenarioError(f"{self.dataset.name} has regression targets; this scenario needs classes")
        return labels

    # --- which samples, in which order

    def at(self, index: Tensor | Sequence[int]) -> Segment:
        """Return the samples at these places, in this order (repeats allowed)."""
        index = torch.as_tensor(index)
        if index.dtype == torch.bool:
            raise ScenarioError("at() takes places, not a mask; use mask.nonzero().flatten()")
        index = index.long()
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise ScenarioError(f"place out of range 0..{len(self) - 1} in segment {self.name!r}")
        return replace(self, rows=self.rows[index], which=None if self.which is None else self.which[index])

    def everything(self) -> Segment:
        """Return all samples, in their order."""
        return self

    def classes(self, *classes: int) -> Segment:
        """Return the samples of these classes, in their order.

        Raises
        ------
        ScenarioError
            For a class the data does not have.
        """
        self._check_classes(classes)
        return self.at(torch.isin(self.class_labels(), torch.tensor(classes)).nonzero().flatten())

    def shuffle(self, rng: torch.Generator) -> Segment:
        """Return the samples in a random order."""
        return self.at(torch.randperm(len(self), generator=rng))

    def take(self, count: int, start: int = 0) -> Segment:
        """Return ``count`` samples from ``start`` on (fewer when there are fewer)."""
        if count < 0 or start < 0:
            raise ScenarioError(f"take({count}, start={start}): numbers of samples cannot be negative")
        return self.at(torch.arange(len(self))[start : start + count])

    def repeat(self, times: int) -> Segment:
        """Return the segment ``times`` over, in the same order each time."""
        if times < 1:
            raise ScenarioError(f"repeat({times}): must be at least 1")
        return self.at(torch.arange(len(self)).repeat(times))

    def batched(self, size: int) -> list[Segment]:
        """Cut into segments of ``size`` samples (the last may be shorter)."""
        if size < 1:
            raise ScenarioError(f"batched({size}): must be at least 1 sample")
        return [self.take(size, start) for start in range(0, len(self), size)]

    # --- how they look

    def transform(self, function: Callable[..., Tensor], random: bool = False) -> Segment:
        """Return the segment with ``function`` applied to its samples.

        Parameters
        ----------
        function : callable
            ``function(x) -> x``, or ``function(x, generator) -> x`` when ``random``; x is (B, *input) with any
            B, and samples must not depend on each other. Must pickle for the stream to pickle.
        random : bool
            Pass a generator, keyed by seed and stream position, so that the draws of a sample are the same
            whatever the batch size and wherever one resumes.
        """
        step = Transform(function, random)
        return self._cook(lambda r: replace(r, transforms=(*r.transforms, step)))

    def corrupt(self, corruption: str | Callable[..., Tensor], severity: float = 3) -> Segment:
        """Return the segment with an image corruption of Hendrycks & Dietterich (2019) applied.

        Images are bytes, which become fractions of 255 first, or floats in [0, 1].

        Parameters
        ----------
        corruption : str or callable
            A name in ``driftline.scenarios.corruptions``, or ``function(x, severity, generator) -> x``.
        severity : float
            1 (weak) to 5 (strong).

        Raises
        ------
        ConfigError
            For an unknown name or a severity out of range.
        InputError
            When the stream is read, for anything but images, or, on the CPU, values outside [0, 1].
        """
        import driftline.scenarios.corruptions

        return self.transform(driftline.scenarios.corruptions.get(corruption, severity), random=True)

    def relabel(self, mapping: Tensor | Sequence[int]) -> Segment:
        """Return the segment with class c presented as class ``mapping[c]``."""
        self._need_classes("relabel")
        mapping = torch.as_tensor(mapping, dtype=torch.long)
        if len(mapping) != self.num_classes or not set(mapping.tolist()) <= set(range(self.num_classes)):
            raise ScenarioError(f"relabel needs {self.num_classes} classes in 0..{self.num_classes - 1}")
        return self._cook(lambda r: replace(r, relabel=mapping if r.relabel is None else mapping[r.relabel]))

    def with_labels(self, labels: Tensor) -> Segment:
        """Return the segment with the truth of each *dataset row* replaced: ``labels`` has shape (rows,).

        Raises
        ------
        ScenarioError
            When there is not one label for each row.
        DataError
            When a label cannot be used.
        """
        if any(len(labels) != len(r.data) for r in self.recipes):
            raise ScenarioError(f"with_labels needs one label for each of the {len(self.dataset)} rows")
        where = f"{self.dataset.name}, with_labels"
        if self.num_classes:
            labels = check_labels(labels, self.num_classes, where)
        elif not check_samples(labels, where, at_least=1).is_floating_point():
            raise ScenarioError(f"{where}: class labels need classes; name them with Dataset(..., classes=[...])")
        return self._cook(lambda r: replace(r, labels=labels, relabel=None))

    # --- when labels arrive

    def delay_labels(self, samples: int) -> Segment:
        """Return the segment with labels that arrive ``samples`` samples late."""
        if samples < 0:
            raise ScenarioError(f"delay_labels({samples}): a label cannot arrive before its sample")
        return self._cook(lambda r: replace(r, delay=samples))

    def label_fraction(self, fraction: float) -> Segment:
        """Return the segment with only this share of the labels arriving, drawn by seed and position."""
        if not 0 <= fraction <= 1 or math.isnan(fraction):
            raise ScenarioError(f"label_fraction({fraction}): must be between 0 and 1")
        return self._cook(lambda r: replace(r, fraction=fraction))

    def without_labels(self) -> Segment:
        """Return the segment with no label ever reaching the learner."""
        return self.label_fraction(0.0)

    # --- what it is called

    def named(self, name: str) -> Segment:
        """Return the segment under another name."""
        return replace(self, name=name)

    def in_domain(self, name: str) -> Segment:
        """Return the segment with all its samples in a named domain, such as "fog 5"; the segment is named so too.

        The domain stays with each sample when segments are joined, shuffled or named again; metrics tell domains apart
        by it (see :meth:`Stream.domains`). Samples that are in no named domain are in that of their segment's name.

        Examples
        --------
        >>> import torch
        >>> from driftline import Dataset, interleave
        >>> from driftline.stream import Segment, Stream
        >>> data = Segment.of(Dataset(torch.rand(2, 1), torch.tensor([0, 1])))
        >>> night = data.transform(torch.neg).in_domain("night")
        >>> stream = Stream([interleave(data.in_domain("day"), night).named("both")])
        >>> stream.domain_names, stream.domains(next(stream.batches(4))).tolist()
        (('day', 'night'), [0, 1, 0, 1])
        """
        return self._cook(lambda r: replace(r, look=name)).named(name)

    def judged_on(self, *classes: int) -> Segment:
        """Return the segment standing for these classes in held-out evaluation."""
        self._check_classes(classes)
        return replace(self, judged=classes)

    def held_out(self, split: str = "test") -> Segment | None:
        """Return the samples of another split that this segment stands for, shown as this segment shows them.

        None when there is no such split, or the truth of unseen rows is undefined (labels given by row).
        """
        labels = None if self.judged is not None else self.class_labels()
        wanted: dict[Hashable, list[int]] = {}
        shown: dict[Hashable, Recipe] = {}
        for number, recipe in enumerate(self.recipes):
            cooked = recipe.held_out(split)
            if cooked is None:
                return None
            mine = labels if labels is None or self.which is None else labels[self.which == number]
            # Recipes that differ only in their label policy share a domain, whose samples count once.
            domain = shown.setdefault(cooked.domain, cooked).domain
            wanted.setdefault(domain, []).extend(self.judged or () if mine is None else torch.unique(mine).tolist())
        parts = []
        for domain, classes in wanted.items():
            whole = Segment(torch.arange(len(shown[domain].data)), (shown[domain],))
            if classes:
                parts.append(whole.at(torch.isin(whole.class_labels(), torch.tensor(classes)).nonzero().flatten()))
        from driftline.stream.join import concatenate

        return concatenate(*parts).named(self.name) if parts else None

    def _need_classes(self, word: str) -> None:
        if not self.num_classes:
            raise ScenarioError(f"{word}: {self.dataset.name} has no classes, so there are none to choose or rename")

    def _check_classes(self, classes: Sequence[int]) -> None:
        self._need_classes("classes")
        bad = [c for c in classes if not 0 <= c < self.num_classes]
        if bad:
            raise ScenarioError(f"no class {bad[0]} in {self.dataset.name}; classes are 0..{self.num_classes - 1}")

    def _cook(self, change: Callable[[Recipe], Recipe]) -> Segment:
        return replace(self, recipes=tuple(change(r) for r in self.recipes))
