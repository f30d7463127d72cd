"""What /proc says, whatever names processes, files and mounts have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torpor import procfs

NAMES = [b"a b", b"a) R 1 (b", b"a\nb", b"a\tb ", b"\\012", b"a\\012\nb", b"a\r\x0b\x0c\x85b", b"\xff\xfe", b" lead"]

MAPS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
print(flush=True)
input()
"""


@contextmanager
def child(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_process_hides_no_field(name: bytes) -> None:
    me, comm = threading.get_native_id(), Path("/proc/thread-self/comm")
    before = comm.read_bytes()
    comm.write_bytes(name[:15])
    try:
        stat = procfs.parse_stat(procfs.read(f"/proc/self/task/{me}/stat"))
        status = procfs.status(procfs.read(f"/proc/self/task/{me}/status"))
    finally:
        comm.write_bytes(before)
    assert (stat.comm, stat.ppid, stat.session) == (name[:15], os.getppid(), os.getsid(0))
    assert int(status[b"Tgid"]) == os.getpid()
    assert len(stat.fields) >= 50 and int(stat.fields[0]) == me


@pytest.mark.parametrize("name", NAMES)
def test_a_mapped_file_is_found_by_the_name_that_is_shown(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(bytes(procfs.PAGE))
    with child(sys.executable, "-c", MAPS, os.fsdecode(path)) as process:
        assert process.stdout
        process.stdout.readline()
        (mapping,) = (one for one in procfs.mappings(process.pid) if one.name == path)
        (flagged,) = (one for one in procfs.flagged_mappings(process.pid) if one.mapping.name == path)
    assert flagged.mapping == mapping
    assert (mapping.inode, mapping.shared, mapping.writable) == (os.stat(path).st_ino, False, False)
    assert (flagged.page_size, flagged.protection_key, b"rd" in flagged.flags) == (procfs.PAGE, 0, True)


def test_a_name_with_very_many_escapes_takes_no_time() -> None:
    """As many candidates would be tried as there are ways to read it."""
    name = procfs.parse_mapping(b"1000-2000 r--p 00000000 08:01 7   /" + b"x\\012" * 40).name
    assert name == b"/" + b"x\n" * 40


def test_protection_keys_and_huge_pages_are_read() -> None:
    text = (
        b"7f00-8f00 rw-s 00001000 00:0f 12  /dev/hugepages/a b\nSize:  4 kB\nKernelPageSize:     2048 kB\n"
        b"MMUPageSize: 2048 kB\nRss: 0 kB\nTHPeligible:           0\nProtectionKey:         3\nVmFlags: rd wr sh ht \n"
        b"9000-a000 ---p 00000000 00:00 0 \nSize: 4 kB\nKernelPageSize: 4 kB\nVmFlags: mr\n"
    )
    first, second = procfs.parse_smaps(text)
    assert (first.mapping.name, first.page_size, first.protection_key) == (b"/dev/hugepages/a b", 2 << 20, 3)
    assert first.flags == (b"rd", b"wr", b"sh", b"ht")
    assert (second.mapping.name, second.page_size, second.protection_key, second.flags) == (b"", 4096, 0, (b"mr",))


def test_mounts_with_any_names(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        b"22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n"
        b"23 22 259:70000 /sub /mnt/a\\040-\\040b\\012c\\134 rw - tmpfs  rw,size=4k\n"
    )
    monkeypatch.setattr(procfs, "read", lambda path: text)
    root, other = procfs.mounts(1)
    assert (root.device, root.point, root.filesystem, root.source) == (os.makedev(8, 1), b"/", b"ext4", b"/dev/sda1")
    assert (other.device, other.root, other.point) == (os.makedev(259, 70000), b"/sub", b"/mnt/a - b\nc\\")
    assert (other.source, other.options) == (b"", b"rw,size=4k")


def test_real_mounts_are_those_of_this_process() -> None:
    assert b"/proc" in [mount.point for mount in procfs.mounts("self")]


def test_a_file_longer_than_a_page_is_read_whole() -> None:
    words = ["x" * 1000] * 20
    with child("sh", "-c", "echo; read x", *words) as process:
        assert process.stdout
        process.stdout.readline()  # execve(2) closes descriptors before it shows the new command line
        assert procfs.command_line(process.pid)[3:] == [word.encode() for word in words]
    assert procfs.command_line(1 << 22) == []


def test_lines_end_only_where_the_kernel_ends_them() -> None:
    assert procfs.lines(b"a\rb\x0bc\n\nd\n") == [b"a\rb\x0bc", b"", b"d"]
    assert procfs.lines(b"") == []


def test_who_has_ended_or_is_about_to_is_ending() -> None:
    with child("cat") as process:
        assert not procfs.is_ending(process.pid, process.pid)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert procfs.is_ending(process.pid, process.pid)
    assert procfs.is_ending(1 << 22, 1 << 22)


def test_a_family_is_seen_from_both_ends() -> None:
    with child("cat") as process:
        assert process.pid in procfs.children(os.getpid(), procfs.threads(os.getpid()))
        assert list(procfs.ancestry(process.pid))[:2] == [process.pid, os.getpid()]
    assert procfs.threads(os.getpid())[0] == os.getpid()
    assert list(procfs.ancestry(1 << 22)) == [1 << 22]


def test_who_leads_no_more_while_others_run() -> None:
    assert not procfs.is_leaderless(os.getpid())


def test_descriptors_of_others_are_listed() -> None:
    reader, writer = os.pipe()
    try:
        with child("cat") as process:
            link = os.readlink(f"/proc/{process.pid}/fd/1")
            seen = [(pid, fd, target) for pid, fd, target in procfs.open_descriptors({os.getpid()}) if target == link]
            assert (process.pid, 1, link) in seen
            assert all(pid != os.getpid() for pid, _, _ in seen)
    finally:
        os.close(reader)
        os.close(writer)


def test_root_of_a_namespace_is_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "in_initial_user_namespace", lambda: False)
    assert not procfs.is_root()


@pytest.mark.parametrize(("size", "pages"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
def test_sizes_in_whole_pages(size: int, pages: int) -> None:
    assert procfs.page_up(size) == pages * procfs.PAGE
