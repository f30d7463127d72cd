"""Storage of snapshots: a directory on any shared file system. docs/format.md specifies its bytes and rules."""

from torpor.store.blocks import MAX_BLOCK, BlockTable
from torpor.store.collect import PruneReport
from torpor.store.files import as_store_errors, make_directories
from torpor.store.known import KnownBlocks
from torpor.store.manifest import SnapshotInfo
from torpor.store.reader import SnapshotReader
from torpor.store.store import NAME, Progress, Store, default_path
from torpor.store.writer import SnapshotWriter
from torpor.util.lock_files import Busy, claimed
from torpor.util.sizes import readable
from torpor.util.whole_files import sync_directory, write_whole

__all__ = [
    "MAX_BLOCK",
    "NAME",
    "BlockTable",
    "Busy",
    "KnownBlocks",
    "Progress",
    "PruneReport",
    "SnapshotInfo",
    "SnapshotReader",
    "SnapshotWriter",
    "Store",
    "as_store_errors",
    "claimed",
    "default_path",
    "make_directories",
    "readable",
    "sync_directory",
    "write_whole",
]
