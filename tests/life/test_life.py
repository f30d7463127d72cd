"""A job that is started lives as it would without Torpor: what it is, whom it hears, and how its shell handles it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.harness import PATIENCE, wait_until
from tests.integration.test_cli_terminal import Terminal
from tests.users import BIN, User

TORPOR = str(BIN / "torpor")
PYTHON = str(BIN / "python")

# What a process can find out about itself, less what no two processes have alike.
WHO_AM_I = """
import os, resource, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("SigIgn", "SigBlk", "Uid", "Gid", "Groups", "CapEff", "CapBnd", "Umask"):
    print(name, status[name].split())
print(len(status["NSpid"].split()), [os.readlink(one.path) for one in sorted(os.scandir("/proc/self/ns"), key=str)])
print(os.getpgrp() == int(sys.argv[1]), os.getsid(0) == int(sys.argv[2]), os.getcwd(), os.nice(0))
print(sorted(one for one in os.environ.items() if one[0] != "_"), sorted(map(int, os.listdir("/proc/self/fd"))))
print([resource.getrlimit(number) for number in range(16)], os.sched_getaffinity(0), os.sched_getscheduler(0))
print(open("/proc/self/oom_score_adj").read(), open("/proc/self/personality").read(), open("/proc/self/cgroup").read())
"""
SHELL = """
session=$(ps -o sid= -p $$); exec 7</dev/null
{0} "$0" -c "$1" $$ $session; {0} grep SigIgn /proc/self/status; true
"""


@pytest.mark.parametrize(
    "surroundings",
    ["true", "trap '' HUP INT USR2", "trap '' PIPE", "ulimit -Sn 77", "umask 027; nice -n 5 true", "unset LANG"],
)
def test_it_is_what_it_would_be(as_user: User, surroundings: str) -> None:
    def seen(prefix: str) -> str:
        script = surroundings + SHELL.format(prefix)
        return as_user.run(["bash", "-c", script, PYTHON, WHO_AM_I], check=True).stdout

    alone = seen("")
    assert alone
    assert seen(f"{TORPOR} run --") == alone


def test_what_is_blocked_stays_blocked(as_user: User) -> None:
    blocked = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM]);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [TORPOR, "run", "--", "grep", "SigBlk", "/proc/self/status"]
    done = as_user.run([PYTHON, "-c", blocked, *command], check=True)
    mask = 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGALRM - 1
    assert int(done.stdout.split()[1], 16) == mask


def test_children_that_nobody_waits_for(as_user: User) -> None:
    """With SIGCHLD ignored the kernel reaps: torpor-init and the command line must not be told less for it."""
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [TORPOR, "run", "--", PYTHON, "-c", "import signal; exit(3 + signal.getsignal(signal.SIGCHLD))"]
    assert as_user.run([PYTHON, "-c", ignoring, *command], timeout=PATIENCE).returncode == 3 + signal.SIG_IGN


@pytest.mark.parametrize(
    ("script", "status"), [("echo with $1 >out", 0), ("#!/no/such/interpreter", 11), ("#!/bin/sh\nexit 4", 4)]
)
def test_scripts_are_executed_as_a_shell_does(as_user: User, script: str, status: int) -> None:
    path = as_user.tmp / "script"
    path.write_text(f"{script}\n")
    as_user.own(path).chmod(0o755)
    done = as_user.run([TORPOR, "run", "--", "./script", "words"])
    assert done.returncode == status, done.stderr  # 11: as where there is no such program
    if status == 0:
        assert (as_user.tmp / "out").read_text() == "with words\n"


# Notes what it hears, and says so.
HEARS = """
import os, signal, sys, time
log = open("heard", "a", buffering=1)
for number in map(int, sys.argv[1:]):
    # Not by print(): a signal that comes right after the write(2) of another one's handler would enter the file again.
    signal.signal(number, lambda number, _: os.write(log.fileno(), b"%d\\n" % number))
print("ready", os.getpid(), os.getppid(), file=log)
while not os.path.exists("end"):
    open("beat", "w").close()
    time.sleep(0.01)
