"""A live source on the command line: lines of JSON through a pipe, bad ones counted; the record says what was read."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = """
driftline run jsonl:- --set features=height,width --set label=kind --set classes=short,tall --set bad=skip
 --learner slda --out OUT
"""


def readings() -> str:
    """What a sensor says; in a shell, ``sensor | driftline run jsonl:- ...``."""
    lines = []
    for i in range(300):
        row = {"height": i % 2 + 0.1 * (i % 5), "width": 1.0 + 0.1 * (i % 3), "kind": ("short", "tall")[i % 2]}
        lines.append(json.dumps(row))
    return "\n".join([*lines, "not JSON"])


def main() -> None:
    out = Path(tempfile.mkdtemp()) / "run"
    words = COMMAND.replace("OUT", str(out)).split()
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, input=readings(), capture_output=True, text=True, check=True)
    print(done.stdout)
    print("source:", json.loads((out / "record.json").read_text())["source"])


if __name__ == "__main__":
    main()
