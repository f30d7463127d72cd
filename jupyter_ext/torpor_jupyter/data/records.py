"""The records of kernels and their checkpoints on disk, which outlive the server.

Two kinds of small JSON files beside the snapshots, in ``<store>/jupyter``, private to the user:

``kernels/<kernel id>.json``
    A kernel that lives, or is parked: how to reach it, which notebook it belongs to, its process or its snapshot.
``checkpoints/<snapshot id>.json``
    What a user has set for a checkpoint (name, note, pinned), and how its kernel could be reached.

They hold the kernel's key, as Jupyter's own connection files do. Each is replaced whole, by a rename.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torpor.errors import NotFound, StoreError
from torpor.processes import start_time
from torpor.store import Busy, claimed, make_directories, write_whole

KERNEL_ID = re.compile(r"[0-9A-Za-z]+(-[0-9A-Za-z]+){4}", re.ASCII)
"""The form of ids in the routes of jupyter_server; Jupyter itself makes UUIDs."""
SNAPSHOT_ID = re.compile(r"[0-9]{8}-[0-9]{9}-[a-z2-7]{6}", re.ASCII)
MAX_RECORD = 1 << 20
"""Bytes: a record that is larger was not written by this module."""

_PATIENCE = 1.0
"""How long a server waits for another one that wakes a kernel, in seconds; longer to see that its host is gone."""

R = TypeVar("R", bound="Record")


TITLES = {
    "": "",
    "parked": "parked",
    "rule": "",
    "stopping": "at server stop",
    "preempted": "before Slurm took the node back",
    "idle": "idle",
    "memory": "memory was short",
    "going-back": "before going back",
}
"""The reasons for which checkpoints are made, with their English titles. The empty reason: a user asked for it."""
MANUAL = ("", "parked")


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same PID."""

    pid: int
    started: int
    """Its start time in clock ticks since boot (proc(5), field 22 of stat)."""
    boot_id: str
    namespace: str = ""
    """The PID namespace in which it has this PID: containers on one host share the boot."""

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this PID now. Raises ProcessLookupError."""
        return cls(pid, start_time(pid), boot_id(), pid_namespace())

    def is_here(self) -> bool:
        """Whether its PID is valid for this process: same boot and same PID namespace."""
        return (self.boot_id, self.namespace) == (boot_id(), pid_namespace())

    def exists(self) -> bool:
        """Whether it still lives on this host."""
        try:
            return self.is_here() and self.started == start_time(self.pid)
        except ProcessLookupError:
            return False


@dataclass
class SessionRecord:
    """A session of the server: which notebook or console uses the kernel."""

    id: str
    path: str
    """Absolute: servers may have different roots."""
    name: str
    type: str


@dataclass
class Record:
    """A JSON file with known fields. If it has an unknown field, another version wrote it: then it is refused."""

    id: str
    FOLDER: ClassVar[str]
    NAME: ClassVar[re.Pattern[str]]


@dataclass
class KernelRecord(Record):
    """A kernel that lives or is parked."""

    FOLDER = "kernels"
    NAME = KERNEL_ID

    kernel_name: str
    connection: dict[str, Any]
    cwd: str
    root_dir: str
    """The server's root when it was written: kernels without a notebook come back to servers with the same one."""
    sessions: list[SessionRecord] = field(default_factory=list)
    server: ProcessId | None = None
    """The server that owns it."""
    process: ProcessId | None = None
    """The kernel's own process, while it lives."""
    snapshot: str = ""
    """The snapshot that it is parked in; empty while it lives."""
    execution_state: str = "idle"
    kernel_info: dict[str, Any] = field(default_factory=dict)
    """Its last kernel_info_reply."""
    parked_ns: int = 0
    """When it was parked, CLOCK_REALTIME."""
    head: str = ""
    """The id of the checkpoint that it was last saved in, or taken back to."""
    written_ns: int = 0
    """When this was written, CLOCK_REALTIME."""
    log: str = ""
    """Of a fork: the id of the kernel whose log may still be open in processes that were started before the fork."""

    @property
    def parked(self) -> bool:
        """Whether it is in its snapshot, and not alive."""
        return bool(self.snapshot)


@dataclass
class CheckpointRecord(Record):
    """The record of a checkpoint, besides the snapshot itself."""

    FOLDER = "checkpoints"
    NAME = SNAPSHOT_ID

    kernel_id: str
    kernel_name: str
    connection: dict[str, Any]
    cwd: str
    name: str = ""
    note: str = ""
    pinned: bool = False
    automatic: bool = False
    """Whether a policy made it, and not a user: the oldest of these are deleted first."""
    reason: str = ""
    """Why it was made: a key of TITLES. The panel shows it in the user's language until the user names the checkpoint.
    """
    about: str = ""
    """If the reason is "going-back": the id of the checkpoint that the kernel went back to."""
    parent: str = ""
    """The id of the kernel's checkpoint before this one; empty if there is none."""
    notebook: str = ""
    """Absolute path of its notebook."""
    cell: str = ""
    """The first line of the cell that ran last."""
    execution_count: int = 0
    execution_state: str = "idle"
    outstanding: list[str] = field(default_factory=list)
    """The ids of the requests that the kernel had not answered yet."""
    kernel_info: dict[str, Any] = field(default_factory=dict)
    has_notebook: bool = False
    """Whether its notebook is kept with it."""
    log: str = ""
    """As `KernelRecord.log`."""