"""


class Heard:
    """A job that notes the signals that it hears."""

    def __init__(self, user: User, *prefix: str, signals: tuple[int, ...], **options: Any) -> None:
        self.user = user
        self.log = user.tmp / "heard"
        self.process: subprocess.Popen[Any] = user.popen(
            [*prefix, PYTHON, "-c", HEARS, *map(str, signals)], stdin=subprocess.DEVNULL, **options
        )
        wait_until(lambda: bool(self.lines()), "the job is ready")

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def numbers(self) -> list[int]:
        return [int(line) for line in self.lines() if line.isdigit()]

    @property
    def pid(self) -> int:
        return int(self.lines()[0].split()[1])

    def end(self) -> None:
        (self.user.tmp / "end").touch()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def end(as_user: User) -> Iterator[list[Heard]]:
    jobs: list[Heard] = []
    yield jobs
    for job in jobs:
        job.end()


@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_is_heard_once(as_user: User, end: list[Heard], to_group: bool) -> None:
    """Whether it is sent to the launcher, as by ``kill $!``, or to its group, as by ``kill %1`` or timeout(1)."""
    sent = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGCONT, signal.SIGWINCH]
    job = Heard(as_user, TORPOR, "run", "--", signals=(*sent, signal.SIGUSR2))
    end.append(job)
    expected: list[int] = []
    for number in [*sent, signal.SIGUSR2] * 5:
        to_all = to_group and number != signal.SIGUSR2
        (os.killpg if to_all else os.kill)(job.process.pid, number)
        expected.append(number)
        wait_until(lambda: len(job.numbers()) >= len(expected), f"{number} is heard")
    assert job.numbers() == expected


@pytest.mark.parametrize("way", ["run", "restore"])
def test_nohup(as_user: User, end: list[Heard], way: str) -> None:
    """SIGHUP ends neither the launcher nor the job, and is not handed on."""
    if way == "run":
        job = Heard(as_user, "nohup", TORPOR, "run", "--", signals=(signal.SIGUSR1,), stderr=subprocess.DEVNULL)
        end.append(job)
    else:
        first = Heard(as_user, signals=(signal.SIGUSR1,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        as_user.run([TORPOR, "checkpoint", str(first.process.pid), "--then", "kill"], check=True)
        first.process.wait()
        (as_user.tmp / "beat").unlink()
        job = Heard.__new__(Heard)
        job.user, job.log = as_user, as_user.tmp / "heard"
        job.process = as_user.popen(
            ["nohup", TORPOR, "restore", "latest"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end.append(job)
    beat = as_user.tmp / "beat"
    wait_until(beat.exists, "it runs: its launcher hears signals")
    os.kill(job.process.pid, signal.SIGHUP)
    os.killpg(job.process.pid, signal.SIGHUP)
    os.kill(job.process.pid, signal.SIGUSR1)
    wait_until(lambda: job.numbers() == [signal.SIGUSR1], "it hears what comes later")
    job.end()
    assert job.process.returncode == 0


ENDS = "until [ -e go ]; do touch beat; sleep 0.01; done; exit 7"


@pytest.mark.parametrize(
    "command", [["sh", "-c", ENDS], [TORPOR, "run", "--", "sh", "-c", ENDS]], ids=["job", "nested"]
)
def test_the_command_that_stands_for_a_job_is_saved_as_the_job(as_user: User, command: list[str]) -> None:
    """Its PID is what a shell has in $!. A job may have jobs of its own, with their commands."""
    beat = as_user.tmp / "beat"
    wake = [TORPOR, "restore", "latest", "--as", "native" if as_user.is_root else "capsule"]
    process = _running(as_user, [TORPOR, "run", "--", *command])
    try:
        for _ in range(2):
            wait_until(beat.exists, "it runs")
            as_user.run([TORPOR, "checkpoint", str(process.pid), "--then", "kill"], check=True)
            assert process.wait(PATIENCE) == -signal.SIGKILL
            shown = as_user.run([TORPOR, "show", "latest"], check=True).stdout
            assert ("torpor-init" in shown) == (command[0] == TORPOR)
            beat.unlink()
            process = _running(as_user, wake)
        wait_until(beat.exists, "it runs")
        (as_user.tmp / "go").touch()
        assert process.wait(PATIENCE) == 7
    finally:
        process.kill()
        process.wait()


def _running(user: User, command: list[str]) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    process: subprocess.Popen[bytes] = user.popen(command, stdin=null, stdout=null, stderr=null)
    return process


def test_two_jobs_have_two_pids(as_user: User) -> None:
    pids = {as_user.run([TORPOR, "run", "--", "sh", "-c", "echo $$"], check=True).stdout for _ in range(3)}
    assert len(pids) == 3


# --------------------------------------------------------------------------------------------------- on a terminal

# In C: Python would run a handler that comes between its last look and read(2) only when read returns.
GROUPS = r"""
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupts;

