"""The command line on real processes: what it prints, what becomes of them, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.harness import wait_until
from tests.hosts import WITHOUT_USER_NAMESPACES, within
from tests.users import BIN, User
from torpor import procfs

# Counts into a file until it is told to end: by a file that appears, or by SIGUSR1, to which it answers 3.
PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
log = open("count", "a", buffering=1)
count = 0
while not os.path.exists("end"):
    count += 1
    print(os.getpid(), count, file=log)
    time.sleep(0.01)
sys.exit(7)
"""


class Counting:
    """A process that counts, and its user's command line."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.log = user.tmp / "count"
        self.process: subprocess.Popen[Any] = user.popen(
            [BIN / "python", "-c", PROGRAM],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.goes_on()

    @property
    def pid(self) -> str:
        return str(self.process.pid)

    def count(self) -> int:
        """The last number it wrote; 0 before the first."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return int(lines[-1].split()[1]) if lines and len(lines[-1].split()) == 2 else 0

    def goes_on(self) -> None:
        """Wait until it has counted further than now."""
        now = self.count()
        wait_until(lambda: self.count() > now + 1, "it counts")

    def torpor(self, *arguments: str, code: int = 0) -> str:
        done = self.user.run([BIN / "torpor", *arguments])
        assert done.returncode == code, done.stderr
        return done.stdout.strip()

    def saved_and_killed(self) -> str:
        snapshot = self.torpor("checkpoint", self.pid, "--then", "kill")
        assert self.process.wait(100) == -signal.SIGKILL
        return snapshot

    def woken(self) -> tuple[int, int]:
        """The PID that stands for the woken job, and that of its process, as they are seen from here."""
        job = next(
            pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if str(self.log) in opened(pid).values()
        )
        top = job
        while Path(f"/proc/{(above := procfs.stat(top).ppid)}/comm").read_text() == "torpor-init\n":
            top = above
        return top, job

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def opened(pid: int) -> dict[int, str]:
    """What the first descriptors of a process lead to; nothing once it has ended."""
    found = {}
    for number in range(64):
        with suppress(OSError):
            found[number] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


@pytest.fixture
def counting(as_user: User) -> Iterator[Counting]:
    counting = Counting(as_user)
    yield counting
    counting.end()


def test_it_runs_on(counting: Counting) -> None:
    snapshot = counting.torpor("checkpoint", counting.pid, "--tag", "project=tides")
    assert len(snapshot.split()) == 1
    counting.goes_on()
    (listed,) = json.loads(counting.torpor("ls", "--json"))
    assert (listed["id"], listed["tags"]) == (snapshot, {"project": "tides"})
    shown = json.loads(counting.torpor("show", "latest", "--json"))
    assert [process["pid"] for process in shown["processes"]] == [int(counting.pid)]
    assert counting.torpor("verify", snapshot) == "sound"


def test_it_stops(counting: Counting) -> None:
    counting.torpor("checkpoint", counting.pid, "--then", "stop")
    state = Path(f"/proc/{counting.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    assert state == "T"
    counting.process.send_signal(signal.SIGCONT)
    counting.goes_on()


def test_a_job_with_all_processors_of_its_allocation_has_all_of_the_next_one(counting: Counting) -> None:
    every = os.sched_getaffinity(0)
    if len(every) == 1:
        pytest.skip("this host has one processor")
    os.sched_setaffinity(0, {min(every)})
    try:
        os.sched_setaffinity(counting.process.pid, {min(every)})
        counting.saved_and_killed()
    finally:
        os.sched_setaffinity(0, every)
    restored = counting.user.popen([BIN / "torpor", "restore", "latest"])
    counting.goes_on()
    assert os.sched_getaffinity(counting.woken()[1]) == every
    (counting.user.tmp / "end").touch()
    assert restored.wait(100) == 7


def test_a_foreground_restore_exits_as_the_job(counting: Counting) -> None:
    snapshot = counting.saved_and_killed()
    restored = counting.user.popen([BIN / "torpor", "restore", snapshot])
    counting.goes_on()
    pids = {line.split()[0] for line in counting.log.read_text().splitlines()}
    assert pids == {counting.pid}
    (counting.user.tmp / "end").touch()
    assert restored.wait(100) == 7


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 3), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_foreground_restore_passes_signals_on(counting: Counting, number: signal.Signals, status: int) -> None:
    counting.saved_and_killed()
    restored = counting.user.popen([BIN / "torpor", "restore", "latest"])
    counting.goes_on()
    restored.send_signal(number)
    assert restored.wait(100) == status


