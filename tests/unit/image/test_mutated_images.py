"""Each field of each message of an image set to what nobody wrote: told in words, at once, by all that reads images.

The image is of a real tree that has one of nearly everything. A mutation is (where the message is, field, what is
done to it); a sample of them runs always, the same in every run, and all of them under the mark `soak`.
"""

from __future__ import annotations

import random
import resource
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

import torpor
from tests.leaks import no_more_descriptors
from tests.unit.store.store_content import many_blocks
from torpor.cli import show
from torpor.cli.describe import describe
from torpor.errors import ImageDamaged, RestoreRefused, TorporError
from torpor.image import counting, reading
from torpor.image import image_pb2 as pb
from torpor.objects.memory import mapped_files
from torpor.probe import probe
from torpor.restorer import surroundings
from torpor.restorer.plan import RestorerFds, make
from torpor.restorer.validation import validate
from torpor.store import SnapshotInfo

PROGRAM = r"""
import ctypes, fcntl, mmap, os, select, signal, socket, threading
from torpor.remote.sys import syscall
from torpor.arch.x86_64 import NR
libc = ctypes.CDLL(None)
shared = mmap.mmap(-1, 8192); shared[0] = 1
private = mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); private[0] = 1
with open("mapped", "wb+") as file:
    file.truncate(4096); of_file = mmap.mmap(file.fileno(), 4096)
held = open("held", "w+"); fcntl.flock(held, fcntl.LOCK_EX); held.write("x"); held.flush()
region = open("region", "w+"); fcntl.lockf(region, fcntl.LOCK_EX, 1, 1)
leased = open("region2", "w"); leased.close(); leased = open("region2"); fcntl.fcntl(leased, fcntl.F_SETLEASE, 0)
gone = open("gone", "w+"); gone.write("x" * 5000); gone.flush(); os.unlink("gone")
directory = os.open(".", os.O_RDONLY); name = os.open("/etc/passwd", os.O_PATH)
zero = os.open("/dev/zero", os.O_RDONLY)
r, w = os.pipe(); os.write(w, b"x")
p, q = os.pipe2(os.O_DIRECT); os.write(q, b"x"); os.write(q, b"yz")
os.mkfifo("fifo"); fifo = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
n = syscall(NR.eventfd2, 3, 0)
e = select.epoll(); e.register(r); e.register(n)
a, b = socket.socketpair(); a.send(b"x"); socket.send_fds(a, [b"y"], [r])
l = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(l.getsockname()); s, _ = l.accept()
c.send(b"x")
p = socket.create_connection(l.getsockname())
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); u.connect(u.getsockname()); u.send(b"x")
v = socket.socket(socket.AF_UNIX); v.bind("named"); v.listen(); pending = socket.socket(socket.AF_UNIX)
pending.connect("named")
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind(b"\0torpor-%d" % os.getpid())
d.sendto(b"x", d.getsockname())
t = syscall(NR.timerfd_create, 1, 0)
setting = (ctypes.c_long * 4)(5, 0, 1000, 0); libc.timerfd_settime(t, 0, setting, None)
mask = ctypes.create_string_buffer(b"\1" + bytes(7), 8)
syscall(NR.signalfd4, -1 & (1 << 32) - 1, ctypes.addressof(mask), 8, 0)
i = libc.inotify_init(); libc.inotify_add_watch(i, b".", 0x400)
memory = os.memfd_create("memory"); os.write(memory, b"x"); of_memory = mmap.mmap(memory, 1)
master, slave = os.openpty()
signal.setitimer(signal.ITIMER_REAL, 10000); signal.signal(signal.SIGALRM, lambda *_: None)
event = ctypes.create_string_buffer(64); ctypes.c_int.from_buffer(event, 8).value = 10
timer = ctypes.c_int(); syscall(NR.timer_create, 1, ctypes.addressof(event), ctypes.addressof(timer))
fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid())
signal.signal(signal.SIGUSR1, lambda *_: None); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
never = threading.Event(); threading.Thread(target=never.wait).start()
segment = libc.shmget(0, 4096, 0o1600); libc.shmat.restype = ctypes.c_void_p; libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None); semaphores = libc.semget(0, 2, 0o1600); queue = libc.msgget(0, 0o1600)
libc.semop(semaphores, (ctypes.c_short * 3)(0, 1, 0x1000), 1)
libc.msgsnd(queue, ctypes.create_string_buffer(b"\1" + bytes(7) + b"x", 16), 1, 0)
if not os.fork():
    os._exit(3)
if not os.fork():
    os.setsid()
    if not os.fork():
        while True: signal.pause()
    os.close(held.fileno())
    while True: signal.pause()
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
open("ready", "w").close()
while True: signal.pause()
"""

