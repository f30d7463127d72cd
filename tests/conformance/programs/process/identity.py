"""What a process is to itself and to ps: arguments, environment, auxiliary vector, name, executable, folders."""

import ctypes
import os
import re
import resource
import signal
import threading
from pathlib import Path

from ready import HERE, expect, judge, ready_and_wait, same


def picture() -> dict[str, object]:
    own = Path("/proc/self")
    stat = own.joinpath("stat").read_bytes().rpartition(b")")[2].split()
    return {
        "cmdline": own.joinpath("cmdline").read_bytes(),
        "environ": own.joinpath("environ").read_bytes(),
        "auxv": own.joinpath("auxv").read_bytes(),
        "exe": os.readlink(own / "exe"),
        "exe's inode": os.stat(own / "exe").st_ino,
        "cwd": os.readlink(own / "cwd"),
        "root": os.readlink(own / "root"),
        "comm": own.joinpath("comm").read_text(),
        "code, stack, data, brk, arguments and environment": [
            stat[k] for k in (23, 24, 25, 42, 43, 44, 45, 46, 47, 48)
        ],
        "limits": [resource.getrlimit(which) for which in range(16)],
        "ids": (os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), threading.get_native_id()),
        "users": (os.getresuid(), os.getresgid(), sorted(os.getgroups())),
        "umask": re.search("Umask.*", own.joinpath("status").read_text()).group(),
        "capabilities": re.findall("Cap(?:Inh|Amb).*", own.joinpath("status").read_text()),
        "oom": own.joinpath("oom_score_adj").read_text(),
        "coredump filter": own.joinpath("coredump_filter").read_text(),
        "personality": own.joinpath("personality").read_text(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
    }


def main() -> None:
    os.environ["ADDED_LATER"] = "not in the environment area"
    folder = HERE / "a folder\nwith a strange näme"
    folder.mkdir(mode=0o700)
    os.chdir(folder)
    os.umask(0o137)
    Path("/proc/self/oom_score_adj").write_text("321")
    Path("/proc/self/coredump_filter").write_text("0x13")
    Path("/proc/self/comm").write_text("a) (name")
    resource.setrlimit(resource.RLIMIT_NOFILE, (321, 432))
    # As setproctitle does: the argument area is the program's own memory.
    first = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[45])
    ctypes.memmove(first, b"renamed", 8)
    before = picture()
    ready_and_wait()
    after = picture()
    for what, value in before.items():
        same(after[what], value, what)
    expect(after["cmdline"].startswith(b"renamed\0"), "the changed argument area was lost")
    same(os.environ["ADDED_LATER"], "not in the environment area", "a variable that was set later")
    Path("made").write_text("")
    same(oct(os.stat("made").st_mode & 0o777), oct(0o666 & ~0o137), "mode of a new file")


judge(main)