def test_a_detached_job_lives_as_long_as_its_pid(counting: Counting) -> None:
    counting.saved_and_killed()
    pid = int(counting.torpor("restore", "latest", "--detach"))
    pidfd = os.pidfd_open(pid)
    counting.goes_on()
    counting.torpor("checkpoint", str(pid), "--then", "run")  # a woken job can be saved again, by that PID
    counting.goes_on()
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the job ends")
    os.close(pidfd)


def test_a_daemon_whose_parent_is_the_hosts_init(as_user: User) -> None:
    begin = '"$0" -c "$1" <&- >/dev/null 2>&1 & echo $!'
    daemon = int(as_user.run(["/bin/sh", "-c", begin, BIN / "python", PROGRAM], check=True).stdout)
    log = as_user.tmp / "count"
    wait_until(lambda: procfs.stat(daemon).ppid == 1 and log.exists() and log.stat().st_size, "it counts below init")
    as_user.run([BIN / "torpor", "checkpoint", str(daemon), "--then", "kill"], check=True)
    wait_until(lambda: not os.path.exists(f"/proc/{daemon}"), "its end")
    counted = log.stat().st_size
    pid = int(as_user.run([BIN / "torpor", "restore", "latest", "--detach"], check=True).stdout)
    try:
        wait_until(lambda: log.stat().st_size > counted, "it goes on")
    finally:
        (as_user.tmp / "end").touch()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the woken one")


@pytest.mark.parametrize(
    "closed",
    [*(pytest.param(one, marks=pytest.mark.soak) for one in ("<&-", "2>&-")), ">&-", "<&- 2>&-", "<&- >&- 2>&-"],
)
def test_closed_standard_descriptors_are_nobodys(counting: Counting, closed: str) -> None:
    shell = f"exec {BIN}/torpor checkpoint {counting.pid} --then kill {closed}"
    done = counting.user.run(["/bin/sh", "-c", shell])
    assert done.returncode == 0, done.stderr
    assert counting.process.wait(100) == -signal.SIGKILL
    done = counting.user.run(["/bin/sh", "-c", f"exec {BIN}/torpor restore --detach latest {closed}"])
    assert done.returncode == 0, done.stderr
    counting.goes_on()
    pid, job = counting.woken()
    try:
        assert done.stdout == ("" if ">&-" in closed.split() else f"{pid}\n")
        standard = [opened(job)[number] for number in (0, 1, 2)]
        assert standard == ["/dev/null"] * 3
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"), "its end")


def test_output_that_cannot_be_written_is_an_ordinary_error(counting: Counting) -> None:
    for command in (f"checkpoint {counting.pid}", "ls", "doctor"):
        done = counting.user.run(["/bin/sh", "-c", f"exec {BIN}/torpor {command} >/dev/full"])
        assert (done.returncode, done.stderr) == (
            1,
            "torpor: standard output cannot be written: No space left on device\n",
        ), command
        done = counting.user.run(["/bin/sh", "-c", f"exec {BIN}/torpor {command} >/dev/null 2>/dev/full"])
        assert done.returncode == 0, command
    done = counting.user.run(["/bin/sh", "-c", f"exec {BIN}/torpor show nothing 2>/dev/full"])
    assert done.returncode == 11


def test_explaining_starts_nothing(counting: Counting) -> None:
    snapshot = counting.saved_and_killed()
    before = counting.count()
    told = counting.torpor("restore", "--explain", snapshot)
    assert f"process {counting.pid} " in told
    assert counting.count() == before


def test_what_cannot_be_saved(counting: Counting) -> None:
    counting.torpor("checkpoint", str(2**22), code=11)
    if counting.user.uid != os.geteuid():
        with subprocess.Popen(["sleep", "1000"]) as anothers:
            counting.torpor("checkpoint", str(anothers.pid), code=12)
            anothers.kill()
    refused = counting.torpor("checkpoint", str(2**22), "--json", code=11)
    assert json.loads(refused)["error"]["kind"] == "NotFound"
    counting.goes_on()


@pytest.mark.parametrize(("script", "status"), [("exit 5", 5), ("kill -TERM $$", -signal.SIGTERM)])
def test_run_exits_as_the_command(as_user: User, script: str, status: int) -> None:
    assert as_user.run([BIN / "torpor", "run", "--", "sh", "-c", script]).returncode == status