NUMBERS = {
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_ENUM: (*range(8), 99),
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, (1 << 31) - 2, (1 << 31) - 1, -(1 << 31)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2, 3, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 1 << 31, (1 << 63) - 2, (1 << 63) - 1, -(1 << 63)),
    FieldDescriptor.CPPTYPE_UINT64: (
        0, 1, 4096, 1 << 31, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 2, (1 << 64) - 1,
    ),
}  # fmt: skip
BYTES = (b"", b"\0", b"/", b"/proc/self/mem", b"/etc/passwd/x", b"/dev", b"\xff\xfe", b"x" * 5000, b"/" + b"x" * 5000,
         b"\2\0" + bytes(14), b"\x01" * 28, bytes(1 << 20))  # fmt: skip
TEXTS = ("", "\0", "/", "\x1b[31m", "x" * 5000)
PATIENCE = 20
"""Seconds of processor time for one image: what takes longer takes for ever."""
MEMORY = 1 << 30
"""Bytes that reading one may take."""
SAMPLE = 150


Act: TypeAlias = Callable[[Any, str], object]
"""What changes a field of a message: told the message and the field's name."""


class Place(NamedTuple):
    """Where a message of an image is."""

    steps: tuple[tuple[str, int | None], ...]
    """Each a field's name, and the index in it if it has many."""

    def of(self, message: Any) -> Any:
        """The message."""
        for name, index in self.steps:
            value = getattr(message, name)
            message = value if index is None else value[index]
        return message


class Mutation(NamedTuple):
    """What is done to one field."""

    place: Place
    field: str
    words: str
    act: Act


def places(message: Message, steps: tuple[tuple[str, int | None], ...] = ()) -> Iterator[Place]:
    """A message and those within it; of many beside each other the first two, the last, and the first of each kind."""
    yield Place(steps)
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if field.is_repeated:
            kinds = {_kind(one): index for index, one in reversed(list(enumerate(value)))}
            for index in sorted({0, min(1, len(value) - 1), len(value) - 1, *kinds.values()}):
                yield from places(value[index], (*steps, (field.name, index)))
        else:
            yield from places(value, (*steps, (field.name, None)))


def _kind(message: Message) -> object:
    """What messages beside each other may differ in: which fields there are, and the kind of a mapping."""
    fields = frozenset(
        (field.name, _kind(value) if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated else None)
        for field, value in message.ListFields()
    )
    return getattr(message, "kind", None), fields


def _values(field: FieldDescriptor) -> tuple[Any, ...]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return NUMBERS.get(field.cpp_type, ())


def mutations(image: pb.Tree) -> Iterator[Mutation]:
    """All of them."""
    for place in places(image):
        for field in place.of(image).DESCRIPTOR.fields:
            for words, act in _acts(field):
                yield Mutation(place, field.name, words, act)


