"""What importing the package brings in."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "river",
    "sklearn",
    "scipy",
    "rich",
    "typer",
    "plotly",
    "torchvision",
    "avalanche",
    "torchmetrics",
    "pandas",
    "PIL",
    "gymnasium",
    "confluent_kafka",
    "pyarrow",
    "mlflow",
    "wandb",
    "tensorboard",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


def test_importing_driftline_imports_no_heavy_library():
    code = f"import sys, driftline; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there_and_say_what_they_are():
    import driftline

    for name in driftline.__all__:
        assert getattr(driftline, name).__doc__, name
