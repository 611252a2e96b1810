"""Which folder may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "driftline"
ROOMS = ("scenarios", "learners", "adapters", "metrics")
LOOP = tuple(f"driftline.stream.{name}" for name in ("play", "run", "recording", "record"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it (for type checking only left aside)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.startswith("driftline")}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_the_streams_types_but_neither_the_loop_nor_each_other(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            others = tuple(f"driftline.{other}" for other in ROOMS if other != room)
            assert not name.startswith(others), f"{path.name} imports {name}"
            assert not name.startswith(LOOP), f"{path.name} imports {name}"
            assert name not in ("driftline.cli", "driftline.plan", "driftline.build"), f"{path.name} imports {name}"


def test_nothing_imports_what_joins_us_to_other_libraries_but_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        if "interop" not in path.relative_to(PACKAGE).parts and "commands" not in path.parts:
            assert not any(name.startswith("driftline.interop") for name in imports(path)), path
    for name in ("__init__", "rows", "randomness", "pytorch", "torch_metrics"):
        tree = ast.parse((PACKAGE / "interop" / f"{name}.py").read_text())
        brought = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        brought |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        assert not any(name.startswith(("avalanche", "torchmetrics", "lightning")) for name in brought)


def test_only_the_command_line_imports_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("__main__.py", "cli.py") and path.parent.name != "commands":
            assert not any(name.startswith(("driftline.cli", "driftline.commands")) for name in imports(path)), path
