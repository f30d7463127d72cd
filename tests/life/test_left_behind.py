"""What a job leaves in the background lives on when the job's first process ends: woken natively, and in a capsule."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.conformance.harness import wait_until
from tests.integration.test_cli_terminal import Terminal
from tests.life.life import PATIENCE, TORPOR, below, children, name_of
from tests.users import BIN, User

PYTHON = str(BIN / "python")

# Leaves a daemon, which makes a file anew whenever that is missing, and ends as the file `end` says.
JOB = """
import os, signal, time

def beat(name, over):
    while not os.path.exists(over):
        with open(f"{name}.new", "w") as file:
            print(os.getpid(), file=file)
        os.rename(f"{name}.new", name)
        if os.path.exists("appeal"):
            os.kill(1, signal.SIGUSR1)
            os.remove("appeal")
        time.sleep(0.01)

if os.fork() == 0:
    APART
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: open("over", "w").close())
    beat("daemon", "over")
    open("ended", "w").close()
    os._exit(0)
os.wait()
beat("root", "end")
with open("end") as file:
    status = int(file.read())
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
"""
DAEMON = JOB.replace("APART", "os.setsid(); [os.dup2(os.open('/dev/null', os.O_RDWR), fd) for fd in (0, 1, 2)]")
ON_THE_TERMINAL = JOB.replace("APART", "os.setpgid(0, 0)")


class Left:
    """Such a job, its snapshot and its wakes."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.directory = user.own(user.tmp / "in")
        self.init = 0
        """The PID that the last wake has outside."""
        self.ways = ["native", "capsule"] if user.is_root else ["capsule"]
        self._inits: list[int] = []
        self._started: list[subprocess.Popen[str]] = []

    def save(self) -> None:
        """Run it below a reader of its output, save it, which kills it."""
        process = self._start([TORPOR, "run", "--", PYTHON, "-c", DAEMON])
        self.answers("root", "daemon")
        self.user.run([TORPOR, "checkpoint", str(below(process.pid)[0]), "--then", "kill"], check=True)
        process.communicate(timeout=PATIENCE)

    def wake(self, way: str) -> subprocess.Popen[str]:
        """Wake it, again below a reader of its output."""
        self.begin_anew()
        process = self._start([TORPOR, "restore", "latest", "--as", way])
        self.watch(process)
        return process

    def begin_anew(self) -> None:
        """Remove what tells the processes to end, and that they have."""
        for name in ("end", "over", "ended"):
            (self.directory / name).unlink(missing_ok=True)

    def by_program(self, text: str) -> subprocess.Popen[str]:
        """Have a program in Python wake it, which says a line when it has."""
        process = self._start([PYTHON, "-c", text])
        assert process.stdout
        process.stdout.readline()
        self.watch(process)
        return process

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = self.user.popen(
            command, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._started.append(process)
        return process

    def watch(self, process: subprocess.Popen[Any]) -> None:
        """Wait until what a command has woken runs."""
        self.answers("root", "daemon")
        inits = [pid for pid in below(process.pid) if name_of(pid) == "torpor-init"]
        self.init = inits[0]
        self._inits += inits

    def answers(self, *names: str) -> None:
        """Wait until each of them says that it lives now."""
        for name in names:
            (self.directory / name).unlink(missing_ok=True)
            wait_until((self.directory / name).exists, f"that the {name} lives")

    def let_end(self, status: int) -> None:
        """Let the first process end so."""
        (self.directory / "end.new").write_text(str(status))
        os.rename(self.directory / "end.new", self.directory / "end")

    @property
    def daemon(self) -> int:
        """The daemon's PID, as it sees it."""
        return int((self.directory / "daemon").read_text())

    def let_daemon_end(self) -> None:
        """Let the daemon end, and with it the capsule."""
        (self.directory / "over").touch()
        wait_until((self.directory / "ended").exists, "the end of the daemon")
        self.all_gone()

    def all_gone(self) -> None:
        """Wait until nothing is left of any capsule."""
        wait_until(lambda: not any(name_of(pid) == "torpor-init" for pid in self._inits), "the end of its init")

    def close(self) -> None:
        """End all that is left after a failure."""
        (self.directory / "over").touch()
        self.let_end(1)
        for process in self._started:
            for pid in [process.pid, *below(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE)
        self.all_gone()


@pytest.fixture
def left(as_user: User) -> Iterator[Left]:
    (as_user.tmp / "in").mkdir()
    found = Left(as_user)
    yield found
    found.close()


@pytest.mark.parametrize("status", [7, -signal.SIGTERM])
def test_a_daemon_lives_on(left: Left, status: int) -> None:
    """Who waits for the job learns how it has ended at once, and so does a reader of its output."""
    left.save()
    for way in left.ways:
        process = left.wake(way)
        left.let_end(status)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, out
        assert "background" not in out
        left.answers("daemon")
        left.let_daemon_end()


def test_a_signal_to_init_is_for_what_is_left(left: Left) -> None:
    """In a capsule the PID that stood for the job stands for its daemons; what they send it themselves is nobody's."""
    left.save()
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = left.wake("capsule")
        left.let_end(7)
        process.communicate(timeout=PATIENCE)
        (left.directory / "appeal").touch()
        wait_until(lambda: not (left.directory / "appeal").exists(), "that it has sent a signal")
        left.answers("daemon")
        os.kill(left.init, number)
        left.all_gone()
        assert (left.directory / "over").exists() == (number == signal.SIGTERM)


def test_what_is_left_is_saved_by_itself(left: Left) -> None:
    left.save()
    process = left.wake("capsule")
    left.let_end(7)
    process.communicate(timeout=PATIENCE)
    left.answers("daemon")
    number = left.daemon
    left.user.run([TORPOR, "checkpoint", str(left.init), "--then", "kill"], check=True)
    left.all_gone()
    again = left.user.popen([TORPOR, "restore", "latest"], cwd=left.directory)
    left.answers("daemon")
    assert left.daemon == number
    (left.directory / "over").touch()
    assert again.wait(PATIENCE) == 0


def test_a_job_on_a_terminal(left: Left) -> None:
    """A daemon that has the terminal open does not keep it, nor the command, which ends as the job."""
    words = f'cd {left.directory}; exec {TORPOR} run -- "$0" -c "$1"'
    terminal = Terminal(left.user, "/bin/sh", "-c", words, PYTHON, ON_THE_TERMINAL)
    try:
        left.answers("root", "daemon")
        left.user.run([TORPOR, "checkpoint", str(below(terminal.process.pid)[0]), "--then", "kill"], check=True)
        assert terminal.process.wait(PATIENCE) == -signal.SIGKILL
    finally:
        terminal.close()
    for way in left.ways:
        left.begin_anew()
        terminal = Terminal(left.user, TORPOR, "restore", "latest", "--as", way)
        try:
            left.watch(terminal.process)
            left.let_end(7)
            assert terminal.process.wait(PATIENCE) == 7
            left.answers("daemon")
        finally:
            terminal.close()
        left.let_daemon_end()


# Says the job's code when SIGCHLD has told of its end, and "none" when no child is left to be waited for.
WAITS = """
import signal, torpor
from torpor.processes import children
import os
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
job = torpor.restore("latest", way="capsule")
print("woken", flush=True)
while job.poll() is None:
    signal.sigwait({signal.SIGCHLD})
print(job.wait(), flush=True)
while job.poll() is not None and children(os.getpid()):
    signal.sigwait({signal.SIGCHLD})
print("none", flush=True)
"""


def test_a_program_that_wakes_it_is_told_by_sigchld(left: Left) -> None:
    """And has no zombie when the daemon has ended, too."""
    left.save()
    process = left.by_program(WAITS)
    left.let_end(7)
    assert process.stdout and process.stdout.readline() == "7\n"
    left.answers("daemon")
    left.let_daemon_end()
    assert process.stdout.readline() == "none\n"
    assert process.wait(PATIENCE) == 0


# As the Slurm supervisor does.
SUPERVISES = """
import torpor
from torpor_slurm import lifeline
job = torpor.restore("latest", way="capsule")
lifeline.tie(job)
print("tied", flush=True)
raise SystemExit(job.wait())
"""


def test_a_supervisor_that_ends_after_its_job_ends_nothing_more(left: Left) -> None:
    """Slurm itself ends what is left of a job, where it does."""
    left.save()
    process = left.by_program(SUPERVISES)
    (lifeline,) = [pid for pid in children(process.pid) if name_of(pid) != "torpor-init"]
    left.let_end(7)
    assert process.wait(PATIENCE) == 7
    wait_until(lambda: not name_of(lifeline), "the end of the lifeline")
    left.answers("daemon")
    left.let_daemon_end()


# As a Jupyter server does.
SERVES = """
import os, time, torpor
from torpor_jupyter.kernels.process import KernelProcess
job = torpor.restore("latest", way="capsule")
kernel = KernelProcess(job.tree_pid, job=job)
print("woken", flush=True)
while not os.path.exists("kill"):
    time.sleep(0.01)
kernel.kill()
while kernel.poll() is None:
    time.sleep(0.01)
print(kernel.poll(), flush=True)
"""


def test_a_kernel_that_is_killed_takes_nothing_with_it(left: Left) -> None:
    """As one that was never saved."""
    left.save()
    process = left.by_program(SERVES)
    (left.directory / "kill").touch()
    assert process.communicate(timeout=PATIENCE)[0] == f"{-signal.SIGKILL}\n"
    left.answers("daemon")
    left.let_daemon_end()


# Says the job's code when it has killed it, and what is left of it then.
KILLS = """
import os, signal, time, torpor
from torpor.processes import children
job = torpor.restore("latest", way="capsule")
print("woken", flush=True)
while not os.path.exists("kill"):
    time.sleep(0.01)
job.send_signal(signal.SIGKILL)
print(job.wait(), children(os.getpid()), flush=True)
"""


def test_sigkill_leaves_nothing(left: Left) -> None:
    """Who kills a job waits for the end of all of it."""
    left.save()
    process = left.by_program(KILLS)
    (left.directory / "kill").touch()
    assert process.communicate(timeout=PATIENCE)[0] == f"{-signal.SIGKILL} []\n"
