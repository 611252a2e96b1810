"""The table of results in a terminal, in as many blocks of columns as its width asks for."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from driftline.report.table import Summary

TEXT_WIDTH = 24
"""Characters below which the columns of text are not squeezed."""


class ResultTable(Table):
    """A table whose numbers are never cut: what does not fit beside the runs' names follows below.

    Parameters
    ----------
    summary : Summary
        What is shown.
    columns : sequence of int, optional
        Which of its columns; default: all.
    last : bool
        Whether the notes stand under it.
    """

    def __init__(self, summary: Summary, columns: Sequence[int] | None = None, last: bool = True) -> None:
        notes = Text("\n".join(summary.notes)) if last else None
        super().__init__(box=box.SIMPLE_HEAD, caption=notes, caption_justify="left", pad_edge=False)
        self._summary = summary
        self._shown = list(range(len(summary.titles))) if columns is None else list(columns)
        for i in self._shown:
            number = bool(summary.metrics[i])
            heading = Text(self._narrow(i, summary.titles[i]))
            self.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row, below in zip(summary.rows, [*summary.rows[1:], None]):
            cells = [Text(self._narrow(i, row.cells[i])) for i in self._shown]
            mean = row.run is None
            self.add_row(*cells, style="bold" if mean else None, end_section=mean and below is not None)

    def _narrow(self, column: int, text: str) -> str:
        """Break a heading or a mean with its interval into lines."""
        if not self._summary.metrics[column]:
            return text
        return text.replace(" ± ", "\n± ") if "±" in text else text.replace(" ", "\n")

    def _width(self, column: int) -> int:
        texts = [self._summary.titles[column], *(row.cells[column] for row in self._summary.rows)]
        widest = max(len(line) for text in texts for line in self._narrow(column, text).split("\n"))
        # Three more for the space between columns.
        return 3 + (widest if self._summary.metrics[column] else min(widest, TEXT_WIDTH))

    def _blocks(self, width: int) -> list[list[int]]:
        """Share the columns out; every block begins with the run, and the seed where it tells runs apart."""
        text = [i for i in self._shown if not self._summary.metrics[i]]
        again = [i for i in text if self._summary.titles[i] in ("run", "seed")]
        blocks, free = [text], width - sum(map(self._width, text))
        for i in self._shown:
            if i in text:
                continue
            if self._width(i) > free and blocks[-1] != again:
                blocks.append(list(again))
                free = width - sum(map(self._width, again))
            blocks[-1].append(i)
            free -= self._width(i)
        return blocks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render as one table, or as several under one another."""
        blocks = self._blocks(options.max_width)
        if len(blocks) == 1 or blocks[0] == self._shown:
            yield from super().__rich_console__(console, options)
            return
        for i, block in enumerate(blocks):
            yield ResultTable(self._summary, block, last=i + 1 == len(blocks))