static void goes_on(int number)
{
	if (write(1, "goes on\n", 8) != 8)
		_exit(number);
}

static void interrupted(int number)
{
	char told[] = "interrupt 0\n";

	told[10] += ++interrupts;
	if (write(1, told, 12) != 12)
		_exit(number);
}

int main(void)
{
	char line[80];
	ssize_t size;

	printf("in front %d %d %d\n", tcgetpgrp(0) == getpgrp(), getpgrp() > 0, getsid(0) > 0);
	tcsetpgrp(0, getpgrp());
	signal(SIGCONT, goes_on);
	signal(SIGINT, interrupted);
	puts("ready");
	fflush(stdout);
	while ((size = read(0, line, sizeof(line) - 1)) > 0) {
		line[size] = 0;
		printf("read %s", line);
		fflush(stdout);
	}
	return 0;
}
"""


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def _shell(user: User, opened: list[Terminal]) -> Terminal:
    terminal = Terminal(user, "/bin/bash", "--norc", "--noprofile", "--noediting", "-i")
    opened.append(terminal)
    terminal.type("PS1='[''ok] '\n")
    terminal.shows("[ok] ")
    return terminal


@pytest.mark.parametrize("prefix", ["", f"{TORPOR} run -- "])
def test_job_control(as_user: User, terminals: list[Terminal], prefix: str) -> None:
    program = as_user.tmp / "groups"
    subprocess.run(["gcc", "-Wall", "-Wextra", "-x", "c", "-", "-o", program], input=GROUPS, text=True, check=True)
    program.chmod(0o755)
    shell = _shell(as_user, terminals)
    shell.type(f"{prefix}./groups\n")
    shell.shows("in front 1 1 1\r\nready\r\n")
    shell.type("one\n")
    shell.shows("read one\r\n")
    shell.type("\x03")
    shell.shows("interrupt 1\r\n")
    for _ in range(2):
        shell.type("\x1a")
        shell.shows("Stopped")
        shell.shows("[ok] ")
        shell.type("fg\n")
        shell.shows("goes on\r\n")
    shell.type("two\n")
    shell.shows("read two\r\n")
    shell.type("\x03")
    shell.shows("interrupt 2\r\n")
    shell.type("\x1a")
    shell.shows("Stopped")
    shell.type("bg\n")
    shell.shows("goes on\r\n")
    shell.type("until jobs -s | grep -q groups; do :; done\n")  # it reads, in the background
    shell.type("kill %1; while wait %1; s=$?; [ $s != 143 ]; do :; done; echo status $s\n")
    shell.shows("status 143\r\n")
    shell.type("echo left:$(jobs):\n")
    shell.shows("left::\r\n")


@pytest.mark.parametrize("prefix", ["", f"{TORPOR} run -- "])
def test_a_shell_continues_a_job_that_has_stopped_itself(as_user: User, terminals: list[Terminal], prefix: str) -> None:
    shell = _shell(as_user, terminals)
    shell.type(f'{prefix}sh -c \'kill -STOP $$; echo "ba"ck; kill -TSTP $$; echo "a"gain; exit 4\'\n')
    shell.shows("Stopped")
    shell.type("jobs -s | wc -l\n")
    shell.shows("1\r\n")
    shell.type("fg\n")
    shell.shows("back\r\n")
    shell.shows("Stopped")
    shell.type("bg\n")
    shell.shows("again\r\n")
    shell.type("wait; echo left:$(jobs):\n")
    shell.shows("left::\r\n")


def test_a_job_in_the_background_outlives_its_terminal(as_user: User, terminals: list[Terminal]) -> None:
    shell = _shell(as_user, terminals)
    counting = "import os, time\nwhile not os.path.exists('end'): open('beat', 'w').close(); time.sleep(0.01)"
    (as_user.tmp / "beat.py").write_text(f"{counting}\nopen('ended', 'w')")
    shell.type(f"nohup {TORPOR} run -- {PYTHON} beat.py >/dev/null 2>&1 &\n")
    beat = as_user.tmp / "beat"
    wait_until(beat.exists, "it runs")
    shell.hang_up()
    shell.process.wait(PATIENCE)
    beat.unlink()
    wait_until(beat.exists, "it goes on")
    (as_user.tmp / "end").touch()
    wait_until((as_user.tmp / "ended").exists, "it ends by itself")
