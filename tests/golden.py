"""Recorded cases of the reference implementations and real data, which lie beside the checkout.

Tests that need them skip with a clear reason where they are absent (a user's clone).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def data_root() -> Path:
    """Folder of the real data files, or skip."""
    root = Path(os.environ.get("DRIFTLINE_DATA", SHARED / "data"))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}; set DRIFTLINE_DATA to a folder that holds MNIST/raw, ...")
    return root


def golden_names(folder: str, pattern: str) -> list[str]:
    """Names of the recorded cases in a folder (a single placeholder where the folder is absent)."""
    names = sorted(p.stem for p in (SHARED / "golden" / folder).glob(f"{pattern}.npz"))
    return names or [f"absent:{pattern}"]


def golden(folder: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Arrays and configuration of one recorded case, or skip."""
    path = SHARED / "golden" / folder / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"recorded case {folder}/{name} is not beside this checkout")
    with np.load(path) as case:
        arrays = {key: case[key] for key in case.files if key != "config"}
        return arrays, json.loads(str(case["config"]))
