"""The job directory, on shared storage: a store with the job's snapshots, and what the next run must know.

    STORE/slurm/CLUSTER-JOBID/
      lock snapshots/ packs/   a store: `torpor ls --store` lists its snapshots
      runs/N                   the run after N restarts, and the snapshots that it found
      env                      the SLURM_* of the current allocation, as a shell script ($TORPOR_ENV_FILE)
      script/NAME              the job's script, under the same path on every node
      bin/srun, bin/scontrol   stand-ins for both (srun_wrapper.py, own_requeue.py)
      steps/N                  the steps of the srun wrapper whose files have their number in the name
      requeued-itself          there while the application itself requeues the job
      cut/                     what was cut off output files when a snapshot was woken
      state                    what `torpor slurm status` shows
      wanted                   the options of `torpor slurm requeue` for one later run
      finished                 the exit code of the application, once it has ended by itself
      log                      what the supervisor did, and why

**Fencing.** Run N writes ``runs/N`` before it wakes anything, with the snapshots that it may choose from. A run that
Slurm took for dead, on a lost node, may still write snapshots. They are on the list of no later run, so that none of
them is ever woken. Once such a run can read the directory again, it sees the later run and ends.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torpor.errors import NotFound, NotPermitted, Reason, Refused, StoreError, TorporError
from torpor.store import SnapshotInfo, Store, make_directories, sync_directory, write_whole
from torpor_slurm import controller

if TYPE_CHECKING:
    from torpor import Files

RUN_TAG = "slurm-run"
"""The tag of a snapshot that names the run which took it."""
_FORMER = ".until"
"""The end of a directory's name, before a time, once Slurm has given the job id to another job."""
KEEP = 2
"""Snapshots that are kept of a running job: the newest, and one more in case that one cannot be woken."""


@dataclass(frozen=True)
class Finished:
    """How a job's application ended: as `Job.wait` gives it."""

    code: int
    when: float
    run: int | None = None
    """The last run that came to know: the one that ended it, or a later one that exited with its code."""


