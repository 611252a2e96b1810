"""Named datasets, files and plain tensors -> :class:`driftline.stream.Dataset`."""

from driftline.data.arrays import from_npz, read_idx, tensors
from driftline.data.catalogue import load, names
from driftline.data.fetch import download
from driftline.data.folder import from_folder

__all__ = ["download", "from_folder", "from_npz", "load", "names", "read_idx", "tensors"]
