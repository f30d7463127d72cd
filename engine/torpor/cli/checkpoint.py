"""`torpor checkpoint PID`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import click

from torpor.cli.common import (
    command_options,
    name_option,
    note,
    parse_tags,
    print_json,
    progress_bar,
    reset_sigchld,
    snapshot_json,
    store_option,
    tell,
    with_files_option,
)
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from torpor import Stats

PID_DIGITS = 10
"""The most that a PID has."""


def _complete_jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the jobs that run under Torpor; any other process can be saved, too."""
    from click.shell_completion import CompletionItem

    from torpor.errors import TorporError
    from torpor.objects.process import jobs

    try:
        found = jobs.running()
    except TorporError:
        return []  # completion cannot show errors; the command itself will
    offers = [CompletionItem(str(job.pid), help=job.name) for job in found]
    offers += [CompletionItem(job.given_name, help=job.name) for job in found if job.given_name]
    return [offer for offer in offers if offer.value.startswith(incomplete)]


def _rate(_: click.Context, param: click.Parameter, said: str | None) -> int | None:
    """Read the bytes per second (a click callback)."""
    from torpor.util import settings

    try:
        return None if said is None else settings.size(said)
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None


def _checked(_: click.Context, param: click.Parameter, target: str) -> str:
    if not target.strip("0") or (target.isdecimal() and len(target) > PID_DIGITS):
        raise click.BadParameter(f"{target!r} is neither the PID of a process nor the name of a job", param=param)
    return target


def _pid_of(target: str) -> tuple[int, str]:
    """The process of a PID or of a job's name, and the name that the job's snapshots have."""
    from torpor.objects.process import jobs

    if target.isdecimal():
        return int(target), ""
    job = jobs.find(target)
    return job.pid, job.given_name or ("" if target in (job.name, *job.name.split()) else target)


@click.command("checkpoint", short_help="Save a process and all that it started.")
@click.argument("target", metavar="PID|NAME", callback=_checked, shell_complete=_complete_jobs)
@store_option
@click.option(
    "--then",
    type=click.Choice(["run", "stop", "kill"]),
    default="run",
    show_default=True,
    help="What to do with the processes once they are saved.",
)
@click.option(
    "--outside",
    type=click.Choice(["refuse", "reset"]),
    default="refuse",
    show_default=True,
    help="Unix sockets whose other end is not among the processes: save nothing, or save them as closed by their peer.",
)
@click.option(
    "--tcp",
    type=click.Choice(["reset", "keep"]),
    default="reset",
    show_default=True,
    help="TCP connections to others: the woken job sees them reset, or they go on, as root with --then kill.",
)
@click.option(
    "--bundle-files", is_flag=True, help="Save programs, libraries and open files too, for a node that lacks them."
)
@click.option(
    "--limit",
    metavar="RATE",
    callback=_rate,
    help="The most bytes to write per second, such as 200M; 0: any amount. [default: `torpor config`]",
)
@with_files_option
@name_option
@click.option("--stats", "wanted", is_flag=True, help="Print the costs, too.")
@click.option("--tag", "tags", metavar="K=V", multiple=True, callback=parse_tags, help="A label; may be repeated.")
@command_options
def command(
    target: str,
    store: str | None,
    then: Literal["run", "stop", "kill"],
    outside: Literal["refuse", "reset"],
    tcp: Literal["reset", "keep"],
    bundle_files: bool,
    limit: int | None,
    with_files: tuple[str, ...],
    name: str | None,
    wanted: bool,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    """Save process PID, or the job NAME of `torpor ps`, and all that it started; print the snapshot's id.

    If it cannot be saved, or is to be stopped or killed and could not be woken here, nothing happens to it: it runs on.
    """
    import torpor
    from torpor import procfs
    from torpor.errors import Reason, Refused
    from torpor.store import NAME

    reset_sigchld()
    pid, called = _pid_of(target)
    if name := name or tags.get(NAME) or called:
        tags[NAME] = name
    if pid in procfs.ancestry(os.getpid()):
        why = "this command runs below it, and would be frozen with it"
        raise Refused(
            f"process {pid} was not saved", [Reason(f"process {pid}", why, "save it from another terminal or job")]
        )
    stats = torpor.Stats()

    try:
        with progress_bar(f"saving {pid}") as progress:
            info = torpor.checkpoint(
                pid,
                store=store,
                then=then,
                tags=tags,
                progress=progress,
                outside=outside,
                tcp=tcp,
                bundle_files=bundle_files,
                limit=limit,
                with_files=with_files,
                stats=stats,
            )
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            raise KeyboardInterrupt(f"process {pid} was not saved, and runs on") from None
        (info,) = interrupt.args  # it came too late to stop it
    if as_json:
        print_json(snapshot_json(info) | ({"stats": asdict(stats)} if wanted else {}))
    else:
        for text in info.notices:
            note(text)
        click.echo(info.id)
        if wanted:
            note(_cost(stats))
        elif sys.stderr.isatty():
            pause = f"; it stood still for {_span(stats.pause_ns)}" if stats.pause_ns else ""
            tell(f"saved {info.summary}: {readable(info.size)}, of which {readable(info.written)} are new{pause}")


def _span(ns: int) -> str:
    return f"{ns / 1e9:.1f} s" if ns >= 10**9 else f"{ns / 1e6:.0f} ms"


def _cost(stats: Stats) -> str:
    """Format the costs of a checkpoint, stage by stage."""
    pause = f"it stood still for {_span(stats.pause_ns)}; " if stats.pause_ns else ""
    stages = (
        ("look", stats.look_ns),
        ("write", stats.write_ns),
        ("publish", stats.publish_ns),
        ("prove that it can be woken here", stats.proof_ns),
    )
    shown = "".join(f"to {what} took {ns / 1e6:.0f} ms; " for what, ns in stages if ns)
    return f"{pause}{shown}{stats.total_ns / 1e6:.0f} ms in all"