def _acts(field: FieldDescriptor) -> Iterator[tuple[str, Act]]:
    yield "removed", lambda message, name: message.ClearField(name)
    for value in _values(field):
        shown = repr(value) if len(repr(value)) < 30 else f"{len(value)} bytes"
        if field.is_repeated:
            yield f"more by {shown}", partial(_append, value)
            yield f"first {shown}", partial(_set_first, value)
        else:
            yield f"= {shown}", partial(_set, value)
    if field.is_repeated:
        yield "shorter by the last", _shorten
        yield "first and last swapped", _swap
        yield "doubled", lambda message, name: getattr(message, name).extend(list(getattr(message, name)))
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield "an empty one more", lambda message, name: getattr(message, name).add()
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        yield "there and empty", lambda message, name: getattr(message, name).CopyFrom(type(getattr(message, name))())


def _set(value: object, message: Any, name: str) -> None:
    setattr(message, name, value)


def _append(value: object, message: Any, name: str) -> None:
    getattr(message, name).append(value)


def _set_first(value: object, message: Any, name: str) -> None:
    getattr(message, name)[0] = value


def _shorten(message: Any, name: str) -> None:
    del getattr(message, name)[-1]


def _swap(message: Any, name: str) -> None:
    values = getattr(message, name)
    first, last = values[0], values[-1]
    if isinstance(first, Message):
        kept = type(first)()
        kept.CopyFrom(first)
        first.CopyFrom(last)
        last.CopyFrom(kept)
    else:
        values[0], values[-1] = last, first


