"""What a folder of state says of its loop, running or not."""

from __future__ import annotations

import json
import time
from pathlib import Path

from driftline.errors import CheckpointError
from driftline.stream.edge.events import read_events
from driftline.stream.edge.state import files, number_of, owner_of

LAST = 10
"""Events shown."""


def status(folder: str | Path) -> dict[str, object]:
    """Return what is known of a loop from its folder, without disturbing it (JSON values).

    Returns
    -------
    dict
        ``running`` (the owner, or None), ``generations`` (number, bytes, age in seconds of each), ``health`` (the last
        line of it) and ``events`` (the last ones that are no health).

    Raises
    ------
    CheckpointError
        When the folder is none of a loop.
    """
    folder = Path(folder)
    log = folder / "events.jsonl"
    kept = files(folder)
    if not kept and not log.exists():
        raise CheckpointError(f"{folder} holds neither a state nor a log")
    health: dict[str, object] | None = None
    events: list[dict[str, object]] = []
    for event in read_events(log):
        if event.get("event") in ("health", "stopped"):
            health = event
        if event.get("event") != "health":
            events = [*events, event][-LAST:]
    now = time.time()
    generations = [
        {"number": number_of(f), "bytes": f.stat().st_size, "age": round(now - f.stat().st_mtime, 1)} for f in kept
    ]
    return {"running": owner_of(folder), "generations": generations, "health": health, "events": events}


def show(found: dict[str, object]) -> str:
    """Return a status as text, one fact a line."""
    lines = [f"running: {found['running'] or 'no'}"]
    for generation in found["generations"]:  # type: ignore[attr-defined]
        lines.append("generation {number}: {bytes} bytes, written {age} s ago".format(**generation))
    if isinstance(health := found["health"], dict):
        # Zeros say nothing that is worth a line.
        lines += [f"{name}: {value}" for name, value in health.items() if value and name not in ("time", "event")]
    lines += [json.dumps(event) for event in found["events"]]  # type: ignore[attr-defined]
    return "\n".join(lines)
