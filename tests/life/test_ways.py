"""The ways to wake a job: natively, with all its user's rights, or in a capsule, and what is said of it."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.harness import PATIENCE, wait_until
from tests.conformance.short_walks import LOW, SHORT_WALK, count_from, short_rounds
from tests.hosts import DEFAULT_PROFILE, within
from tests.users import BIN, User, granting
from torpor import processes
from torpor.objects.process.birth_order import MAX_PID

TORPOR = str(BIN / "torpor")

# When told to, tells what it is, and the PID of a child of its.
JOB = """
import os, subprocess, threading, time
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
below = subprocess.Popen(["sleep", "1000"])
def who():
    tids = sorted(os.listdir("/proc/self/task"))  # listed as they were born
    return os.getppid(), os.getsid(0), os.getpgrp(), below.pid, os.readlink("/proc/self/exe"), tids
ids = who()
with open("job.pid", "w") as file:
    print(os.getpid(), file=file)
with open("ready.new", "w") as ready:
    print(os.getpid(), ids, None, file=ready, sep="\\n")
os.rename("ready.new", "ready")
while not os.path.exists("tell"):
    time.sleep(0.01)
namespaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt")]
child = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
group = int(open("group").read())
try:
    os.chown("ready", -1, group)
    changed = os.stat("ready").st_gid == group
except OSError as error:
    changed = error.strerror
