"""The figure of a diagnosis: scores over tasks, and what the network was like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from driftline.errors import ConfigError

if TYPE_CHECKING:
    from driftline.diagnosis import Diagnosis

COLOURS = ("#1f618d", "#239b56", "#7d3c98", "#d68910", "#16a085", "#884ea0")


def draw(diagnosis: Diagnosis, path: Path) -> Path:
    """Draw to a file whose ending says the format; return its path.

    Raises
    ------
    ConfigError
        When matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('the figure needs matplotlib: pip install "driftline[report]"') from error
    looks = diagnosis.course.looks
    figure = Figure(figsize=(9, 6.5), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, max(1, len(looks)), height_ratios=(2, 1))
    top = figure.add_subplot(grid[0, :])
    tasks = range(1, len(diagnosis.course.scores) + 1)
    top.plot(tasks, diagnosis.course.scores, color="#c0392b", linewidth=2, label="this learner")
    for trial, colour in zip(diagnosis.trials, COLOURS):
        top.plot(tasks, trial.course.scores, color=colour, linewidth=1.2, label=trial.name)
    at = [i + 1 for i in diagnosis.compared]
    top.plot(at, diagnosis.fresh, color="black", linestyle="--", linewidth=1.2, label="fresh network")
    top.set_title(diagnosis.verdict.state, fontsize=11)
    top.set_xlabel("task")
    top.set_ylabel("score within the task")
    top.legend(frameon=False, fontsize=8, ncols=4)
    for i, (name, values) in enumerate(looks.items()):
        axes = figure.add_subplot(grid[1, i])
        axes.plot(tasks, values, color="#c0392b", linewidth=1.5)
        for trial, colour in zip(diagnosis.trials, COLOURS):
            if name in trial.course.looks:
                axes.plot(tasks, trial.course.looks[name], color=colour, linewidth=0.9)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("task", fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path
