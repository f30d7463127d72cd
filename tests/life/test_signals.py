"""A job hears what it would hear, and its shell sees it stop and end, whoever started it: undisturbed, run, woken."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.harness import PATIENCE, wait_until
from tests.integration.test_cli_terminal import Terminal
from tests.life.life import TORPOR, below
from tests.users import User
from torpor.arch.x86_64 import NR

RUN = (TORPOR, "run", "--")
MARK = 63
"""A signal that says that all before it has been passed on."""
SIGNALS = sorted(set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, MARK})
DEADLY = sorted(
    set(range(1, 65))
    - {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    - {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
)

# It makes system calls of its own: libc hides the signals 32 and 33.
PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/* notes: write every signal and its value into ./heard, until there is ./end.  meek: what a signal does by default.
   Both make ./beat as long as they run.
   default, ignore: with this action for every signal, execute the rest of the command line. */
int main(int argc, char **argv)
{
	unsigned long all = argv[1][0] == 'n' ? ~0ul : 0;
	int log;
	char line[80];

	if (argc > 2) {
		unsigned long action[4] = {argv[1][0] == 'i'}; /* struct sigaction of the kernel: SIG_IGN is 1 */

		for (int number = 1; number <= 64; number++)
			syscall(SYS_rt_sigaction, number, action, NULL, 8);
		execvp(argv[2], argv + 2);
		return 127;
	}
	log = open("heard", O_WRONLY | O_CREAT | O_APPEND, 0644);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
	while (access("end", F_OK)) {
		struct timespec soon = {.tv_nsec = 10000000};
		siginfo_t info;

		close(open("beat", O_WRONLY | O_CREAT, 0644));
		if (syscall(SYS_rt_sigtimedwait, &all, &info, &soon, 8) > 0)
			write(log, line, sprintf(line, "%d %d\n", info.si_signo, info.si_code == SI_QUEUE ? info.si_int : 0));
	}
	return 7;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    built = folder / "signals"
    words = ["gcc", "-Wall", "-Wno-unused-result", "-x", "c", "-", "-o", str(built)]
    subprocess.run(words, input=PROGRAM, text=True, check=True)
    built.chmod(0o755)
    for above in [folder, *folder.parents[:3]]:
        with suppress(PermissionError):
            above.chmod(above.stat().st_mode | 0o011)
    return built


def waiting(pid: int) -> int:
    """The signals that a process has got and not taken."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("ShdPnd:")[2].split()[0], 16)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _sleeps(pid: int) -> bool:
    """Whether a process waits for signals, and has taken all."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith(f"{NR.rt_sigtimedwait} ") and not waiting(pid)


class Signalled:
    """A process that stands for a job, which runs the program."""

    def __init__(self, user: User, process: subprocess.Popen[Any]) -> None:
        self.user, self.process = user, process

    @property
    def pid(self) -> int:
        return self.process.pid

    def runs(self) -> None:
        """Wait until the job runs."""
        beat = self.user.tmp / "beat"
        beat.unlink(missing_ok=True)
        wait_until(beat.exists, "the job runs")

    def heard(self) -> list[str]:
        path = self.user.tmp / "heard"
        return path.read_text().splitlines() if path.exists() else []

    def signals(self) -> list[int]:
        """What it has heard, but the marks."""
        return [number for number in self._numbers() if number != MARK]

    def _numbers(self) -> list[int]:
        return [int(line.split()[0]) for line in self.heard()]

    def all_heard(self) -> list[int]:
        """The signals that it has heard, once everything that was sent so far has been passed on."""
        before = self._numbers().count(MARK)
        wait_until(lambda: not waiting(self.pid), "its signals are taken")
        os.kill(self.pid, MARK)
        wait_until(lambda: self._numbers().count(MARK) > before, "the mark is heard")
        return self.signals()

    def goes_on(self) -> None:
        """Continue it; wait until the job runs, and everyone above knows."""
        os.killpg(self.pid, signal.SIGCONT)
        assert self.change() == ("continued", signal.SIGCONT)
        self.settles()

    def settles(self) -> None:
        """Wait until the job runs, and everyone above waits for the next signal."""
        self.runs()
        for pid in [self.pid, *below(self.pid)[:1], self.pid]:
            wait_until(partial(_sleeps, pid), "it waits for other signals")

    def change(self) -> tuple[str, int]:
        """Wait until the process is stopped, continued or ended: how, and by which signal or with which code."""
        _, status = os.waitpid(self.pid, os.WUNTRACED | os.WCONTINUED)
        if os.WIFSTOPPED(status):
            return "stopped", os.WSTOPSIG(status)
        if os.WIFCONTINUED(status):
            return "continued", signal.SIGCONT
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return "ended", self.process.returncode

    def close(self) -> None:
        (self.user.tmp / "end").touch()
        for pid in [*below(self.pid), self.pid] if self.process.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def started() -> Iterator[list[Signalled | Terminal]]:
    all_of_them: list[Signalled | Terminal] = []
    yield all_of_them
    for one in all_of_them:
        one.close()


def start(
    user: User, started: list[Any], program: Path, *command: str | Path, action: str = "default", **options: Any
) -> Signalled:
    """Start it in a process group of its own, as a shell with job control does, with this action for every signal: what
    runs the tests may ignore some."""
    command = (program, action, *command)
    null = subprocess.DEVNULL
    options = {"start_new_session": False, "process_group": 0, "stdin": null, "stdout": null, "stderr": null, **options}
    started.append(found := Signalled(user, user.popen(command, **options)))
    return found


@pytest.mark.parametrize("action", ["default", "ignore"])
@pytest.mark.parametrize("way", ["undisturbed", "run", "woken"])
def test_every_signal_is_heard_once(as_user: User, started: list[Any], program: Path, way: str, action: str) -> None:
    """To the command alone, and to its group; and what a queued one says. Also if it was started to ignore them all, as
    nohup(1), a script's `&` and a container's engine do with some: a job that blocks or handles them hears them."""
    job = start(as_user, started, program, *(() if way == "undisturbed" else RUN), program, "notes", action=action)
    job.runs()
    if way == "woken":
        as_user.run([TORPOR, "checkpoint", str(job.pid), "--then", "kill"], check=True)
        job.process.wait(PATIENCE)
        job = start(as_user, started, program, TORPOR, "restore", "latest", action=action)
        job.runs()
    for send in os.kill, os.killpg:
        for number in SIGNALS:
            before = job.all_heard()
            send(job.pid, number)
            assert job.all_heard() == [*before, number]
    for number in signal.SIGUSR1, signal.SIGRTMIN:
        assert ctypes.CDLL(None).sigqueue(job.pid, number, ctypes.c_void_p(42)) == 0
        job.all_heard()
        assert f"{number} 42" in job.heard()


@pytest.mark.parametrize("prefix", [(), RUN], ids=["undisturbed", "run"])
def test_on_a_terminal_that_it_leads(as_user: User, started: list[Any], program: Path, prefix: tuple[str, ...]) -> None:
    """As in a window: what the terminal sends is heard once, what comes after it too, and the hang-up."""
    terminal = Terminal(as_user, *prefix, str(program), "notes")
    started.append(terminal)
    job = Signalled(as_user, terminal.process)
    job.runs()
    expected: list[int] = []
    for rows in 30, 31, 32:
        terminal.type("\x03")
        wait_until(lambda: job.signals().count(signal.SIGINT) % 2 == 1, "Ctrl-C is heard")
        assert job.all_heard() == [*expected, signal.SIGINT]
        fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("4H", rows, 80, 0, 0))
        assert job.all_heard() == [*expected, signal.SIGINT, signal.SIGWINCH]
        for number in signal.SIGINT, signal.SIGWINCH:
            os.kill(job.pid, number)
            job.all_heard()
        expected += [signal.SIGINT, signal.SIGWINCH] * 2
        assert job.all_heard() == expected
    terminal.hang_up()
    wait_until(lambda: {signal.SIGHUP, signal.SIGCONT} <= set(job.signals()), "the hang-up is heard")
    (as_user.tmp / "end").touch()
    assert terminal.process.wait(PATIENCE) == 7


@pytest.mark.parametrize("prefix", [(), RUN], ids=["undisturbed", "run"])
def test_it_ends_with_its_window(as_user: User, started: list[Any], program: Path, prefix: tuple[str, ...]) -> None:
    terminal = Terminal(as_user, *prefix, str(program), "meek")
    started.append(terminal)
    Signalled(as_user, terminal.process).runs()
    terminal.hang_up()
    assert terminal.process.wait(PATIENCE) == -signal.SIGHUP


@pytest.mark.parametrize("prefix", [(), RUN], ids=["undisturbed", "run"])
def test_an_alarm_that_was_set_before(as_user: User, program: Path, prefix: tuple[str, ...]) -> None:
    """An interval timer survives execve(2). (If it comes before the job runs, it ends the command as well.)"""
    setting = "import os, signal, sys; signal.setitimer(signal.ITIMER_REAL, 1); os.execv(sys.argv[1], sys.argv[1:])"
    done = as_user.run([sys.executable, "-c", setting, *prefix, program, "meek"])
    assert done.returncode == -signal.SIGALRM


@pytest.mark.parametrize("prefix", [(), RUN], ids=["undisturbed", "run"])
def test_its_shell_sees_it_stop(as_user: User, started: list[Any], program: Path, prefix: tuple[str, ...]) -> None:
    job = start(as_user, started, program, *prefix, program, "meek")
    job.runs()
    for number in signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU:
        for send in os.kill, os.killpg:
            send(job.pid, number)
            assert job.change() == ("stopped", number)
            job.goes_on()
    os.kill(job.pid, signal.SIGTERM)
    assert job.change() == ("ended", -signal.SIGTERM)


def woken(user: User, started: list[Any], program: Path, *command: str | Path) -> Signalled:
    """Such a process, for a job that was saved, killed and woken."""
    first = start(user, started, program, *RUN, *command)
    first.runs()
    user.run([TORPOR, "checkpoint", str(first.pid), "--then", "kill"], check=True)
    first.process.wait(PATIENCE)
    job = start(user, started, program, TORPOR, "restore", "latest")
    job.runs()
    return job


@pytest.mark.parametrize("way", ["undisturbed", "run", "woken"])
def test_its_shell_sees_it_stop_itself(as_user: User, started: list[Any], program: Path, way: str) -> None:
    """Whatever stops the job alone, and whoever continues it: the job, its launcher or both."""
    prefix = RUN if way == "run" else ()
    begin = woken if way == "woken" else start
    job = begin(as_user, started, program, *prefix, program, "meek")
    job.runs()
    own = ([job.pid, *below(job.pid)])[-1]
    # The kernel drops the terminal's signals for a group that no shell can continue any more: setpgid(2).
    for number in [signal.SIGSTOP] if way == "woken" else [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN]:
        alone = [(os.kill, own)] if number == signal.SIGSTOP else []
        for send, pid in [*alone, (os.kill, job.pid), (os.killpg, job.pid)]:
            os.kill(own, number)
            assert job.change() == ("stopped", number)
            assert state_of(own) == "T"
            send(pid, signal.SIGCONT)
            assert job.change() == ("continued", signal.SIGCONT)
            job.settles()
    os.killpg(job.pid, signal.SIGSTOP)  # its launcher, and what is between them
    assert job.change() == ("stopped", signal.SIGSTOP)
    os.kill(job.pid, signal.SIGCONT)
    assert job.change() == ("continued", signal.SIGCONT)
    job.settles()
    os.kill(own, signal.SIGSTOP)
    assert job.change() == ("stopped", signal.SIGSTOP)
    os.kill(own, signal.SIGKILL)
    changes = [job.change()]
    while changes[-1][0] != "ended":
        changes.append(job.change())
    assert changes[-1] == ("ended", -signal.SIGKILL)


def test_a_woken_job_has_no_shell_above_but_its_launchers(as_user: User, started: list[Any], program: Path) -> None:
    """It stops by Ctrl-Z all the same, and all of it hears what is sent to the launcher's group, as by Ctrl-C or
    timeout(1): a shell waits for its child, which must hear it as well."""
    job = woken(as_user, started, program, "sh", "-c", '"$0" meek; exit 5', program)
    for send in os.kill, os.killpg:
        for number in signal.SIGTSTP, signal.SIGTTOU:
            send(job.pid, number)
            assert job.change()[0] == "stopped"
            send(job.pid, signal.SIGCONT)
            assert job.change() == ("continued", signal.SIGCONT)
            job.settles()
    os.killpg(job.pid, signal.SIGTERM)
    assert job.change() == ("ended", -signal.SIGTERM)


STARTS = {
    "start": "sys.exit(torpor.start(sys.argv[1:]).wait())",
    "below_init": "sys.exit(subprocess.run(torpor.below_init(sys.argv[1:], os.environ)).returncode)",
}


@pytest.mark.parametrize("way", STARTS)
def test_a_program_with_a_job_in_its_group(as_user: User, started: list[Any], program: Path, way: str) -> None:
    """What is sent to the group, the job hears once; what is sent to its torpor-init, too."""
    ignoring = "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGTERM)]"
    script = f"import os, signal, subprocess, sys, torpor; {ignoring}; {STARTS[way]}"
    above = start(as_user, started, program, sys.executable, "-c", script, program, "notes")
    above.runs()
    init, job = below(above.pid)
    expected: list[int] = []

    def heard() -> bool:
        return len(above.signals()) >= len(expected)

    for number in signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT:
        for send, pid in (os.killpg, above.pid), (os.kill, init):
            send(pid, number)
            expected.append(number)
            wait_until(heard, "it is heard")
            wait_until(partial(_sleeps, init), "nothing more is passed on")
            os.kill(job, signal.SIGUSR2)
            expected.append(signal.SIGUSR2)
            wait_until(heard, "it is heard")
            assert above.signals() == expected
    (as_user.tmp / "end").touch()
    assert above.change() == ("ended", 7)


def test_it_ends_as_the_job() -> None:
    """By every signal that ends a process."""
    ends = """
import os, sys
from torpor.cli.common import exit_as
for number in map(int, sys.argv[1:]):
    pid = os.fork()
    if pid == 0:
        os._exit(exit_as(-number))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", ends, *map(str, DEADLY)], text=True, capture_output=True, check=True)
    assert [int(line) for line in done.stdout.split()] == [-number for number in DEADLY], done.stderr