with open("told.new", "w") as told:
    capabilities = [line for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff", "CapAmb"))]
    print(os.getpid(), child, sorted(os.getgroups()), changed, *namespaces, sep="\\n", file=told)
    print(*(line.split()[1] for line in capabilities), file=told)
    print(who(), below.poll(), file=told, sep="\\n")
below.kill()
os.rename("told.new", "told")
"""
AMBIENT = ("--inh-caps=+checkpoint_restore", "--ambient-caps=+checkpoint_restore")


class Sleeper:
    """A job that was saved and killed, of a user who is in a second group; and the command line of who saved it.

    Args:
        user: whose job it is.
        group: the user's second one.
        roots: root's own store: root saves the job there. None: the user does.
    """

    def __init__(self, user: User, group: int, roots: Path | None = None) -> None:
        self.user, self.group, self._roots = user, group, roots
        (user.tmp / "group").write_text(str(group))
        process = subprocess.Popen(
            # All that it refers to by its PID, its parent and its session's leader, ends with it.
            self._as_user(TORPOR, "run", "--", str(BIN / "python"), "-c", JOB),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._options(),
        )
        try:
            wait_until((user.tmp / "ready").exists, "it runs")
            self.pid, *self.told_before = (user.tmp / "ready").read_text().splitlines()
            self.torpor("checkpoint", self.pid, "--then", "kill")
            assert process.wait(PATIENCE) == -signal.SIGKILL
        finally:
            process.kill()
            process.wait()

    def torpor(self, *words: str, before: Sequence[str] = (), privileges: tuple[str, ...] = (), code: int = 0) -> str:
        """What the command says; what it notes on the way comes last."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [TORPOR, *words, "--store", str(self._roots)]
            if self._roots
            else [*before, *self._as_user(TORPOR, *words, privileges=privileges)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
            **self._options(),
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def woken(self, *words: str, before: Sequence[str] = (), privileges: tuple[str, ...] = ()) -> tuple[list[str], str]:
        """What the job tells of itself, and what the command says."""
        (self.user.tmp / "told").unlink(missing_ok=True)
        (self.user.tmp / "tell").touch()
        said = self.torpor("restore", "latest", *words, before=before, privileges=privileges)
        notes = [line for line in said.splitlines(keepends=True) if "when the kernel reaches its PIDs" not in line]
        return (self.user.tmp / "told").read_text().splitlines(), "".join(notes)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A command that is not waited for."""
        return subprocess.Popen(
            self._as_user(TORPOR, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **self._options(),
        )

    def _as_user(self, *command: str, privileges: tuple[str, ...] = ()) -> list[str]:
        ids = [f"--reuid={self.user.uid}", f"--regid={self.user.gid}", f"--groups={self.user.gid},{self.group}"]
        return ["setpriv", *ids, *privileges, *command]

    def _options(self) -> dict[str, Any]:
        return {"cwd": self.user.tmp, "env": self.user.env, "start_new_session": True}


@pytest.fixture
def sleeper(ordinary_account: User) -> Iterator[Sleeper]:
    yield _sleeper(ordinary_account)


@pytest.fixture
def walked_to(ordinary_account: User) -> Iterator[Sleeper]:
    """A job to whose PIDs a walk is short, also when others take one first."""
    if not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        pytest.skip("nobody says here from where PIDs are counted")
    with short_rounds():
        yield _sleeper(ordinary_account)


def _sleeper(user: User) -> Sleeper:
    if os.geteuid():
        pytest.skip("it takes root to be a user of another group")
    return Sleeper(user, grp.getgrnam("games").gr_gid)


def _own_namespaces() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt")]


def test_a_capsule_loses_groups_and_says_so(sleeper: Sleeper) -> None:
    told, said = sleeper.woken("--as", "capsule")
    assert told[0] == sleeper.pid
    assert told[3] == "Invalid argument"  # a group that is not mapped
    assert told[4] != _own_namespaces()[0]
    assert "torpor: note: it is in a capsule, where it cannot give files to your groups games" in said


@pytest.mark.parametrize("asked", [("--as", "capsule"), ()])
def test_a_capsule_has_the_groups_that_are_granted(sleeper: Sleeper, tmp_path: Path, asked: tuple[str, ...]) -> None:
    """By the very line that the doctor names. Unasked, too: for their sake no walk is gone then."""
    if not shutil.which("newgidmap"):
        pytest.skip("newgidmap (Debian: uidmap) is not installed")
    line = f"{sleeper.user.uid}:{sleeper.group}:1"
    assert line in sleeper.torpor("doctor")
    subgid = tmp_path / "subgid"
    subgid.write_text(line)
    told, said = sleeper.woken(*asked, before=granting(subgid))
    assert (told[0], told[2:4]) == (sleeper.pid, [str(sorted({sleeper.user.gid, sleeper.group})), "True"])
    assert told[4] != _own_namespaces()[0]
    assert set(told[7]) == {"0", " "}
    assert "groups" not in said


def test_a_capsule_says_which_files_name_a_pid(sleeper: Sleeper) -> None:
    _, said = sleeper.woken("--as", "capsule")
    where = sleeper.user.tmp / "job.pid"
    assert (
        f"programs outside do not see its PIDs, and may take its lock files for stale: {where} names {sleeper.pid}\n"
        in said
    )


def test_root_says_which_files_name_a_pid_of_a_users_job(ordinary_account: User, tmp_path: Path) -> None:
    """Files of the user's, found with the user's rights."""
    if os.geteuid():
        pytest.skip("it takes root to wake another user's job")
    job = Sleeper(ordinary_account, grp.getgrnam("games").gr_gid, tmp_path / "store")
    (job.user.tmp / "roots.pid").write_text(job.pid)
    named = job.user.tmp / "job.pid"
    told, said = job.woken("--as", "capsule")
    assert told[2:4] == [str(sorted({job.user.gid, job.group})), "True"], "its groups count"
    assert told[8:] == job.told_before, "its threads and its program, which its user may look at"
    assert said.endswith(f"may take its lock files for stale: {named} names {job.pid}\n")


def test_the_right_to_choose_pids_wakes_natively(sleeper: Sleeper) -> None:
    """CAP_CHECKPOINT_RESTORE alone: no namespace, and the user's groups count."""
    told, said = sleeper.woken(privileges=AMBIENT)
    assert (told[0], told[2:4]) == (sleeper.pid, [str(sorted({sleeper.user.gid, sleeper.group})), "True"])
    assert told[4:7] == _own_namespaces()
    assert set(told[7]) == {"0", " "}, "it has none of the capabilities by which it was woken"
    assert said == ""


@pytest.mark.alone
def test_a_walk_wakes_natively(walked_to: Sleeper) -> None:
    """Without any right: its own PIDs, thread ids and program, no namespace, and the user's groups count."""
    count_from(int(walked_to.pid) - SHORT_WALK)
    told, said = walked_to.woken("--as", "native")
    assert (told[0], told[2:4]) == (walked_to.pid, [str(sorted({walked_to.user.gid, walked_to.group})), "True"])
    assert told[4:7] == _own_namespaces()
    assert set(told[7]) == {"0", " "}
    assert told[8:] == walked_to.told_before
    assert said == ""


@pytest.mark.soak
@pytest.mark.alone
def test_a_walk_in_the_middle_of_others(walked_to: Sleeper) -> None:
    """Others take the numbers meanwhile, again and again: then it is met in the next round, or it is said."""
    others = subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"])
    try:
        count_from(int(walked_to.pid) - SHORT_WALK)
        told, said = walked_to.woken("--as", "best")
    finally:
        others.kill()
        others.wait()
    assert told[0] == walked_to.pid
    if told[4] == _own_namespaces()[0]:
        assert told[3] == "True"
        assert told[8:] == walked_to.told_before
    else:
        assert "in a capsule" in said


@pytest.mark.alone
def test_no_walk_leads_to_a_number_that_another_has(walked_to: Sleeper) -> None:
    count_from(int(walked_to.pid) - 1)
    other = subprocess.Popen(["sleep", "1000"])
    try:
        while other.pid != int(walked_to.pid):  # somebody was faster
            other.kill()
            other.wait()
            count_from(int(walked_to.pid) - 1)
            other = subprocess.Popen(["sleep", "1000"])
        refused = walked_to.torpor("restore", "latest", "--as", "native", code=10)
        assert f"another process, thread or process group has the PID {walked_to.pid}" in refused
        assert "--as=capsule" in refused
        told, said = walked_to.woken()
        assert told[0] == walked_to.pid
        assert "it is in a capsule" in said
    finally:
        other.kill()
        other.wait()


@pytest.mark.alone
def test_a_walk_can_be_given_up(walked_to: Sleeper) -> None:
    """It says how long it takes before it goes; Ctrl-C on the way leaves nothing."""
    highest = Path("/proc/sys/kernel/pid_max")
    most = highest.read_text()
    highest.write_text(str(MAX_PID))
    count_from(int(walked_to.pid) + 100)  # nearly a whole round is before it
    before = set(_processes_of(walked_to.user))
    process = walked_to.start("restore", "latest", "--as", "native")
    try:
        assert process.stderr
        assert b"it is woken when the kernel reaches its PIDs, in about" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        assert process.returncode in (130, -signal.SIGINT)
    finally:
        highest.write_text(most)
        process.kill()
        process.communicate()
    wait_until(lambda: set(_processes_of(walked_to.user)) <= before, "the end of all that it started")
    assert walked_to.torpor("show", "latest")


def _processes_of(user: User) -> list[str]:
    return subprocess.run(["pgrep", "-u", str(user.uid)], capture_output=True, text=True, check=False).stdout.split()


def test_native_with_the_right(sleeper: Sleeper) -> None:
    told, _ = sleeper.woken("--as", "native", privileges=AMBIENT)
    assert told[4:7] == _own_namespaces()


def test_a_capsule_when_asked_for(sleeper: Sleeper) -> None:
    told, _ = sleeper.woken("--as", "capsule", privileges=AMBIENT)
    assert told[4] != _own_namespaces()[0]


def test_children_in_a_capsule_count_from_the_hosts_number(sleeper: Sleeper) -> None:
    """Two woken jobs must not meet in one /tmp/x.$$: their children are numbered like those outside."""
    count_from(LOW)  # the host's numbers do not begin anew meanwhile
    last = int(Path("/proc/loadavg").read_text().split()[-1])
    children = []
    for _ in range(2):
        told, _ = sleeper.woken("--as", "capsule")
        children.append(int(told[1]))
    assert last < children[0] < children[1]


# A container as engines make them: parts of /proc are masked, so that nobody can mount one of a namespace of his own.
CONTAINER = ("unshare", "--map-current-user", "--keep-caps", "--pid", "--fork", "--mount-proc", "sh", "-c")
MASKED = "mount --bind /dev/null /proc/interrupts"
FORBIDDEN = f"{MASKED} && echo 0 >/proc/sys/user/max_user_namespaces"
DROPS = 'exec setpriv --inh-caps=-all --ambient-caps=-all sh -c "$0"'
# It waits in an event loop, and shares a file's position with its child.
ASKED = """
import asyncio, os, socket, sys
ours, theirs = socket.socketpair()
log = open("log", "w+b", buffering=0)
if os.fork() == 0:
    theirs.recv(1)
    log.write(b"together")
    theirs.send(b"!")
    os._exit(0)
theirs.close()
async def main():
    os.mkfifo("question")
    here = os.open("question", os.O_RDWR)
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(here, asked.set)
    with open("ready.new", "w") as ready:
        print(os.getpid(), file=ready)
    os.rename("ready.new", "ready")
    await asked.wait()
    log.write(b"kept ")
    ours.send(b"?")
    ours.recv(1)
    log.write(b"\\n")
    os.rename("log", "answer")
asyncio.run(main())
"""
SAVES = f"""
cat >asked.py <<'END'
{ASKED}END
{TORPOR} run -- {BIN}/python asked.py & supervisor=$!
until [ -e ready ]; do sleep 0.02; done
job=$(cat ready)
{TORPOR} checkpoint $job --then kill || exit
wait $supervisor; [ $? = 137 ]
"""
WAKES = f"""
{TORPOR} restore latest --detach >woken || exit
readlink /proc/$(cat ready)/exe
echo >question
until [ -e answer ]; do sleep 0.02; done
{TORPOR} doctor
"""


def as_it_is(words: str) -> str:
    return words


def under_default_profile(words: str) -> str:
    return shlex.join(within(DEFAULT_PROFILE, "/bin/sh", "-c", words))


@pytest.mark.parametrize(
    ("lacks", "words_in"),
    [(MASKED, as_it_is), (FORBIDDEN, under_default_profile)],
    ids=["masked", "default-profile"],
)
def test_a_job_is_woken_in_a_container_without_capsules(
    ordinary_account: User, lacks: str, words_in: Callable[[str], str]
) -> None:
    """Natively, in another container; also without any namespace, kcmp and pidfd_getfd, as in most containers.

    `torpor run` gives it PIDs that come again.
    """
    for words in (SAVES, WAKES):
        done = ordinary_account.run([*CONTAINER, f"{lacks} && {DROPS}", words_in(words)])
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{os.path.realpath(BIN / 'python')}\n")
    assert "natively only, after a walk" in done.stdout
    assert (ordinary_account.tmp / "answer").read_text() == "kept together\n"


PROCESSES_ONLY = f"mount -t proc -o subset=pid proc /proc && {DROPS}"


def test_a_proc_with_processes_only_is_named(ordinary_account: User) -> None:
    """As units of systemd have it with ProcSubset=pid."""
    words = f"sleep 1000 & exec {TORPOR} checkpoint $!"
    done = ordinary_account.run([*CONTAINER, PROCESSES_ONLY, words])
    assert done.returncode == 12
    assert "this /proc shows processes only (subset=pid); mount a whole one" in done.stderr


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("net", ["--net"]),
        ("uts", ["--uts"]),
        ("user", []),
        ("user", ["--pid", "--fork", "--kill-child", "--mount-proc"]),  # as bubblewrap and rootless containers
    ],
)
def test_a_whole_container_is_not_saved_from_outside(ordinary_account: User, kind: str, options: list[str]) -> None:
    there = ["unshare", "--map-current-user", *options, "sh", "-c", "sh -c 'echo up; exec sleep 1000'; true"]
    inside = ordinary_account.popen(there, stdout=subprocess.PIPE)
    try:
        assert inside.stdout.readline().strip()
        (*_, pid) = processes.tree(inside.pid)
        done = ordinary_account.run([TORPOR, "checkpoint", str(pid)])
        assert done.returncode == 10
        assert f"it lives in another {kind} namespace than Torpor, as in a container" in done.stderr
    finally:
        os.killpg(inside.pid, signal.SIGKILL)
        inside.communicate()
