"""Waking the application of a Slurm job from the snapshots that its earlier runs have left."""

from __future__ import annotations

import torpor
from torpor import Job, Series, Snapshot, image
from torpor.errors import ImageDamaged, NotFound, Reason, Refused, RestoreFailed, RestoreRefused
from torpor_slurm import rollback
from torpor_slurm.allocation import Allocation
from torpor_slurm.beginning import Beginning
from torpor_slurm.job_directory import JobDirectory
from torpor_slurm.messages import tell
from torpor_slurm.run_options import Options


def wake(here: Beginning, allocation: Allocation, options: Options, series: Series) -> Job | None:
    """Wake the newest snapshot that can be woken. Return None if the application has to start from the beginning.

    Args:
        here: what this run has found. Messages for the user are added to its notes.
        allocation: where the job runs now.
        options: what to do if a snapshot cannot be woken, and whether changed files matter.
        series: continued from the snapshot that was woken.

    Raises:
        RestoreRefused, RestoreFailed, ImageDamaged, NotFound: no snapshot can be woken, and --on-refused does not allow
            to start anew.
    """
    refused: list[str] = []
    directory = here.directory
    for snapshot in here.found:
        try:
            job = _wake_one(snapshot, allocation, directory, options, series)
        except (RestoreRefused, RestoreFailed, ImageDamaged, NotFound) as error:
            directory.log(f"snapshot {snapshot.id} was not woken: {error}")
            if isinstance(error, RestoreRefused) and error.only_files:
                way = f"`torpor slurm requeue {directory.job} --files=as-they-are`"
                error.advice = f"to wake it with the changed files: {way}; or --files=rolled-back"
            refused.append(f"snapshot {snapshot.id} cannot be woken on {allocation.node}: {error}")
            if options.on_refused == "stop" or (options.on_refused == "older" and snapshot is here.found[-1]):
                for words in refused[:-1]:
                    tell(words)
                raise
        else:
            directory.log(f"woke snapshot {snapshot.id}")
            here.notes += refused
            return job
    here.notes += (*refused, "the application begins anew, from its start (--on-refused=anew)")
    return None


def _wake_one(
    snapshot: Snapshot, allocation: Allocation, directory: JobDirectory, options: Options, series: Series
) -> Job:
    def last_moment() -> None:
        # All processes are built and none runs yet: the restore can no longer be refused, so output may be cut now.
        if directory.is_fenced(allocation.restarts):
            later = Reason(f"job {directory.job}", "a later run of it has begun", "that one goes on")
            raise Refused("this run is not woken", [later])
        if options.rollback_files == "append-only":
            for tail in rollback.tails(tree):
                aside = rollback.cut(tail, directory.cut, f"run{allocation.restarts}")
                directory.log(f"cut {tail.path} from {tail.end} to {tail.begin} bytes; the rest is in {aside}")

    with directory.store.open(snapshot) as reader:
        tree = image.read(reader)
    return torpor.restore(
        snapshot,
        first=lambda _: False,
        connected=last_moment,
        files=directory.requested_files(allocation.restarts) or options.files,
        series=series,
        tell=directory.log,
    )
