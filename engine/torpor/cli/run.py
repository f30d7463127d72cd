"""`torpor run -- CMD...`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from torpor.cli.common import (
    DurationType,
    WithPortable,
    command_options,
    exit_as,
    name_option,
    note,
    portable_option,
    store_option,
    with_files_option,
)
from torpor.cli.slurm_options import slurm_options

if TYPE_CHECKING:
    from torpor.arch.x86_64.levels import PortableTo
    from torpor.store import SnapshotInfo


@click.command(
    "run", cls=WithPortable, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@store_option
@click.option("--every", type=DurationType(), metavar="TIME", help="Save it this often, as in 90s, 10m, 1h30m.")
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --every: keep the newest N of its snapshots. [default: 5; a Slurm job keeps 2]",
)
@portable_option
@with_files_option
@name_option
@slurm_options
@click.option("--script", type=click.Path(dir_okay=False), hidden=True, help="The batch script of `torpor sbatch`.")
@click.argument("cmd", metavar="CMD...", nargs=-1, type=click.UNPROCESSED)
@command_options
def command(
    cmd: tuple[str, ...],
    store: str | None,
    every: float | None,
    keep_last: int | None,
    portable: PortableTo | None,
    with_files: tuple[str, ...],
    name: str | None,
    script: str | None,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Run a command so that it can be frozen, and save it regularly.

    Where Yama lets only the launcher of a process trace it, this is the launcher. It passes signals on and
    exits as the command exits.

    In a Slurm job it hears the warning of a preemption, saves the command, requeues the job, and in its next run,
    on whichever node, lets the command go on where it was.
    """
    import torpor
    from torpor.errors import SettingError
    from torpor.restorer.run import become
    from torpor.util import settings
    from torpor_slurm.allocation import Allocation, is_supervised

    if not cmd and script is None:
        raise click.UsageError("Missing argument 'CMD...'.")
    if keep_last is not None and every is None:
        raise click.UsageError("--keep-last is for the snapshots of --every.")
    allocation = Allocation.here()
    try:
        kept = settings.get("run.keep-last").value  # even if not needed: a wrong settings file is reported at once
    except SettingError as error:
        if allocation is None or not allocation.restarts:
            raise
        note(f"{error}; the job continues in this run without its configuration files")
        settings.without_files()
    if allocation is None:
        if script is not None:
            raise click.UsageError("--script is for `torpor sbatch`, inside a job.")
        if "SLURM_JOB_ID" in os.environ:
            note(
                "this is no batch job (but salloc or srun): Slurm ends it with nothing saved but what --every has saved"
            )
        keep = keep_last or kept
        return exit_as(
            torpor.run(
                cmd,
                store=store,
                every=every,
                keep=keep,
                tags=_tags(name),
                with_files=with_files,
                portable=portable,
                saved=_teller(keep),
                failed=_not_saved,
            )
        )
    if keep_last is not None:
        raise click.UsageError("--keep-last is not for a Slurm job, which keeps its two newest snapshots.")
    if name is not None:
        raise click.UsageError("--name is not for a Slurm job, which `torpor slurm` knows by its id.")
    if is_supervised(os.environ, allocation):
        become(cmd)

    from torpor.store import Store
    from torpor_slurm.beginning import Script
    from torpor_slurm.job_directory import JobDirectory
    from torpor_slurm.run_options import Options
    from torpor_slurm.submit import embedded_script
    from torpor_slurm.supervisor import supervise

    directory = JobDirectory(Store(store).path, allocation.job, allocation.cluster)
    embedded = None if script is None else Script(*embedded_script(script))
    if embedded is not None:
        cmd = (str(directory.script(embedded.name)), *cmd)
    return exit_as(
        supervise(
            cmd,
            allocation,
            directory,
            Options(every=every, with_files=with_files, portable=portable, **chosen),
            embedded,
        )
    )


def _tags(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    from torpor.store import NAME

    return {NAME: name}


def _teller(keep: int) -> Callable[[SnapshotInfo], None]:
    """Return a callback that prints what a restore would not bring back, each notice only once, and what is removed."""
    printed: set[str] = set()
    count = 0

    def saved(info: SnapshotInfo) -> None:
        nonlocal count
        count += 1
        if count == keep + 1:
            note(f"of the snapshots of this run only the newest {keep} stay (--keep-last)")
        for text in info.notices:
            if text not in printed:
                printed.add(text)
                note(f"saved, but {text}")

    return saved


def _not_saved(error: Exception) -> None:
    note(f"this save failed: {error}")
