"""Interactive programs on terminals of the tree's own: bash with its jobs, script(1) around another program."""

import os
import select
import shutil
import sys
import time

from ready import HERE, expect, judge, ready_and_wait, same


class Talk:
    """A program on a pseudo terminal that is its controlling one, and what it has shown."""

    def __init__(self, *command: str) -> None:
        master, slave = os.openpty()
        name = os.ttyname(slave)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            terminal = os.open(name, os.O_RDWR)
            for fd in range(3):
                os.dup2(terminal, fd)
            os.closerange(3, 100)
            os.execvp(command[0], command)
        os.close(slave)
        self.fd = master
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def shows(self, text: str) -> str:
        """What came until a text did, the text included."""
        deadline = time.monotonic() + 100
        while text not in self.shown:
            if not select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} is not in {self.shown!r}")
            self.shown += os.read(self.fd, 4096).decode()
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def ends(self) -> int:
        """Its exit status, once its terminal has no other side any more."""
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:  # EIO
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def main() -> None:
    os.environ["PS1"] = "[ok] "
    shell = Talk("bash", "--norc", "--noprofile", "--noediting", "-i")
    shell.shows("[ok] ")
    shell.type("count=41\n")
    shell.shows("\n[ok] ")
    shell.type("sleep 1000\n")
    shell.shows("sleep 1000\r\n")
    while not foreground_is(shell, b"sleep"):
        time.sleep(0.01)
    shell.type("\x1a")
    shell.shows("Stopped")
    shell.shows("\n[ok] ")
    shell.type("cat | cat\n")
    shell.shows("cat | cat\r\n")
    shell.type("before\n")
    shell.shows("before\r\nbefore\r\n")
    around = Talk("script", "-q", "-e", "-c", "echo here; cat", str(HERE / "typescript"))
    around.shows("here\r\n")
    around.type("to script\n")
    around.shows("to script\r\nto script\r\n")
    ready_and_wait()

    shell.type("after\n")
    shell.shows("after\r\nafter\r\n")
    shell.type("\x03")
    shell.shows("^C\r\n[ok] ")
    shell.type("jobs; echo $((count + 1)) $?\n")
    expect("Stopped" in shell.shows("42 0\r\n[ok] "), "a job that was stopped is not listed")
    shell.type("fg\n")
    shell.shows("sleep 1000\r\n")
    while not foreground_is(shell, b"sleep"):
        time.sleep(0.01)
    shell.type("\x03")
    shell.shows("^C\r\n[ok] ")
    shell.type("exit 5\n")
    same(shell.ends(), 5, "the shell's exit status")

    around.type("again\n")
    around.shows("again\r\nagain\r\n")
    around.type("\4")
    same(around.ends(), 0, "script's exit status")
    text = (HERE / "typescript").read_text()
    expect(text.count("to script") == 2 and text.count("again") == 2, f"the typescript is {text!r}")


def foreground_is(shell: Talk, name: bytes) -> bool:
    """Whether a program of this name has the terminal."""
    try:
        with open(f"/proc/{os.tcgetpgrp(shell.fd)}/comm", "rb") as file:
            return file.read().strip() == name
    except (FileNotFoundError, ProcessLookupError):
        return False


if not shutil.which("script"):
    print("needs script")
    sys.exit(77)
judge(main)
