"""Files of /proc that are held open, as by monitors: of the program itself, its threads and child, and of no one."""

import ctypes
import os
import signal
import threading
from pathlib import Path

from ready import await_go, expect, judge, ready, same


def tell(child: int, tid: int) -> dict[str, int]:
    me = os.getpid()
    names = [f"{me}/stat", f"{me}/task/{me}/stat", f"{me}/task/{tid}/comm", f"{child}/stat", f"{child}/fd", f"{child}"]
    return {name: os.open(f"/proc/{name}", os.O_RDONLY) for name in [*names, "stat", "sys/kernel/pid_max", "net/dev"]}


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    own_status = os.open("/proc/self/status", os.O_RDONLY)
    child = os.fork()
    if child == 0:
        signal.sigwait({signal.SIGUSR1})
        os.lseek(own_status, 7, os.SEEK_SET)  # which its parent has, too
        os._exit(0)
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    tid = thread.native_id or 0
    held = tell(child, tid)
    status = open("/proc/self/status")  # noqa: SIM115
    status.readline()
    position = os.lseek(held["stat"], 5, os.SEEK_SET)
    os.lseek(held[f"{os.getpid()}/stat"], 3, os.SEEK_SET)
    memory = os.open("/proc/self/mem", os.O_RDWR)
    kept = ctypes.create_string_buffer(b"before")
    pid_path = os.open(f"/proc/{child}", os.O_PATH | os.O_DIRECTORY)
    ready((os.getpid(), 128), (child, 128))
    await_go()

    me = os.getpid()
    same(os.pread(held[f"{me}/stat"], 30, 0).split()[0], b"%d" % me, "who it is")
    same(os.lseek(held[f"{me}/stat"], 0, os.SEEK_CUR), 3, "where it was in its own file")
    same(os.pread(held[f"{me}/task/{me}/stat"], 30, 0).split()[0], b"%d" % me, "the first thread")
    same(os.pread(held[f"{me}/task/{tid}/comm"], 30, 0), Path(f"/proc/self/task/{tid}/comm").read_bytes(), "a thread")
    same(os.pread(held[f"{child}/stat"], 30, 0).split()[0], b"%d" % child, "the child")
    expect("0" in os.listdir(held[f"{child}/fd"]), "the child's descriptors")
    expect("stat" in os.listdir(held[f"{child}"]), "the child's directory")
    fd = os.open("stat", os.O_RDONLY, dir_fd=pid_path)
    same(os.read(fd, 30).split()[0], b"%d" % child, "a file below the child's directory")
    same(os.lseek(held["stat"], 0, os.SEEK_CUR), position, "where it was in a file of no process")
    expect(os.pread(held["stat"], 3, 0) == b"cpu", "the processors")
    expect(int(os.pread(held["sys/kernel/pid_max"], 20, 0)) > 300, "a setting")
    expect(os.pread(held["net/dev"], 5, 0) == b"Inter", "the devices of the network")
    status.seek(0)
    expect(f"Pid:\t{me}\n" in status.read(), "its own status")
    os.pwrite(memory, b"after!", ctypes.addressof(kept))
    same(kept.value, b"after!", "its own memory")
    os.kill(child, signal.SIGUSR1)
    same(os.waitpid(child, 0), (child, 0), "the child")
    same(os.lseek(own_status, 0, os.SEEK_CUR), 7, "where the child was in what both have open")
    try:
        os.pread(held[f"{child}/stat"], 30, 0)
        expect(False, "it still shows a process that was waited for")
    except ProcessLookupError:
        pass


judge(main)
