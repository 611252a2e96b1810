"""Comparison of recorded runs: a table for the terminal, and one HTML page with the curves."""

from driftline.report.html import write_html
from driftline.report.runs import Run
from driftline.report.table import definitions, summary_table

__all__ = ["Run", "definitions", "summary_table", "write_html"]
