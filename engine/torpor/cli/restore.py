"""`torpor restore ID`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import click

from torpor.cli.common import (
    command_options,
    exit_as,
    files_option,
    interrupted,
    note,
    print_json,
    printable,
    progress_bar,
    reset_sigchld,
    snapshot_argument,
    store_option,
)

if TYPE_CHECKING:
    from torpor.objects.process.host_requirements import Cpu
    from torpor.restorer.restore import Files


@click.command("restore", short_help="Wake a snapshot.")
@snapshot_argument
@store_option
@click.option(
    "--detach", is_flag=True, help="Print one PID, which lives as long as the job and its daemons, and return."
)
@click.option("--explain", is_flag=True, help="Print what would be done, system call by system call, and do nothing.")
@files_option(
    "Refuse the snapshot if files were changed since, other than by growing; use them as they are; or bring back "
    "those that the job writes and whose content the snapshot has."
)
@click.option(
    "--as",
    "way",
    type=click.Choice(["best", "native", "capsule"]),
    default="best",
    show_default=True,
    help="Where it lives: among the host's processes, in namespaces of its own, or whichever changes less for it.",
)
@click.option(
    "--cpu",
    type=click.Choice(["check", "ignore"]),
    default="check",
    show_default=True,
    help="Refuse a processor that lacks features by which programs may have chosen their code when they started, or "
    "wake the job there all the same: a program that uses them is killed (SIGILL).",
)
@click.option(
    "--prove",
    is_flag=True,
    default=None,
    help="Before anything runs, describe what was built as a checkpoint would, and compare it with the snapshot.",
)
@command_options
def command(
    snapshot: str,
    store: str | None,
    detach: bool,
    explain: bool,
    files: Files,
    way: Literal["best", "native", "capsule"],
    cpu: Cpu,
    prove: bool | None,
    as_json: bool,
) -> int:
    """Wake a snapshot: its processes go on where they were, with their old PIDs.

    In the foreground this command acts as the job: it passes signals on, gives it the terminal, and exits
    as the job exits. The snapshot stays; it may be woken again.
    """
    import torpor
    from torpor.restorer.terminal_relay import Relay

    reset_sigchld()
    if explain:
        from torpor.restorer.restore import explain as explain_plan

        lines = explain_plan(snapshot, store=store, files=files, way=way, cpu=cpu).splitlines()
        if as_json:
            print_json({"calls": lines})
        for line in lines if not as_json else ():
            click.echo(printable(line))
        return 0
    relay = Relay(0) if not detach and os.isatty(0) else None
    with progress_bar("waking") as progress, interrupted("nothing was woken; the snapshot stays"):
        # From the release on, signals are for the job: they stay pending until foreground() passes them on.
        ready = None if detach else torpor.Job.hold_signals
        terminal = relay.open if relay else None
        job = torpor.restore(
            snapshot,
            store=store,
            detach=detach,
            foreground=not detach,
            progress=progress,
            connected=ready,
            terminal=terminal,
            files=files,
            way=way,
            prove=prove,
            cpu=cpu,
            tell=note,
        )
    for warning in job.warnings:
        note(warning)
    if relay and relay.opened:
        return exit_as(relay.foreground(job))
    if not detach:
        return exit_as(job.foreground())
    if as_json:
        print_json({"pid": job.pid, "warnings": list(job.warnings)})
    else:
        click.echo(job.pid)
    return 0
