"""`torpor sbatch -- <sbatch arguments> job.sh`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from torpor.cli.common import (
    DurationType,
    WithPortable,
    command_options,
    portable_option,
    print_json,
    store_option,
    with_files_option,
)
from torpor.cli.slurm_options import slurm_options


@click.command(
    "sbatch",
    cls=WithPortable,
    short_help="Submit a Slurm job that loses no work when it is preempted.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@store_option
@click.option(
    "--every", type=DurationType(), metavar="TIME", help="Also save the job at this interval: 90s, 10m, 1h30m."
)
@portable_option
@with_files_option
@slurm_options
@click.argument("arguments", metavar="[--] [SBATCH ARGUMENTS] SCRIPT [ARGUMENTS]", nargs=-1, type=click.UNPROCESSED)
@command_options
def command(arguments: tuple[str, ...], store: str | None, every: float | None, as_json: bool, **chosen: Any) -> int:
    """Submit a batch script that is saved when Slurm preempts it, and continues when it is requeued.

    The script needs no change. Snapshots are kept in the store, which must be a directory that all nodes share. Jobs
    on several nodes and jobs with GPUs are refused.
    """
    from torpor.store import Store
    from torpor_slurm import submit

    try:
        submission = submit.parse(arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if every is None and submission.every is not None:
        every = DurationType().convert(submission.every, None, None)
    # `torpor run` parses the values again, and accepts 90 as a time span, but not 90.0.
    path = Store(store).path
    options = submit.as_options({"store": path, "every": None if every is None else int(every), **chosen})
    output, code = submit.submit(submission, [os.path.abspath(sys.argv[0]), "run", *options], path)
    if as_json:
        print_json({"job": output.split()[-1].partition(";")[0]})
    else:
        click.echo(output, nl=False)
    return code