def test_run_passes_on_words_input_and_output(as_user: User) -> None:
    done = as_user.run([BIN / "torpor", "run", "sh", "-c", 'cat; echo "$@" >&2', "sh", "--every", "-v"], input="in")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in", "--every -v\n")


def test_run_of_no_program(as_user: User) -> None:
    done = as_user.run([BIN / "torpor", "run", "no-such-program"])
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr.startswith("torpor: there is no program 'no-such-program'")


def test_run_of_a_file_that_is_no_program(as_user: User) -> None:
    (as_user.tmp / "script.py").write_text("print()")
    done = as_user.run([BIN / "torpor", "run", "--", "./script.py"])
    assert done.returncode == 11
    assert done.stderr.startswith("torpor: './script.py' may not be executed; `chmod +x` it")


def test_run_of_a_script_whose_interpreter_is_missing(as_user: User) -> None:
    script = as_user.tmp / "script.py"
    script.write_text("#! /nonesuch/python -u\nprint()\n")
    script.chmod(0o755)
    done = as_user.run([BIN / "torpor", "run", "--", "./script.py"])
    assert done.returncode == 11
    assert "there is no '/nonesuch/python', which './script.py' names as its interpreter" in done.stderr


def test_a_checkpoint_of_those_that_it_runs_below(as_user: User) -> None:
    done = as_user.run(["sh", "-c", f"{BIN}/torpor checkpoint $$; echo $?"])
    assert done.stdout == "10\n"
    assert "this command runs below it, and would be frozen with it" in done.stderr


