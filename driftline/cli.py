"""The command line: it only calls what Python users call."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

import typer

from driftline.commands import catalogue, edge, runs
from driftline.errors import DriftlineError, SourceError, unknown

COMMANDS: list[tuple[Callable[..., None], str]] = [
    (runs.run_command, "Run a scenario: driftline run si_blurry --data digits --learner er --out runs/er"),
    (runs.resume_command, "Continue an interrupted run from its last checkpoint: driftline resume runs/er"),
    (runs.report_command, "Compare runs in a table and an HTML page: driftline report runs/*"),
    (
        runs.diagnose_command,
        "Say whether a learner loses plasticity, and what helps: driftline diagnose permuted_inputs --data mnist",
    ),
    (catalogue.list_command, "Show the scenarios, live sources, learners, adapters, metrics, models and data."),
    (catalogue.download_command, "Fetch a dataset's files into the data folder (needs the 'vision' extra)."),
    (
        catalogue.corrupt_command,
        "Write a corrupted copy of images: driftline corrupt cifar-10 CIFAR-10-C --corruption fog",
    ),
    (edge.adapt_command, "Run a model on a device: driftline adapt --source - --state DIR --preset statistics"),
    (edge.export_command, "Write the model a loop serves as .pt2 or .onnx: driftline export model.pt2 --state DIR"),
    (edge.merge_command, "Average what devices made of one model: driftline merge next.pt DIR DIR"),
    (edge.status_command, "Show how such a loop is, running or not: driftline status DIR"),
    (edge.rollback_command, "Reject the newest state of a stopped loop: driftline rollback DIR"),
]

app = typer.Typer(
    help="Play data streams to learners, measure online, resume exactly.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command, about in COMMANDS:
    app.command(command.__name__.removesuffix("_command"), help=about)(command)


def main() -> None:
    """Run the command line; a mistake by the user gives one line and exit code 2."""
    # A plain line in place of Python's two-line warning with a source path.
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
    except DriftlineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1 if isinstance(error, SourceError) else 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        # Typer may bring its own copy of click, so its errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)


def _one_line(error: Exception) -> str:
    """Return a usage error of the option parser in one line, with the nearest choice where it is a name."""
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
    wrong = sys.argv[1] if len(sys.argv) > 1 else ""
    if message.startswith("No such command") and "Did you mean" not in message:
        return str(unknown("command", wrong, sorted(c.name or "" for c in app.registered_commands)))
    return message
