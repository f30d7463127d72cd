"""A checkpoint in one file, to move a kernel to another machine: its snapshot, its record, and its attachments.

The file is a tar archive. As with `torpor import`, its author could have put any code into the snapshot. Nothing else
in it is trusted: members are found by their names, sizes are bounded, and no path in it is used.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from torpor.errors import ImageDamaged, NotFound, Reason, Refused, StoreError
from torpor.store import SnapshotInfo, Store, sync_directory
from torpor_jupyter.data.records import KERNEL_ID, MAX_RECORD, CheckpointRecord, parse

SUFFIX = ".torpor"
RECORD, NOTEBOOK, VARIABLES, SNAPSHOT = "checkpoint.json", "notebook.ipynb", "variables.json", "snapshot"
"""The members of the archive. The snapshot is a file of `torpor export`."""
MAX_TEXT = 256 << 20
"""Bytes of a notebook or a list of variables."""
COPIED = 1 << 20
"""Bytes that are copied at once."""


@dataclass(frozen=True)
class Carried:
    """The content of a file besides the snapshot."""

    record: CheckpointRecord
    notebook: str
    variables: str


def export(store: Store, info: SnapshotInfo, carried: Carried, path: Path) -> None:
    """Write a checkpoint to a new file, completely or not at all.

    Raises:
        Refused: there is something with that name.
        StoreError: the file cannot be written, or the store cannot be read.
        ImageDamaged: a block is not what was written.
    """
    if os.path.lexists(path):
        raise Refused(
            "the checkpoint was not exported", [Reason(str(path), "it exists", "give another name, or remove it")]
        )
    texts = {
        RECORD: json.dumps(asdict(carried.record)), NOTEBOOK: carried.notebook, VARIABLES: carried.variables,
    }  # fmt: skip
    with _draft_beside(path) as snapshot:
        store.export_file(info, snapshot)
        try:
            whole = snapshot.with_name("whole")
            with whole.open("xb") as file, tarfile.open(fileobj=file, mode="w") as archive:
                os.fchmod(file.fileno(), 0o600)
                for name, text in texts.items():
                    if text:
                        member = tarfile.TarInfo(name)
                        member.size = len(content := text.encode())
                        archive.addfile(member, BytesIO(content))
                member = tarfile.TarInfo(SNAPSHOT)
                member.size = snapshot.stat().st_size
                with snapshot.open("rb") as content_file:
                    archive.addfile(member, content_file)
            with whole.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(whole, path)
            sync_directory(path.parent)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}", advice="make room") from error


def import_file(store: Store, path: Path, tag: str) -> Carried:
    """Add the snapshot in a file of `export` to the store, under its id, and return the rest.

    Args:
        store: the store.
        path: the file.
        tag: the tag of a snapshot that has the id of its kernel.

    Raises:
        NotFound: there is no such file.
        Refused: the store has the snapshot.
        ImageDamaged: the file is not an exported checkpoint, or is damaged.
        StoreError: the file cannot be read, or the store cannot be written.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            texts = {name: _text(archive, name, path) for name in (RECORD, NOTEBOOK, VARIABLES)}
            try:
                data = json.loads(texts[RECORD])
                record = parse(CheckpointRecord, data["id"], data)
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(path, f"its record cannot be read: {error}") from error
            member = _member(archive, SNAPSHOT)
            if member is None:
                raise _damaged(path, "it holds no snapshot")
            store.create()
            with _draft_beside(Path(store.path) / "import") as snapshot:
                with snapshot.open("xb") as copy:
                    while part := member.read(COPIED):
                        copy.write(part)
                try:
                    info = store.import_file(snapshot)
                except ImageDamaged as error:
                    raise _damaged(path, error.details or error.message) from error
            if (info.id, info.tags.get(tag)) != (record.id, record.kernel_id) or not KERNEL_ID.fullmatch(
                info.tags[tag]
            ):
                store.remove(info.id)
                raise _damaged(path, "its record is another checkpoint's")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except tarfile.TarError as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be imported: {error.strerror}", advice="make room") from error
    return Carried(record, texts[NOTEBOOK], texts[VARIABLES])


@contextmanager
def _draft_beside(path: Path) -> Iterator[Path]:
    """The path of a file beside another, in a private folder that is removed at the end. Raises StoreError."""
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            yield Path(folder) / SNAPSHOT
    except OSError as error:
        raise StoreError(f"{path.parent} cannot be written: {error.strerror}", advice="make room") from error


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes] | None:
    try:
        return archive.extractfile(archive.getmember(name))
    except KeyError:
        return None


def _text(archive: tarfile.TarFile, name: str, path: Path) -> str:
    member = _member(archive, name)
    text = member.read(MAX_TEXT + 1) if member else b""
    if len(text) > (MAX_RECORD if name == RECORD else MAX_TEXT):
        raise _damaged(path, f"{name} is too large")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, f"{name}: {error}") from error


def _damaged(path: Path, why: str) -> ImageDamaged:
    return ImageDamaged(f"{path} is not an exported checkpoint, or it is damaged: {why}", advice="export it again")
