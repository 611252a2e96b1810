"""Named datasets, files and plain tensors -> :class:`driftline.stream.Dataset`."""

from driftline.data.arrays import from_npz, read_idx, tensors
from driftline.data.catalogue import load, names
from driftline.data.delimited import from_csv
from driftline.data.fetch import download
from driftline.data.folder import from_folder
from driftline.data.scaling import scale

__all__ = ["download", "from_csv", "from_folder", "from_npz", "load", "names", "read_idx", "scale", "tensors"]
