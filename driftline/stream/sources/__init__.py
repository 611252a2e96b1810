"""Live sources that know their place, so that a run can be killed and resumed: for :func:`driftline.from_iterable`."""

from driftline.stream.sources.base import RecordSource
from driftline.stream.sources.columns import Columns
from driftline.stream.sources.folder import ImageFolderSource
from driftline.stream.sources.kafka import KafkaSource
from driftline.stream.sources.lines import JSONLinesSource
from driftline.stream.sources.tables import CSVSource, ParquetSource

__all__ = [
    "CSVSource",
    "Columns",
    "ImageFolderSource",
    "JSONLinesSource",
    "KafkaSource",
    "ParquetSource",
    "RecordSource",
]