def test_run_saves_regularly(as_user: User) -> None:
    running = as_user.popen(
        [BIN / "torpor", "run", "--every", "1s", "--keep-last", "1", "--", BIN / "python", "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    seen: set[str] = set()

    def saved() -> bool:
        infos = json.loads(as_user.run([BIN / "torpor", "ls", "--json"], check=True).stdout)
        assert all(info["summary"].startswith("python -c (PID ") for info in infos)
        seen.update(info["id"] for info in infos)
        return len(seen) >= 3 and len(infos) == 1

    wait_until(saved, "three snapshots, of which one is left")
    running.send_signal(signal.SIGUSR1)
    _, told = running.communicate(timeout=100)
    note = "torpor: note: of the snapshots of this run only the newest 1 stay (--keep-last)\n"
    assert (running.returncode, told) == (3, note)
    log = as_user.tmp / "count"
    lines = log.read_text().count("\n")
    restored = as_user.popen([BIN / "torpor", "restore", "latest"])
    wait_until(lambda: log.read_text().count("\n") > lines, "the saved job goes on")
    (as_user.tmp / "end").touch()
    assert restored.wait(100) == 7


def listed(user: User) -> dict[int, dict[str, Any]]:
    """What `torpor ps` tells of the user's jobs, by PID."""
    done = user.run([BIN / "torpor", "ps", "--json"], check=True)
    return {job["pid"]: job for job in json.loads(done.stdout) if job["uid"] == user.uid}


def test_ps(as_user: User) -> None:
    """A job of `torpor run`, with its saves; and one that was woken, in whichever way."""
    command: list[str | Path] = [
        BIN / "torpor",
        "run",
        "--every",
        "1h",
        "--name",
        "tides",
        "--store",
        "saves",
        "--",
        BIN / "python",
        "-c",
        PROGRAM,
    ]
    running = as_user.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def listed_here() -> dict[str, Any] | None:
        found = [job for job in listed(as_user).values() if job["store"] == str(as_user.tmp / "saves")]
        return found[0] if found else None

    wait_until((as_user.tmp / "count").exists, "it runs, and answers to signals")
    assert wait_until(listed_here, "it is listed")["snapshots"] == []
    snapshot = as_user.run([BIN / "torpor", "checkpoint", "tides", "--store", "saves"], check=True).stdout.strip()
    job = wait_until(listed_here, "it is listed with its save")
    assert job["snapshots"] == [snapshot]
    assert (job["name"], job["given_name"], job["how"]) == ("python -c", "tides", "run")
    assert job["next_ns"] == job["saved_ns"] + 3600 * 10**9
    assert job["began_ns"] < job["saved_ns"]
    words = as_user.run([BIN / "torpor", "ps"], check=True).stdout
    assert f"{job['pid']} " in words
    assert "tides: python -c" in words
    running.send_signal(signal.SIGUSR1)
    assert running.wait(100) == 3
    assert job["pid"] not in listed(as_user)
    as_user.run([BIN / "torpor", "restore", "tides", "--store", "saves", "--detach"], check=True)

    def woken() -> list[dict[str, Any]]:
        """It has begun when it began first, by a clock that the system counts in ticks."""
        return [one for one in listed(as_user).values() if abs(one["began_ns"] - job["began_ns"]) < 10**8]

    try:
        assert [(one["how"], one["name"]) for one in woken()] == [("woken", "python -c")]
    finally:
        (as_user.tmp / "end").touch()
    wait_until(lambda: not woken(), "it has ended")


def test_a_job_goes_on_from_a_file(counting: Counting) -> None:
    counting.torpor("checkpoint", counting.pid, "--then", "kill")
    counting.torpor("export", "latest", "job.torpor")
    counting.torpor("import", "job.torpor", "--store", "elsewhere")
    count = counting.count()
    woken = counting.user.popen([BIN / "torpor", "restore", "latest", "--store", "elsewhere"])
    wait_until(lambda: counting.count() > count, "it counts on")
    (counting.user.tmp / "end").touch()
    assert woken.wait(100) == 7


def test_a_host_without_capsules_runs(ordinary_account: User) -> None:
    command = within(WITHOUT_USER_NAMESPACES, BIN / "torpor", "run", "--", "sh", "-c", "exit 5")
    done = ordinary_account.run(command)
    assert done.returncode == 5
    assert done.stderr == ""


def test_a_host_without_capsules_wakes_in_none(ordinary_account: User) -> None:
    counting = Counting(ordinary_account)
    try:
        snapshot = counting.saved_and_killed()
    finally:
        counting.end()
    command = within(WITHOUT_USER_NAMESPACES, BIN / "torpor", "restore", snapshot, "--as", "capsule")
    done = ordinary_account.run(command)
    assert (done.returncode, done.stdout) == (10, "")
    assert "torpor doctor" in done.stderr


PUT_ASIDE = """
import os, sys, time
print("to the log", flush=True)
open("pid", "w").write(str(os.getpid()))
while not os.path.exists("end"):
    time.sleep(0.01)
os.write(3, b"to where standard output went\\n")
"""


def test_a_copy_of_standard_output_that_was_put_aside(as_user: User) -> None:
    """As after ``exec 3>&1 >log``, or in ipykernel: it is known by the shell that started the job with it."""
    job = f"exec 3>&1 >log; exec {BIN / 'python'} -c '{PUT_ASIDE}'"
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    shell = as_user.popen(["sh", "-c", 'sh -c "$0"; :', job], stdout=subprocess.PIPE, **quiet)
    try:
        pid = as_user.tmp / "pid"
        wait_until(lambda: (pid.exists() and pid.read_text()) or None, "it runs")
        done = as_user.run([BIN / "torpor", "checkpoint", pid.read_text(), "--then", "kill"])
        assert done.returncode == 0, done.stderr
        shell.wait(100)
    finally:
        shell.kill()
        shell.communicate()
    (as_user.tmp / "end").touch()
    woken = as_user.run([BIN / "torpor", "restore", "latest"])
    assert (woken.returncode, woken.stdout) == (0, "to where standard output went\n"), woken.stderr
    assert (as_user.tmp / "log").read_text() == "to the log\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes buffers that large")
def test_a_buffer_above_the_users_limit_comes_back_as_large_as_it_may_be(ordinary_account: User) -> None:
    given, _ = pair = socket.socketpair(socket.AF_UNIX)
    given.setsockopt(socket.SOL_SOCKET, 32, 1 << 28)  # SO_SNDBUFFORCE
    size = given.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    program = f"import socket; given = socket.socket(fileno={given.fileno()})\n{PROGRAM}".replace(
        "sys.exit(7)", "print(given.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), file=log)"
    )
    null: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = ordinary_account.popen([BIN / "python", "-c", program], pass_fds=[one.fileno() for one in pair], **null)
    try:
        for one in pair:
            one.close()
        wait_until((ordinary_account.tmp / "count").exists, "it runs")
        saved = ordinary_account.run([BIN / "torpor", "checkpoint", str(job.pid), "--then", "kill"])
        assert saved.returncode == 0, saved.stderr
    finally:
        job.kill()
        job.wait()
    (ordinary_account.tmp / "end").touch()
    woken = ordinary_account.run([BIN / "torpor", "restore", "latest"])
    assert woken.returncode == 0, woken.stderr
    now = int((ordinary_account.tmp / "count").read_text().splitlines()[-1])
    assert 0 < now < size
    for said in (saved.stderr, woken.stderr):
        assert f"made {size} bytes large, and comes back with {now}: net.core.wmem_max" in said
