"""The job directory, on shared storage: a store with the job's snapshots, and the records that the next run needs.

    STORE/slurm/CLUSTER-JOBID/
      lock snapshots/ packs/   a store: `torpor ls --store` lists its snapshots
      runs/N                   the run after N restarts
      turns/N                  what this command found in that run, and how it ended there
      env                      the SLURM_* of the current allocation, as a shell script ($TORPOR_ENV_FILE)
      script/NAME              the job's script, under the same path on every node
      bin/srun, bin/scontrol   stand-ins for both (srun_wrapper.py, own_requeue.py)
      steps/N                  the steps that srun has begun in the job (step/job_files.py)
      room                     locked by a step that looks for processors
      requeued-itself          exists if the application itself has requeued the job
      cut/                     the ends that were cut off output files when a snapshot was woken
      state                    what `torpor slurm status` shows
      wanted                   the options of `torpor slurm requeue` for one later run
      finished                 the exit code of the application, once it has ended by itself
      log                      what the supervisor did, and why
      then/P/                  the same for the second, third... `torpor run` of the script (places.py), with a store
                               of its own; runs, script, steps, room, state, wanted and log are the job's

**Fencing.** Before run N wakes anything, it writes ``runs/N``, and ``turns/N`` with the list of the snapshots that it
may wake. A run on a lost node, which Slurm took for dead, may still write snapshots. No later run lists them, so none
of them is ever woken. Once such a run can read the directory again, it sees the later run and ends.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
"""Part of the directory's new name, before the time, when Slurm has given the job's id to another job."""
_SEEN_ON = "nodes"
"""The directory, beside those of the jobs, with a file for each node on which a job has used the store."""
KEEP = 2
"""How many snapshots of a running job are kept: the newest, and one more in case the newest cannot be woken."""


@dataclass(frozen=True)
class Finished:
    """How a job's application ended: as `Job.wait` gives it."""

    code: int
    when: float


class StoreMissing(NotFound):
    """The job has run before, but this node has no store at that path (it is not mounted, say)."""


