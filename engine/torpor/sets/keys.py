"""The key by which the parts of a set know each other: in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from torpor.errors import NotPermitted, failing
from torpor.util.whole_files import write_whole

KEY = 32
"""Bytes of a key."""


def write_key(path: str | os.PathLike[str]) -> None:
    """Make a key of random bytes in a file that only its owner can read, for all parts to read.

    Raises:
        NotPermitted: it cannot be written.
    """
    with failing(NotPermitted, "the key cannot be written"):
        write_whole(Path(path), secrets.token_bytes(KEY))


def read_key(path: str | os.PathLike[str]) -> bytes:
    """Read a key.

    Raises:
        NotPermitted: it is no key, or others than this user could know it.
    """
    name = os.fspath(path)
    with failing(NotPermitted, "the key cannot be read"):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            key = os.read(fd, KEY + 1)
        finally:
            os.close(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise NotPermitted(f"the key {name} is another user's, or others may read it", advice="make one with write_key")
    if len(key) != KEY:
        raise NotPermitted(f"{name} is no key: it has not {KEY} bytes", advice="make one with write_key")
    return key
