"""Files that are whole at any moment: readers see the old content or the new one, also after a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def drafted(path: str | os.PathLike[str], mode: int = 0o600) -> Iterator[int]:
    """Yield a descriptor of a draft, which becomes the file at the end of the block; both are synced to disk.

    `mode` is subject to the umask. After an error the path has the old file, or the new one if only the directory could
    not be synced; no draft is left behind.

    Raises:
        OSError: it cannot be made, synced or renamed.
    """
    # The name is random: a PID is that of another process on another node or in another PID namespace.
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.{os.urandom(8).hex()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    sync_directory(folder or ".")


def write_whole(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Create or replace a file atomically: see `drafted`.

    Raises:
        OSError: it cannot be written, synced or renamed.
    """
    with drafted(path, mode) as fd, open(fd, "wb", closefd=False) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Sync a directory to disk: its new, renamed and removed entries. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