@contextmanager
def rich(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A tree that has one of nearly everything."""
    nothing = subprocess.DEVNULL
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command,
        stdin=nothing,
        stdout=nothing,
        stderr=(directory / "errors").open("w"),
        start_new_session=True,
        cwd=directory,
    ) as process:
        try:
            while not (directory / "ready").exists():
                assert process.poll() is None, (directory / "errors").read_text()
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The image of the rich tree."""
    directory = tmp_path_factory.mktemp("rich")
    store = torpor.Store(directory / "store")
    with rich(directory) as process, store.open(torpor.checkpoint(process.pid, store=store, then="kill")) as reader:
        return bytes(reader.body)


class Opened(NamedTuple):
    """As much of an open snapshot as reading an image asks of it."""

    body: bytes
    info: SnapshotInfo = SnapshotInfo("20261123-000000000-aaaaaa", "", "tree")


def read_and_plan(body: bytes) -> None:
    """All that is done with an image before anything is started."""
    image = reading.read(Opened(body))  # type: ignore[arg-type]
    validate(image, "20261123-000000000-aaaaaa", probe(), (0, 1, 2))
    for way in ("best", "capsule"):
        setting = surroundings.setting(image, way=way)
        assert max(abs(setting.monotonic_ns), abs(setting.boottime_ns)) < 1 << 63  # what torpor-init is told
        here = surroundings.here(setting)
        make(image, here, RestorerFds.imagined(image, many_blocks())).explain()


def shown(body: bytes) -> None:
    """`torpor show`."""
    info = {"id": "", "created_ns": 0, "host": "", "size": 0, "written": 0, "tags": {}, "notices": [], "kind": "tree"}
    told = info | describe(reading.read(Opened(body)))  # type: ignore[arg-type]
    show._print(told)


@contextmanager
def bounded() -> Iterator[None]:
    """No minutes, and no gigabytes."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it takes more than {PATIENCE} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, before)


def fault_of(body: bytes) -> str:
    """What reading an image ends in, if that is not as it should be."""
    try:
        with no_more_descriptors():
            return fault_of_reading(body)
    except AssertionError as left:
        return str(left)


def fault_of_reading(body: bytes) -> str:
    """The same, but for what stays open."""
    for act in (read_and_plan, shown):
        try:
            with bounded():
                act(body)
        except TorporError as told:
            if not str(told).strip() or "\n" in str(told):
                return f"{act.__name__}: {type(told).__name__} says nothing on one line: {told}"
        except Exception as error:
            *_, at = (frame for frame in traceback.extract_tb(error.__traceback__) if "torpor" in frame.filename
                      or "engine" in frame.filename)  # fmt: skip
            return f"{act.__name__}: {type(error).__name__}: {error} ({at.filename}:{at.lineno}: {at.line})"
    return ""


def faults(body: bytes, chosen: list[Mutation]) -> Iterator[str]:
    """Of each mutation that ends otherwise than it should."""
    for mutation in chosen:
        image = pb.Tree.FromString(body)
        try:
            mutation.act(mutation.place.of(image), mutation.field)
        except (IndexError, ValueError):
            continue  # nothing is there to be changed
        if fault := fault_of(image.SerializeToString()):
            steps = [name if index is None else f"{name}[{index}]" for name, index in mutation.place.steps]
            where = ".".join((*steps, mutation.field))
            yield f"{where} {mutation.words}: {fault}"


RARE = {"Bundle", "Filter", "Place", "KeptConnection", "Keyring", "Netlink", "SecretKey", "Membership", "Mount",
        "Outside", "PosixQueue", "ProcFile", "NameOnly", "Speculation", "Session", "PageRuns",
        "Pidfd"}  # fmt: skip
"""Kinds of messages that the image need not have."""


def test_the_image_has_one_of_nearly_everything(body: bytes) -> None:
    """A sound image is planned; and a kind of message that it has not, no mutation reaches."""
    read_and_plan(body)
    shown(body)
    image = pb.Tree.FromString(body)
    there = {place.of(image).DESCRIPTOR.name for place in places(image)}
    assert set(pb.DESCRIPTOR.message_types_by_name) - there <= RARE


def _zombie(image: pb.Tree) -> pb.Process:
    return next(process for process in image.processes if process.zombie)


def _session(image: pb.Tree, **fields: int) -> None:
    image.ptys.add()
    image.sessions.add(**({"sid": image.processes[0].sid, "terminal": len(image.ptys) - 1} | fields))


def _no_vdso_with_holes(image: pb.Tree) -> None:
    memory = image.processes[0].memory
    memory.vdso = 0
    memory.vdso_holes.starts.append(1)


def _of_kernel(image: pb.Tree) -> None:
    file = next(file for file in image.files if file.build_id)
    file.path = b"/proc/self/mem"


KNOWN: dict[str, Callable[[pb.Tree], Any]] = {
    "a keyring": lambda image: setattr(image.processes[0], "session_keyring", len(image.keyrings) + 1),
    "a key": lambda image: image.keyrings.add(name=b"mine").keys.add(type=b"logon", description=b"x"),
    "a timer's id": lambda image: setattr(image.processes[0].posix_timers[0], "id", -1),
    "an interval timer": lambda image: setattr(image.processes[0].interval_timers[0], "which", 3),
    "a clock far behind": lambda image: setattr(image.host, "monotonic_ns", -(1 << 63)),
    "a clock far ahead": lambda image: setattr(image.host, "boottime_ns", (1 << 63) - 1),
    "a root that had ended": lambda image: setattr(image.processes[0], "zombie", True),
    "memory of one that had ended": lambda image: _zombie(image).memory.vdso_holes.starts.append(1),
    "columns of shared memory": lambda image: image.shared[0].pages.starts.append(0),
    "offsets of shared memory": lambda image: image.shared[0].pages.skips.extend([0, 0]),
    "offsets in a page table": lambda image: image.processes[0].memory.pages.skips.append(1),
    "pages behind shared memory": lambda image: image.shared[0].pages.MergeFrom(
        pb.PageTable(starts=[(1 << 64) - 1], counts=[1], blocks=[0])),
    "the size of shared memory": lambda image: setattr(image.shared[0], "size", 1 << 63),
    "the size of a bundled file": lambda image: image.bundles.add(path=b"/a", size=(1 << 64) - 1),
    "columns of guards": lambda image: image.processes[0].memory.guards.starts.append(1),
    "guards far away": lambda image: image.processes[0].memory.guards.MergeFrom(
        pb.PageRuns(starts=[(1 << 64) - 1], counts=[1])),
    "columns of the vDSO": _no_vdso_with_holes,
    "a group in the foreground": lambda image: _session(image, foreground=1 << 31),
    "a session of nobody": lambda image: _session(image, sid=1 << 31),
    "a mapped file of the kernel": _of_kernel,
    "a name that no file system takes": lambda image: setattr(
        next(one.unix for one in image.descriptions if one.unix.path), "path", b"/" + b"x" * 5000),
    "pending signals": lambda image: image.processes[0].pending.append(b"x"),
    "a path that no kernel tells": lambda image: setattr(image.processes[0], "cwd", b"/" + b"x" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("what", KNOWN)
def test_it_is_refused(body: bytes, what: str) -> None:
    image = pb.Tree.FromString(body)
    KNOWN[what](image)
    with pytest.raises((ImageDamaged, RestoreRefused)):
        read_and_plan(image.SerializeToString())
    assert not fault_of(image.SerializeToString())


def _field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray()
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *head, size]) + content


PROCESSES, DESCRIPTIONS, THREADS = 2, 3, 6
"""Numbers of fields of messages that there may be many of."""


@pytest.mark.parametrize(
    ("many", "words"),
    [
        (_field(DESCRIPTIONS, b"") * 3_000_000, "mappings, descriptors and the like"),
        (_field(PROCESSES, _field(THREADS, b"") * 3_000_000), "mappings, descriptors and the like"),
        (_field(PROCESSES, _field(THREADS, b"") * 40_000), "threads"),
        (_field(PROCESSES, b"") * 40_000, "threads"),
        (b"\xff" * 100, "cannot be parsed"),
        (b"\x12\x7f", "cannot be parsed"),
        (b"\x13", "cannot be parsed"),
    ],
    ids=["messages", "nested messages", "threads", "processes", "a long number", "a cut message", "a group"],
)
def test_what_would_be_gigabytes_is_not_built(body: bytes, many: bytes, words: str) -> None:
    for act in (read_and_plan, shown):
        with bounded(), pytest.raises(ImageDamaged, match=words):
            act(body + many)


def test_messages_are_counted(body: bytes) -> None:
    def inner(message: Message) -> int:
        return sum(
            1 + inner(one)
            for field, value in message.ListFields()
            if field.type == FieldDescriptor.TYPE_MESSAGE
            for one in (value if field.is_repeated else [value])
        )

    expected = inner(pb.Tree.FromString(body))
    assert counting.count(body, pb.Tree, 1 << 20) == expected
    assert counting.count(body, pb.Tree, 100) == 101


@pytest.mark.parametrize("at", [32, 56])
def test_the_header_of_a_mapped_file_is_not_believed(tmp_path: Path, at: int) -> None:
    """A target may map any file: what looks like a program's, and says that its table or a note lies anywhere."""
    for value in (0, 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        head = bytearray(Path("/bin/sh").read_bytes()[:4096])
        (table,) = struct.unpack_from("<Q", head, 32)
        if at == 32:
            struct.pack_into("<Q", head, at, value)
        for entry in range(table, len(head) - 56, 56) if at == 56 else ():
            struct.pack_into("<IIQ", head, entry, 4, 0, value)  # a note
        file = tmp_path / "file"
        file.write_bytes(head)
        with file.open("rb") as opened:
            assert isinstance(mapped_files.build_id(opened.fileno()), bytes)


def test_a_sample_of_mutations(body: bytes) -> None:
    every = list(mutations(pb.Tree.FromString(body)))
    assert not list(faults(body, random.Random(11).sample(every, SAMPLE)))


@pytest.mark.soak
def test_every_mutation(body: bytes) -> None:
    assert not list(faults(body, list(mutations(pb.Tree.FromString(body)))))
