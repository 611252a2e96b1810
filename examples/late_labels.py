"""Samples and labels as JSON lines: labels come later, by id, or never; a bad line is counted."""

import io
import json

import driftline
from driftline.learners import NearestClassMean
from driftline.stream.sources import Columns, JSONLinesSource

lines = []
for i in range(200):
    lines.append({"id": i, "height": i % 2 + 0.1 * (i % 5), "width": 1.0})
    if i >= 10 and i % 4:
        lines.append({"id": i - 10, "kind": ("short", "tall")[i % 2]})
text = "".join(json.dumps(line) + "\n" for line in lines) + "not JSON\n"

columns = Columns(["height", "width"], label="kind", classes=["short", "tall"], id="id")
source = JSONLinesSource(io.BytesIO(text.encode()), columns, bad="skip")  # "-" reads standard input
stream = driftline.from_iterable(source, classes=columns.classes, expire_after=50)
report = driftline.run(stream, NearestClassMean(classes=2))
print("accuracy", report.results["online_accuracy"])
print("labels", report.record["source"]["labels"])
print("skipped", report.record["source"]["skipped"])
