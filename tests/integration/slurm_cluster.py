"""A real Slurm cluster on this host, in about a second: munge, slurmctld and two isolated slurmd of Debian's packages.

The controller and each node have a UTS namespace of their own, each node a PID and mount namespace as well: PIDs are
small and collide between the nodes, as in a real migration. As root the daemons are root's and jobs anybody's;
started by an ordinary user, all of it is that user's. Leaving the context ends every process and removes every file.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts import end
from tests.users import User
from torpor.processes import tree

NODES = ("n1", "n2")
CRED_EXPIRE = 60
"""Seconds; slurmctld holds a requeued job back for one more (slurm.conf, AuthInfo): `Cluster.hurry`."""
GRACE, KILL_WAIT = 100, 60
"""Seconds. Nobody waits for their end: they are long, so that what has to be in time is, on a loaded host, too."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PACKAGES = "munge slurmctld slurmd slurm-client"
_CGROUPS = Path("/sys/fs/cgroup/freezer")

_CONF = """
ClusterName=torpor
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={port[ctl]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge/s,ttl=60,cred_expire={cred_expire}
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool.%n
SlurmctldPidFile={dir}/ctl.pid
SlurmdPidFile={dir}/%n.pid
SlurmctldLogFile={dir}/ctl.log
SlurmdLogFile={dir}/%n.log
ProctrackType={proctrack}
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MessageTimeout=60
BatchStartTimeout=300
SlurmdTimeout=300
SlurmctldTimeout=300
KillWait={kill_wait}
MinJobAge=300
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port={port[n1]} CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port={port[n2]} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} OverSubscribe=NO
PartitionName=abrupt Nodes=n1,n2 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=cancel Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
PartitionName=cancel-abrupt Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL GraceTime=0
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""


class ClusterFailed(Exception):
    """A daemon did not come up, or a job did not get where a test waited for it to be."""


def missing() -> list[str]:
    """The programs of Slurm and munge that this host lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