class JobDirectory:
    """The directory of a job, and in it the place of one `torpor run` command of the job's script."""

    def __init__(self, base: str | os.PathLike[str], job: str, cluster: str, place: int = 1) -> None:
        """Name the directory. It is not created yet.

        Args:
            base: the user's store.
            job: the job's id.
            cluster: the cluster's name.
            place: which command of the job's script it is for, counted from 1 (places.py).
        """
        self.base = Path(base).absolute()
        self.job = job
        self.cluster = cluster
        self.place = place
        self.whole = self.base / "slurm" / f"{cluster}-{job}"
        """The job's directory."""
        self.path = self.whole if place == 1 else self.whole / "then" / str(place)
        """The place of this command in it."""
        self.store = Store(self.path)

    @classmethod
    def all(cls, base: str | os.PathLike[str], *, former: bool = False) -> list[JobDirectory]:
        """All jobs of a store, by name; with `former`, also those whose job ids other jobs have got since."""
        places = sorted(Path(base).absolute().glob("slurm/*-*/state"))
        names = [place.parent.name.rpartition("-") for place in places]
        found = [cls(base, job, cluster) for cluster, _, job in names if job.isdecimal()]
        return [directory for directory in found if former or not directory.former]

    @property
    def former(self) -> bool:
        """Whether Slurm has given this job's id to another job."""
        return self.cluster.endswith(_FORMER)

    def at(self, place: int) -> JobDirectory:
        """Another place of the same job."""
        return JobDirectory(self.base, self.job, self.cluster, place)

    def places(self) -> list[JobDirectory]:
        """The places of all commands that the job's script has given to `torpor run`, the oldest first."""
        try:
            later = [int(name) for name in os.listdir(self.whole / "then") if name.isdecimal()]
        except FileNotFoundError:
            later = []
        return [self.at(place) for place in [1, *sorted(later)] if self.at(place).turns()]

    # ------------------------------------------------------------------------------------------- runs

    def begin(
        self,
        restarts: int,
        node: str,
        start: float | None,
        command: Sequence[str] = (),
        outputs: Mapping[str, Sequence[int]] = {},
    ) -> list[SnapshotInfo]:
        """Begin a run of this command, and fence off all earlier runs of the job.

        Args:
            restarts: how often Slurm has restarted the job.
            node: the host's name.
            start: when Slurm started this run (seconds since the epoch). It shows whether the directory belongs to
                another job that had the same id.
            command: what `torpor run` was given.
            outputs: the output files as they are now (rollback.py).

        Returns:
            The snapshots that this run may wake, the newest first.

        Raises:
            Refused: the command has begun in this run already, or a later run has begun.
            StoreMissing: the job has run before, but the store is missing on this node.
            StoreError: the directory cannot be made or written.
        """
        self.arrive(restarts, node, start)
        self._make(self.path / "turns")
        last, candidates = self._last_turn(), list(self._candidates())
        again = bool(last) and not last.get("own_end") and not self.own_requeue.exists()
        self.own_requeue.unlink(missing_ok=True)
        self._take_turn(
            restarts,
            {
                "command": [*command],
                "snapshots": [one.id for one in candidates],
                "again": again,
                "outputs": last.get("outputs", {}) if again else dict(outputs),
            },
        )
        return candidates

    def pass_by(self, restarts: int, node: str, start: float | None) -> None:
        """Note that this run found the command finished: a later `torpor run` of the script is for another place.

        Raises:
            Refused, StoreMissing, StoreError: as `begin`.
        """
        self.arrive(restarts, node, start)
        self._take_turn(restarts, {"command": self.command, "snapshots": []})

    def arrive(self, restarts: int, node: str, start: float | None) -> None:
        """Begin a run of the job, if it has not begun yet. Arguments and errors as of `begin`."""
        if restarts > 0 and not self.base.exists():  # do not create it: the job would begin anew and lose its work
            raise StoreMissing(
                f"job {self.job} has run before, but on {node} there is no store {self.base}",
                advice="is it mounted there? If no job has used it yet, make the directory",
            )
        self.leave_to_former(restarts, start)
        if (last := self.last_run) is not None and last >= restarts:
            if last > restarts:
                raise self.supervised_already()
            return
        self._make(self.whole / "runs")
        run = {"node": node, "began": time.time(), "began_by_slurm": start}
        self._write(f"runs/{restarts}", json.dumps(run), within=self.whole)
        with suppress(OSError):  # no job depends on it
            make_directories(str(self.base / "slurm" / _SEEN_ON))
            write_whole(self.base / "slurm" / _SEEN_ON / node, "")

    def leave_to_former(self, restarts: int, start: float | None) -> None:
        """Move the directory aside if it is that of a former job with the same id; arguments as of `begin`."""
        last = self.last_run
        if restarts == 0 and last is not None and self._read(f"runs/{last}", self.whole).get("began_by_slurm") != start:
            self.whole.rename(self.whole.with_name(f"{self.whole.name}{_FORMER}-{time.time_ns()}"))
            sync_directory(self.whole.parent)

    @property
    def last_run(self) -> int | None:
        """The newest run of the job that has begun; None if none has."""
        return max(_numbers(self.whole / "runs"), default=None)

    def is_fenced(self, restarts: int) -> bool:
        """Whether a later run has begun. False while the directory cannot be read."""
        try:
            last = self.last_run
        except OSError:
            return False
        return last is not None and last > restarts

    # ------------------------------------------------------------------------------------------- turns

    def turns(self) -> list[int]:
        """The runs that have begun this command, or found it finished."""
        return sorted(_numbers(self.path / "turns"))

    @property
    def command(self) -> list[str]:
        """The command line that `torpor run` was given when this command was begun last."""
        return list(self._last_turn().get("command", []))

    def has_ended(self, restarts: int) -> bool:
        """Whether the command has ended in this run, so that its script goes on."""
        return self.finished is not None or "ended" in self._read(f"turns/{restarts}")

    def first_outputs(self, restarts: int) -> dict[str, list[int]] | None:
        """The output files as they were when an earlier run first started the application (rollback.py).

        None if no earlier run has started it, or if it then ended in its own way: the earlier output is then the first
        part of the whole, and must stay.
        """
        turn = self._read(f"turns/{restarts}")
        return turn["outputs"] if turn.get("again") else None

    def own_end(self, restarts: int) -> None:
        """Note that the application has ended in its own way, but the job is requeued.

        Raises:
            StoreError: it cannot be written.
        """
        self._add_to_turn(restarts, "own_end", True)

    def end(self, restarts: int, code: int) -> None:
        """Note that the command was ended in this run, but not by Slurm: it is not finished, and its script goes on.

        Raises:
            StoreError: it cannot be written.
        """
        self._add_to_turn(restarts, "ended", code)

    def _add_to_turn(self, restarts: int, name: str, value: int) -> None:
        turn = self._read(f"turns/{restarts}")
        self._write(f"turns/{restarts}", json.dumps({**turn, name: value}))

    def _take_turn(self, restarts: int, turn: Mapping[str, Any]) -> None:
        """Create the file of this turn. If two supervisors begin the same turn at once, one of them is refused."""
        path = self.path / "turns" / str(restarts)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise self.supervised_already() from None
        except OSError as error:
            raise StoreError(
                f"{path} cannot be made: {error.strerror}", advice="make room, or see its rights"
            ) from error
        try:
            self._write(f"turns/{restarts}", json.dumps(turn))
        except StoreError:
            path.unlink(missing_ok=True)
            raise

    def supervised_already(self) -> Refused:
        """The error for a second supervisor in the same run."""
        reason = Reason(f"job {self.job}", "it has a supervisor already", "run one `torpor run` after the other")
        return Refused("this run of the job cannot be supervised", [reason])

    def _last_turn(self) -> dict[str, Any]:
        """The newest turn. Empty ones are skipped: their host crashed before it could wake or start anything."""
        for number in reversed(self.turns()):
            if turn := self._read(f"turns/{number}"):
                return {**turn, "run": number}
        return {}

    def _candidates(self) -> Iterator[SnapshotInfo]:
        """The snapshots that the last turn found or took, newest first; without those that a fenced run published."""
        if last := self._last_turn():
            for info in reversed(self.store.snapshots()):
                if info.id in last.get("snapshots", []) or info.tags.get(RUN_TAG) == str(last["run"]):
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
        return Finished(int(record["code"]), float(record["when"])) if record else None

    def finish(self, restarts: int, code: int) -> None:
        """Mark the command as finished by this run, and remove its snapshots, which no run will wake.

        Raises:
            StoreError, NotPermitted: it cannot be written.
        """
        self._write("finished", json.dumps({"code": code, "when": time.time()}))
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
            return self._read("state", self.whole)
        except TorporError:
            return {}

    def update_state(self, **news: Any) -> None:
        """Change some fields of the state. If it cannot be written, log that: the job does not depend on it."""
        try:
            self._write("state", json.dumps({**self.state, **news}), within=self.whole)
        except StoreError as error:
            self.log(f"the state was not kept: {error}")

    def request_files(self, restarts: int, files: Files) -> None:
        """Tell the run after `restarts` restarts what to do with files that have changed since the snapshot.

        Raises:
            StoreError: it cannot be written.
        """
        self._write("wanted", json.dumps({"restarts": restarts, "files": files}), within=self.whole)

    def requested_files(self, restarts: int) -> Files | None:
        """What `request_files` has asked of this run, if anything."""
        record = self._read("wanted", self.whole)
        asked = record.get("files") if record.get("restarts") == restarts else None
        return asked if asked in ("as-they-are", "rolled-back") else None

    def log(self, words: str) -> None:
        """Add a line to the log. Errors are ignored: if the store cannot be written, the next save reports it."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {words}\n".encode()
        try:
            fd = os.open(self.whole / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        self._make(self.path)
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items())]
        self._write("env", "".join(lines))

    def script(self, name: str) -> Path:
        """The path of the job's script, the same on every node."""
        return self.whole / "script" / name

    def keep_script(self, name: str, text: bytes) -> None:
        """Store the job's script at `script`, if no earlier run has.

        Raises:
            StoreError: it cannot be written.
        """
        path = self.script(name)
        if not path.exists():
            self._make(path.parent)
            self._write(f"script/{name}", text, 0o700, within=self.whole)

    @property
    def stand_ins(self) -> Path:
        """The first directory in the application's PATH: its scripts stand in for some of Slurm's commands."""
        return self.path / "bin"

    def write_stand_in(self, name: str, script: str) -> None:
        """Write a stand-in script. Every run does: the Torpor of this run may be newer than that of the last one.

        Raises:
            StoreError: it cannot be written.
        """
        self._make(self.stand_ins)
        path = self.stand_ins / name
        if not path.exists() or path.read_text() != script:  # else leave it: a shell in a snapshot may hold it open
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

    def _read(self, name: str, within: Path | None = None) -> dict[str, Any]:
        path = (within or self.path) / name
        try:
            text = path.read_bytes()
            record = json.loads(text) if text else {}  # empty: a turn is being taken, or its host crashed meanwhile
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise TorporError(f"{path} cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise TorporError(f"{path} was not written by torpor: it holds no JSON object")
        return record

    def _write(self, name: str, text: str | bytes, mode: int = 0o600, *, within: Path | None = None) -> None:
        """Replace a file atomically, and sync it to disk. Raises StoreError."""
        path = (within or self.path) / name
        try:
            write_whole(path, text, mode)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror}", advice="make room, or see its rights"
            ) from error


def seen_on(base: str | os.PathLike[str]) -> list[str]:
    """The nodes on which jobs have used a store."""
    try:
        return sorted(os.listdir(Path(base) / "slurm" / _SEEN_ON))
    except OSError:
        return []


def _numbers(path: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(path) if name.isdecimal()]
    except FileNotFoundError:
        return []


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