class JobDirectory:
    """The directory of one job."""

    def __init__(self, base: str | os.PathLike[str], job: str, cluster: str) -> None:
        """Name the directory. It is not created yet.

        Args:
            base: the user's store.
            job: the job's id.
            cluster: the cluster's name.
        """
        self.job = job
        self.cluster = cluster
        self.path = Path(base).absolute() / "slurm" / f"{cluster}-{job}"
        self.store = Store(self.path)

    @classmethod
    def all(cls, base: str | os.PathLike[str], *, former: bool = False) -> list[JobDirectory]:
        """All jobs of a store, by name; with `former`, also those whose job ids were given to other jobs since."""
        places = sorted(Path(base).absolute().glob("slurm/*-*/state"))
        names = [place.parent.name.rpartition("-") for place in places]
        found = [cls(base, job, cluster) for cluster, _, job in names if job.isdecimal()]
        return [directory for directory in found if former or not directory.former]

    @property
    def former(self) -> bool:
        """Whether another job has this job's id by now."""
        return self.cluster.endswith(_FORMER)

    # ------------------------------------------------------------------------------------------- runs

    def begin(self, restarts: int, node: str, start: float | None) -> list[SnapshotInfo]:
        """Begin a run, and fence off all earlier ones.

        Args:
            restarts: how often Slurm has restarted the job.
            node: the host's name.
            start: when Slurm started this run (seconds since the epoch): tells whether the directory is of another job
                that had the same id.

        Returns:
            The snapshots that this run may wake, the newest first.

        Raises:
            Refused: this run has begun already, or a later one has.
            NotFound: the job has run before, and there is no store.
            StoreError: the directory cannot be made or written.
        """
        if restarts > 0 and not self.path.parent.parent.exists():  # it is not made anew: what it held would be lost
            raise NotFound(
                f"job {self.job} has run before, but on {node} there is no store {self.path.parent.parent}",
                advice=f"is it mounted there? then `scontrol requeue {self.job}`; to begin anew, make the directory",
            )
        self.leave_to_former(restarts, start)
        runs = self._runs()
        if runs and runs[-1] >= restarts:
            raise self._supervised_already()
        self._make(self.path / "runs")
        self.own_requeue.unlink(missing_ok=True)
        candidates = list(self._candidates(runs[-1])) if runs else []
        run = {"node": node, "began": time.time(), "began_by_slurm": start, "snapshots": [one.id for one in candidates]}
        self._claim(restarts)
        self._write(f"runs/{restarts}", json.dumps(run))
        return candidates

    @property
    def is_new(self) -> bool:
        """Whether no run has begun here yet."""
        return not self._runs()

    def leave_to_former(self, restarts: int, start: float | None) -> None:
        """Move the directory aside if it is that of a former job with the same id; arguments as of `begin`."""
        runs = self._runs()
        if restarts == 0 and runs and self._read(f"runs/{runs[-1]}").get("began_by_slurm") != start:
            self.path.rename(self.path.with_name(f"{self.path.name}{_FORMER}-{time.time_ns()}"))
            sync_directory(self.path.parent)

    def _claim(self, restarts: int) -> None:
        """Create the run's lock file. Only one of two supervisors can, on a network file system, too."""
        path = self.path / "runs" / f".{restarts}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise self._supervised_already() from None
        except OSError as error:
            raise StoreError(
                f"{path} cannot be made: {error.strerror}", advice="make room, or see its rights"
            ) from error

    def _supervised_already(self) -> Refused:
        reason = Reason(f"job {self.job}", "it has a supervisor already", "one `torpor run` per job: give it a script")
        return Refused("this run of the job cannot be supervised", [reason])

    def is_fenced(self, restarts: int) -> bool:
        """Whether a later run has begun. False while the directory cannot be read."""
        try:
            return self._runs()[-1] > restarts
        except (OSError, IndexError):
            return False

    def _runs(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.path / "runs") if name.isdecimal())
        except FileNotFoundError:
            return []

    def _candidates(self, last: int) -> Iterator[SnapshotInfo]:
        """The snapshots that the last run found or took; not those that an earlier run published later."""
        known = set(self._read(f"runs/{last}").get("snapshots", []))
        for info in reversed(self.store.snapshots()):
            if info.id in known or info.tags.get(RUN_TAG) == str(last):
                yield info

    def prune(self, restarts: int, found: list[SnapshotInfo]) -> None:
        """Remove all but the newest KEEP snapshots of this job, and those that fenced runs published.

        Snapshots of a later run stay: this run may be fenced itself, and not know it yet.

        Raises:
            StoreError, NotPermitted: they cannot be removed.
        """
        known = {one.id for one in found}
        everything = self._of_runs(restarts)
        counted = [one for one in everything if one.id in known or one.tags.get(RUN_TAG) == str(restarts)]
        kept = {one.id for one in counted[-KEEP:]}
        going = [one for one in everything if one.id not in kept]
        if going:
            self.store.discard(going)

    def _of_runs(self, last: int) -> list[SnapshotInfo]:
        return [one for one in self.store.snapshots() if int(one.tags.get(RUN_TAG, 0)) <= last]

    # ------------------------------------------------------------------------------------------- files

    @property
    def finished(self) -> Finished | None:
        """How the application ended, if it has."""
        record = self._read("finished")
        return Finished(int(record["code"]), float(record["when"]), record.get("run")) if record else None

    def pass_by(self, restarts: int, found: Finished) -> None:
        """Note that this run has found the job finished: if it finds so again, its script has another `torpor run`.

        Raises:
            StoreError: it cannot be written.
        """
        self._write("finished", json.dumps({"code": found.code, "when": found.when, "run": restarts}))

    def finish(self, restarts: int, code: int) -> None:
        """Mark the job as finished by this run, and remove its snapshots, which no run will wake.

        Raises:
            StoreError, NotPermitted: it cannot be written.
        """
        self._write("finished", json.dumps({"code": code, "when": time.time(), "run": restarts}))
        self.forget(restarts)

    def forget(self, restarts: int) -> None:
        """Remove the snapshots of this run and of all before it: a later run begins anew.

        Raises:
            StoreError, NotPermitted: they cannot be removed.
        """
        if snapshots := self._of_runs(restarts):
            self.store.discard(snapshots)

    @property
    def state(self) -> dict[str, Any]:
        """What `torpor slurm status` shows; empty if it cannot be read, since no job depends on it."""
        try:
            return self._read("state")
        except TorporError:
            return {}

    def update_state(self, **news: Any) -> None:
        """Change some fields of the state. If it cannot be written, the log says so, and the job goes on."""
        try:
            self._write("state", json.dumps({**self.state, **news}))
        except StoreError as error:
            self.log(f"the state was not kept: {error}")

    def request_files(self, restarts: int, files: Files) -> None:
        """Ask the run after so many restarts to wake the job with its files as they are, or as they were.

        Raises:
            StoreError: it cannot be written.
        """
        self._write("wanted", json.dumps({"restarts": restarts, "files": files}))

    def requested_files(self, restarts: int) -> Files | None:
        """What `request_files` has asked of this run, if anything."""
        record = self._read("wanted")
        mine = record.get("restarts") == restarts and record.get("files") == "as-they-are"
        return "as-they-are" if mine else None

    def log(self, words: str) -> None:
        """Add a line to the log. Errors are ignored: if the store cannot be written, the next save reports it."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {words}\n".encode()
        try:
            fd = os.open(self.path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError:
            return

    @property
    def environment_file(self) -> Path:
        """The file that $TORPOR_ENV_FILE names."""
        return self.path / "env"

    def write_environment(self, environment: Mapping[str, str]) -> None:
        """Write the variables of the current allocation for the application.

        Raises:
            StoreError: it cannot be written.
        """
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items())]
        self._write("env", "".join(lines))

    def keep_script(self, name: str, text: bytes) -> Path:
        """Keep the job's script where every node finds it under one path. The first run's counts.

        Raises:
            StoreError: it cannot be written.
        """
        path = self.path / "script" / name
        if not path.exists():
            self._make(path.parent)
            self._write(f"script/{name}", text, 0o700)
        return path

    @property
    def stand_ins(self) -> Path:
        """The directory that comes first in the application's PATH: what stands for some of Slurm's commands."""
        return self.path / "bin"

    def write_stand_in(self, name: str, script: str) -> None:
        """Write such a script. Every run does, since a woken application calls what the Torpor of its new run has.

        Raises:
            StoreError: it cannot be written.
        """
        self._make(self.stand_ins)
        path = self.stand_ins / name
        if not path.exists() or path.read_text() != script:  # a shell may hold it open in a snapshot
            self._write(f"bin/{name}", script, 0o700)

    @property
    def own_requeue(self) -> Path:
        """The file that says that the application itself requeues the job (own_requeue.py)."""
        return self.path / "requeued-itself"

    @property
    def cut(self) -> Path:
        """The directory for what is cut off output files. Created when first needed."""
        self._make(self.path / "cut")
        return self.path / "cut"

    def _make(self, path: Path) -> None:
        try:
            make_directories(str(path))
        except PermissionError as error:
            raise NotPermitted(f"{path} cannot be made", advice="name another store with --store") from error
        except OSError as error:
            raise StoreError(f"{path} cannot be made: {error.strerror}", advice="name another store") from error

    def _read(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise TorporError(f"{self.path / name} cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise TorporError(f"{self.path / name} was not written by torpor: it holds no JSON object")
        return record

    def _write(self, name: str, text: str | bytes, mode: int = 0o600) -> None:
        """Replace a file atomically, and sync it to disk. Raises StoreError."""
        path = self.path / name
        try:
            write_whole(path, text, mode)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror}", advice="make room, or see its rights"
            ) from error


def requeue(base: str | os.PathLike[str], job: str, files: Files) -> JobDirectory:
    """Requeue a job. Its next run wakes it with its files as they are, or as they were.

    Raises:
        NotFound: there is no such job in the store.
        StoreError, NotPermitted, SlurmError: the directory cannot be written; Slurm refuses.
    """
    directory = next((one for one in JobDirectory.all(base) if one.job == job), None)
    if directory is None:
        raise NotFound(f"there is no job {job} below {base}", advice="see `torpor slurm status`, and --store")
    directory.request_files(controller.job_record(job).restarts + 1, files)
    controller.requeue(job)
    return directory