@dataclass
class Cluster:
    """A running cluster."""

    directory: Path
    proctrack: str
    grace: int
    """Seconds of notice in the partitions low and cancel."""
    kill_wait: int
    munged: subprocess.Popen[bytes]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    controller: subprocess.Popen[bytes] | None = None
    submitted: list[str] = field(default_factory=list)
    """Jobs that may still be in the queue."""

    @property
    def cgroups(self) -> Path:
        """Where its nodes have the cgroups of their jobs, with proctrack/cgroup."""
        return _CGROUPS / self.directory.name

    @property
    def spares_the_application(self) -> bool:
        """Whether Slurm signals only the supervisor. Without cgroups it signals the application too, at the end of a
        grace time and with scontrol requeue: it may be killed before it is saved."""
        return self.proctrack == "proctrack/cgroup"

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    # ------------------------------------------------------------------------------------------- daemons

    def start_controller(self) -> None:
        """Start slurmctld."""
        self.controller = self._start("ctl", ["--uts"], f"exec slurmctld -D -f {self.conf}")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, with its own PIDs and mounts; the shell is its pid 1 and reaps."""
        flags = ["--uts", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        # Another run's node of this name has its cgroups elsewhere.
        own = f"mount --bind {self.cgroups} {_CGROUPS} || exit;" if self.cgroups.exists() else ""
        self.nodes[name] = self._start(name, flags, f"{own} slurmd -D -N {name} -f {self.conf} & wait $!; wait")

    def kill_node(self, name: str) -> None:
        """Let a node die without a word: every process on it is killed at one blow."""
        end(self.nodes.pop(name))  # its pid 1 takes the PID namespace with it, and is gone when all of it is

    @contextmanager
    def slow_node(self, name: str) -> Iterator[None]:
        """Have a node's slurmd answer nothing meanwhile; what runs on it runs on."""
        (slurmd,) = (pid for pid in tree(self.nodes[name].pid) if _comm(pid) == "slurmd")
        os.kill(slurmd, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(slurmd, signal.SIGCONT)

    def _start(self, name: str, flags: list[str], command: str) -> subprocess.Popen[bytes]:
        rights = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
        with open(self.directory / f"{name}.out", "ab") as out:
            return subprocess.Popen(
                ["unshare", *rights, *flags, "sh", "-c", f"hostname {name}; {command}"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.directory,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            )

    def wait_ready(self) -> None:
        """Wait until the controller answers and both nodes are idle."""
        self.wait_for(lambda: self.ask("sinfo", "-h", "-N", "-p", "high", "-o", "%T") == "idle\nidle", "idle nodes")

    def stop(self) -> None:
        """End every daemon and job, and remove the cluster's cgroups."""
        for name in list(self.nodes):
            self.kill_node(name)
        for daemon in (self.controller, self.munged):
            if daemon is not None:
                daemon.terminate()
        for daemon in (self.controller, self.munged):
            if daemon is not None:
                daemon.wait(60)
        for path in sorted(self.cgroups.glob("**/"), reverse=True):
            path.rmdir()

    # ------------------------------------------------------------------------------------------- questions

    @property
    def env(self) -> dict[str, str]:
        """What a Slurm command needs to reach this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def ask(self, *command: str) -> str:
        """The output of a Slurm command of the one who runs the tests; empty when it fails."""
        environment = {**os.environ, **self.env, "PATH": f"/usr/bin:/bin:{os.environ['PATH']}"}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return told.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        words = self.ask("scontrol", "show", "job", "-o", number).split(" ")
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def wait_for(
        self, condition: Callable[[], object], what: str, seconds: float = 60, more: Callable[[], str] = str
    ) -> None:
        """Wait until something holds; `more` is told if it does not.

        Raises:
            ClusterFailed: it did not; with the ends of the daemons' logs.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterFailed(f"waited {seconds} s in vain for {what}\n{more()}\n{self.logs()}")
            time.sleep(0.05)

    def wait_state(self, number: str, *states: str, seconds: float = 60) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        self.wait_for(lambda: self.job(number).get("JobState") in states, f"job {number} in {states}", seconds)
        return self.job(number)

    def wait_gone(self, number: str, seconds: float = 2 * KILL_WAIT) -> None:
        """Wait until nothing of a job runs any more."""
        self.wait_for(lambda: not self.ask("squeue", "-h", "-j", number), f"job {number} to be over", seconds)

    def logs(self) -> str:
        """The ends of the daemons' logs, and the account that was made last: slurmctld once found no user in it."""
        texts = [f"--- /etc/passwd\n{Path('/etc/passwd').read_text().splitlines()[-1]}"]
        for path in sorted([*self.directory.glob("*.log"), *self.directory.glob("*.out")]):
            lines = path.read_text(errors="replace").splitlines()[-25:]
            texts.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(texts)

    # ------------------------------------------------------------------------------------------- jobs

    def submit(self, user: User, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Run sbatch, or `torpor sbatch`, as a user; the job's id."""
        told = user.run([*map(str, arguments)], env={**self.env, **(env or {})})
        if told.returncode:
            raise ClusterFailed(f"{arguments} ended with {told.returncode}:\n{told.stdout}{told.stderr}")
        number = told.stdout.split()[-1].partition(";")[0]
        self.submitted.append(number)
        return number

    def preempt(self, user: User, node: str | None = None) -> str:
        """Take a whole node, or both, for a job of higher priority; its id. `release` gives them back."""
        where = ["-w", node] if node else ["-N2"]
        return self.submit(
            user, "sbatch", "-p", "high", "--exclusive", *where, "-o", "/dev/null", "--wrap", "exec sleep 1000"
        )

    def hurry(self, number: str, before: str, more: Callable[[], str] = str) -> None:
        """When a job waits in the queue again, let it start at once, on another node than `before`: there it need not
        wait until the credential of its last run has expired."""
        self.wait_for(
            lambda: self.job(number).get("JobState") == "PENDING", f"job {number} in the queue again", more=more
        )
        self.ask("scontrol", "update", f"JobId={number}", "StartTime=now", f"ExcNodeList={before}")

    def release(self, *numbers: str) -> None:
        """Cancel jobs and wait for their end; without a number, all of them."""
        for number in numbers or tuple(self.submitted):
            self.ask("scancel", number)
            self.wait_gone(number)
            self.submitted.remove(number)


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _free_ports() -> dict[str, int]:
    sockets = {name: socket.socket() for name in ("ctl", *NODES)}
    try:
        for one in sockets.values():
            one.bind(("127.0.0.1", 0))
        return {name: int(one.getsockname()[1]) for name, one in sockets.items()}
    finally:
        for one in sockets.values():
            one.close()


def proctrack() -> str:
    """proctrack/cgroup, which production has, where this host allows it."""
    if os.geteuid() == 0 and os.access(_CGROUPS / "cgroup.procs", os.W_OK):
        return "proctrack/cgroup"
    return "proctrack/linuxproc"


@contextmanager
def cluster(
    *,
    grace: int = GRACE,
    kill_wait: int = KILL_WAIT,
    track: str | None = None,
    more: str = "",
    files: Mapping[str, str] = {},
) -> Iterator[Cluster]:
    """Start a cluster, and take it down with everything it ran.

    Args:
        grace: GraceTime of the partitions low and cancel, seconds.
        kill_wait: KillWait, seconds.
        track: ProctrackType; None for the best that works here.
        more: lines for slurm.conf; ``{dir}`` is its folder.
        files: what a site puts beside it, by name: scripts that anybody may run; ``{dir}`` as in `more`.
    """
    directory = Path(tempfile.mkdtemp(prefix="torpor-test-slurm-", dir="/tmp"))
    directory.chmod(0o755)
    track = track or proctrack()
    try:
        (directory / "munge").mkdir(mode=0o755)
        (directory / "state").mkdir(mode=0o700)
        for name in NODES:
            (directory / f"spool.{name}").mkdir(mode=0o755)
        key = directory / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        values = {
            "dir": directory,
            "port": _free_ports(),
            "user": pwd.getpwuid(os.geteuid()).pw_name,
            "cred_expire": CRED_EXPIRE,
            "proctrack": track,
            "kill_wait": kill_wait,
            "grace": grace,
        }
        for name, text in {**files, "slurm.conf": _CONF.format(**values) + more}.items():
            (directory / name).write_text(text.replace("{dir}", str(directory)))
            (directory / name).chmod(0o755)
        mount = "CgroupMountpoint=/sys/fs/cgroup\nCgroupPlugin=cgroup/v1\n" if track.endswith("cgroup") else ""
        (directory / "cgroup.conf").write_text(mount)
        running = Cluster(directory, track, grace, kill_wait, _start_munge(directory))
        try:
            if mount:
                running.cgroups.mkdir()
            running.wait_for((directory / "munge/s").exists, "munge's socket")
            running.start_controller()
            for name in NODES:
                running.start_node(name)
            running.wait_ready()
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(directory)


def _start_munge(directory: Path) -> subprocess.Popen[bytes]:
    here = directory / "munge"
    options = [f"--socket={here}/s", f"--key-file={here}/key", f"--pid-file={here}/pid", f"--seed-file={here}/seed"]
    with open(directory / "munged.out", "wb") as out:
        return subprocess.Popen(
            ["munged", "--foreground", "--force", *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
