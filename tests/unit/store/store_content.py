"""Snapshots of given blocks, and tables of blocks that nobody wrote."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.store import BlockTable, SnapshotInfo, Store

BLOCK = 65536


def save(store: Store, *contents: bytes, kind: str = "tree", **tags: str) -> SnapshotInfo:
    """Write a snapshot of blocks; its body is the list of their indexes."""
    with store.writer(kind, tags) as saver:
        indexes = saver.add_blocks(memoryview(b"".join(contents)), [len(content) for content in contents])
        return saver.publish(bytes(indexes), "a test")


def load(store: Store, text: str = "latest") -> list[bytes]:
    with store.open(text) as reader:
        reader.verify_blocks(reader.body)
        return [reader.read_block(index) for index in reader.body]


def many_blocks() -> BlockTable:
    """More blocks than a small image names."""
    table = BlockTable()
    for row in range(1000):
        table.offsets.append((row + 1) << 16)
        table.lengths.append(1 << 16)
        table.packs.append(0)
    return table


def files_of(store: Store) -> list[str]:
    root = Path(store.path)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def random_blocks(count: int, size: int = BLOCK) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


def flip(path: Path, at: int) -> None:
    """Change a byte of a file."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        was = file.read(1)
        file.seek(at)
        file.write(bytes([was[0] ^ 0xFF]))
    path.chmod(mode & 0o777)
