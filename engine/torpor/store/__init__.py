"""Where snapshots are kept: a directory on any shared file system. docs/format.md has its bytes and rules."""

from .blocks import MAX_BLOCK, BlockTable
from .collect import PruneReport
from .known import KnownBlocks
from .manifest import SnapshotInfo
from .reader import SnapshotReader
from .store import Progress, Store, default_path
from .writer import SnapshotWriter

__all__ = [
    "MAX_BLOCK",
    "BlockTable",
    "KnownBlocks",
    "Progress",
    "PruneReport",
    "SnapshotInfo",
    "SnapshotReader",
    "SnapshotWriter",
    "Store",
    "default_path",
]
