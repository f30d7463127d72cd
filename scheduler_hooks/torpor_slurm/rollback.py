"""Truncate output files to their length at the snapshot that is woken, so that no line comes twice.

If the application begins anew although an earlier run had started it, they are truncated to their length at that start.
Then only the files of standard output and standard error are known.

Only files to which the job appended are truncated: opened with O_APPEND, or with the position at the end. Their end is
copied before. A file that has been replaced, or is shorter now, is left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from torpor.errors import RestoreFailed
from torpor.image import Tree
from torpor.store import sync_directory

_FDS = (1, 2)
"""The descriptors of this process that Slurm has opened for the job's output."""


@dataclass(frozen=True)
class Tail:
    """What was appended to a file after a snapshot."""

    path: str
    begin: int
    """Bytes: the file's length at the snapshot."""
    end: int


def tails(image: Tree) -> Iterator[Tail]:
    """What was appended to the output files of an image since it was taken."""
    lengths: dict[str, int] = {}
    for description in image.descriptions:
        file = description.file
        writes = description.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR) and not description.flags & os.O_PATH
        if description.WhichOneof("kind") != "file" or not writes:
            continue
        path = os.fsdecode(file.path)
        at_end = description.flags & os.O_APPEND or file.position == file.size
        try:
            now = os.stat(path, follow_symlinks=False)
        except OSError:
            continue  # the restore itself decides about a file that is gone
        # Device numbers of a shared file system differ between hosts; inode numbers do not.
        if at_end and stat.S_ISREG(now.st_mode) and now.st_ino == file.ino and now.st_size > file.size:
            lengths[path] = max(lengths.get(path, 0), file.size)
    for path, length in lengths.items():
        yield Tail(path, length, os.stat(path).st_size)


def outputs() -> dict[str, list[int]]:
    """The files to which this process's standard output and error are appended: inode number and length, by path.

    Slurm opens a job's output in this way with --open-mode=append, which keeps the output of earlier runs.
    """
    found = {}
    for fd in _FDS:
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
                found[os.readlink(f"/proc/self/fd/{fd}")] = [status.st_ino, status.st_size]
        except OSError:
            continue  # it is closed
    return found


def own_outputs(names: frozenset[str]) -> dict[str, list[int]]:
    """The files of `outputs` that only this job writes (its id is in their names), with the length 0 of new files."""
    own = {}
    for path, (ino, _) in outputs().items():
        name = Path(path).name
        if names & {*re.findall(r"\d+_\d+", name), *re.findall(r"\d+", name)}:
            own[path] = [ino, 0]
    return own


def grown(before: Mapping[str, Sequence[int]]) -> Iterator[Tail]:
    """What was appended to the output files of this process since `outputs` was called.

    Args:
        before: what `outputs` returned.
    """
    for path, (ino, now) in outputs().items():
        was = before.get(path)
        if was is not None and was[0] == ino and now > was[1]:
            yield Tail(path, was[1], now)


def cut(tail: Tail, into: Path, prefix: str) -> Path:
    """Copy the end of a file into a directory, and truncate the file.

    Args:
        tail: the file, and the part to cut off.
        into: a directory for the copy.
        prefix: the beginning of the copy's name.

    Returns:
        The copy.

    Raises:
        RestoreFailed: it could not be copied or cut; the file is as it was.
    """
    name = f"{prefix}-{Path(tail.path).name}.from-{tail.begin}"
    try:
        taken = set(os.listdir(into))  # files in two directories may have one name
        copy = into / next(one for one in chain([name], (f"{name}.{n}" for n in count(2))) if one not in taken)
        with open(tail.path, "r+b") as file, open(copy, "xb") as aside:
            file.seek(tail.begin)
            shutil.copyfileobj(file, aside)
            aside.flush()
            os.fsync(aside.fileno())
            sync_directory(into)
            file.truncate(tail.begin)
    except OSError as error:
        raise RestoreFailed(
            f"{tail.path} cannot be truncated to its {tail.begin} bytes at the snapshot: {error.strerror}",
            advice="--rollback-files=none leaves output files as they are",
        ) from error
    return copy