_NESTED: dict[str, type] = {"server": ProcessId, "process": ProcessId}


_durable: set[tuple[Path, int, int]] = set()
"""Folders that this process has made durable with all above them: path, device and inode of each."""


def write_private(path: Path, text: str) -> None:
    """Write a file that only the user can read, or replace it atomically; make its folder if needed. Raises OSError."""
    folder = path.parent
    try:
        known = _identity(folder) in _durable
    except FileNotFoundError:
        known = False
    if not known:  # it syncs every folder above, which takes long on a network file system
        make_directories(str(folder))
        _durable.add(_identity(folder))
    write_whole(path, text)


def _identity(folder: Path) -> tuple[Path, int, int]:
    status = folder.stat()
    return folder, status.st_dev, status.st_ino


class Records:
    """The folder of records. It is made when the first one is written."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is read yet."""
        self.folder = Path(folder)

    def write(self, record: Record) -> None:
        """Write a record, or replace it. Raises StoreError."""
        path = self._path(type(record), record.id)
        try:
            write_private(path, json.dumps(asdict(record)))
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror}", advice="make room, or make the folder writable"
            ) from error

    def read(self, kind: type[R], id: str) -> R:
        """Read one record. Raises NotFound, and StoreError when it cannot be understood."""
        path = self._path(kind, id)
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_RECORD + 1)
        except FileNotFoundError:
            raise NotFound(f"{kind.FOLDER} has no {id}") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        try:
            if len(text) > MAX_RECORD:
                raise ValueError("it is too large")
            return parse(kind, id, json.loads(text))
        except (ValueError, TypeError) as error:
            # It may hold the key of a kernel that is parked.
            advice = "use the version of Torpor that wrote it" if isinstance(error, _Newer) else "remove it"
            raise StoreError(f"{path} is not a record of this version: {error}", advice=advice) from error

    def all(self, kind: type[R]) -> Iterator[R | StoreError]:
        """All records of a kind, by id (oldest snapshot first). For an unreadable record its error is yielded."""
        try:
            names = sorted(os.listdir(self.folder / kind.FOLDER))
        except FileNotFoundError:
            return
        except OSError as error:
            yield StoreError(
                f"cannot read {self.folder / kind.FOLDER}: {error.strerror}", advice="make the folder readable"
            )
            return
        for name in names:
            id = name.removesuffix(".json")
            if id != name and kind.NAME.fullmatch(id):
                try:
                    yield self.read(kind, id)
                except NotFound:
                    continue  # removed meanwhile
                except StoreError as error:
                    yield error

    def remove(self, kind: type[Record], id: str) -> bool:
        """Remove a record. Return whether it existed."""
        try:
            self._path(kind, id).unlink()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def claimed(self, id: str) -> Iterator[KernelRecord]:
        """Lock a parked kernel, so that no other server wakes it meanwhile. If this server dies, so does the lock.

        Raises:
            NotFound: it is not parked any more, or another server is waking it.
            StoreError: its record cannot be read.
        """
        self.read(KernelRecord, id)
        with ExitStack() as stack:
            try:
                stack.enter_context(claimed(self.folder / "claims", id, _PATIENCE))
            except Busy as busy:
                who = f" ({busy.holders[0]})" if busy.holders[0] else ""
                raise NotFound(f"kernel {id} is being woken by another server{who}") from None
            except OSError as error:
                raise StoreError(
                    f"cannot lock kernel {id} in {self.folder / 'claims'}: {error.strerror}", advice="make room"
                ) from error
            record = self.read(KernelRecord, id)
            if not record.parked:
                raise NotFound(f"kernel {id} is not parked any more: another server woke it")
            yield record

    def _path(self, kind: type[Record], id: str) -> Path:
        if not kind.NAME.fullmatch(id) or len(id) > 128:
            raise NotFound(f"{id!r} is not a valid id")
        return self.folder / kind.FOLDER / f"{id}.json"


class _Newer(ValueError):
    """A record has a field that this version does not know."""


def parse(kind: type[R], id: str, data: object) -> R:
    """A record of what its JSON says. Raises ValueError, TypeError."""
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    known = {f.name for f in fields(kind)}
    unknown = sorted(data.keys() - known)
    if unknown:
        raise _Newer(f"it has an unknown field {unknown[0]!r}")
    if data.get("id") != id:
        raise ValueError("it has another id")
    for name, value in data.items():
        if name in _NESTED and value is not None:
            data[name] = _NESTED[name](**value)
        elif name == "sessions":
            data[name] = [SessionRecord(**session) for session in value]
    return kind(**data)


def boot_id() -> str:
    """The id of this host's boot: PIDs of another boot are not valid."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> str:
    """This process's PID namespace."""
    return os.readlink("/proc/self/ns/pid")
