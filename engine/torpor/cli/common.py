"""Code that commands share: options, the progress bar, the format of sizes, ages and names."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from torpor.cli.session import Session, verbose_option
from torpor.util import durations
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console

    from torpor.store import Progress, SnapshotInfo, Store

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic since click 8.2 only

F = TypeVar("F", bound=Callable[..., Any])


# --- options and arguments ----------------------------------------------------------------------------------


def _set_json(ctx: click.Context, _: click.Parameter, wanted: bool) -> bool:
    if wanted:
        ctx.ensure_object(Session).json = True
    return wanted


def command_options(function: F) -> F:
    """Add the options that every command has: --json and -v."""
    wanted = click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_set_json,
        is_eager=True,
        help="Print JSON, errors included.",
    )
    return wanted(verbose_option(function))


def _not_empty(_: click.Context, param: click.Parameter, path: str | None) -> str | None:
    if path == "":  # of a variable that is not set
        raise click.BadParameter("the name of the directory is empty", param=param)
    return path


def store_option(function: F) -> F:
    """Add the option --store; the command receives a path or None."""
    return click.option(
        "--store",
        type=click.Path(file_okay=False),
        callback=_not_empty,
        help="Directory of the snapshots [default: as `torpor config` says].",
    )(function)


def open_store(path: str | None) -> Store:
    """Open the store at `path`, or the default one, to read or to clean it.

    Raises NotFound if a store that the user named is not there: its file system may not be mounted. The default store
    can be listed before the first checkpoint makes it; `verify` and `prune` require it (cron may lack $TORPOR_STORE).
    """
    from torpor.store import Store
    from torpor.util import settings

    store = Store(path)
    if path is not None or settings.get("store").source != settings.DEFAULT:
        store.check_exists()
    return store


class SnapshotType(ParamType):
    """A snapshot: its id, its name, a unique beginning of the id, or ``latest``. Supports shell completion."""

    name = "snapshot"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the ids in the store that the command line names."""
        from click.shell_completion import CompletionItem

        from torpor.errors import TorporError
        from torpor.store import NAME, Store

        try:
            infos = Store(ctx.params.get("store")).snapshots()
        except TorporError:
            return []  # completion cannot show errors; the command itself will
        offers = [(info.id, info.summary) for info in reversed(infos)]
        names = {info.tags[NAME]: info.summary for info in infos if NAME in info.tags}
        offers += reversed(names.items())
        offers += [(info.short, info.summary) for info in reversed(infos)] if incomplete else [("latest", "")]
        return [CompletionItem(text, help=summary) for text, summary in offers if text.startswith(incomplete)]


def snapshot_argument(function: F) -> F:
    """Add the argument ID."""
    return click.argument("snapshot", metavar="ID", type=SnapshotType())(function)


KINDS = click.Choice(["tree", "dask"])
"""Of snapshots: process trees, and results of Dask tasks."""


class DurationType(ParamType):
    """A time span such as 90, 90s, 10m, 1h30m, converted to seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text. Zero, or text that is not a time span, is a usage error."""
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return durations.seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_tags(_: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Turn K=V options into a mapping (a click callback)."""
    tags = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE", param=param)
        tags[key] = text
    from torpor.store.writer import check_tags

    try:
        return check_tags(tags)
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from None


def _check_name(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    if name is None:
        return None
    if not name or name == "latest" or name.isdecimal():
        raise click.BadParameter(f"{name!r} cannot be a name: it means something else, or nothing", param=param)
    parse_tags(ctx, param, (f"name={name}",))
    return name


def name_option(function: F) -> F:
    """Add the option --name, by which commands find the snapshot."""
    return click.option(
        "--name",
        metavar="NAME",
        callback=_check_name,
        help="Name its snapshots: commands take NAME for the newest of them.",
    )(function)


def with_files_option(function: F) -> F:
    """Add the option --with-files."""
    return click.option(
        "--with-files",
        metavar="GLOB",
        multiple=True,
        help="Save what it has open for writing and matches GLOB, too, for `restore --files=rolled-back`; repeatable.",
    )(function)


PORTABLE_DEFAULT = "x86-64-v3"
"""The level of --portable without a value: every processor of servers since 2015 has it."""


class WithPortable(click.Command):
    """A command with --portable[=LEVEL] before a command line of another program.

    click would take the next word for the level.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the default level to --portable without one, among the options before the first other word."""
        valued = {
            name
            for one in self.params
            if isinstance(one, click.Option) and not one.is_flag and not one.count
            for name in one.opts
        }
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] not in ("-", "--"):
            if args[place] == "--portable":
                args[place] = f"--portable={PORTABLE_DEFAULT}"
            place += 2 if args[place] in valued else 1
        return super().parse_args(ctx, args)


def portable_option(function: F) -> F:
    """Add the option --portable[=LEVEL], for commands of the class `WithPortable`."""
    return click.option(
        "--portable",
        type=click.Choice(["x86-64-v2", "x86-64-v3", "x86-64-v4"]),
        metavar="[=LEVEL]",
        help="Start it so that its libraries use only what all processors of a level have: x86-64-v2, v3 (the default) "
        "or v4. Its snapshots can be woken on all of these.",
    )(function)


def files_option(words: str) -> Callable[[F], F]:
    """The option --files: what to do if files were changed in place since the snapshot. `words` are its help."""
    return click.option(
        "--files",
        type=click.Choice(["as-they-were", "as-they-are", "rolled-back"]),
        default="as-they-were",
        show_default=True,
        help=words,
    )


# --- output -------------------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """Print one JSON document."""
    in_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    click.echo(json.dumps(value, indent=2, ensure_ascii=not in_unicode))


def reset_sigchld() -> None:
    """Reset SIGCHLD to its default, in case the parent ignored it: otherwise the end of children is not reported."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def interrupted(text: str) -> Iterator[None]:
    """If Ctrl-C ends the block, add `text` to the error: how far the work got."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(text) from None


def note(text: str) -> None:
    """Print a note on standard error: a message that is not an error."""
    tell(f"torpor: note: {text}")


def tell(line: str) -> None:
    """Print a line on standard error; escape control characters, since names in it are untrusted."""
    click.echo(printable(line), err=True)


def console() -> Console:
    """Return the console for tables: as wide as the terminal, or unlimited for a pipe or file."""
    from rich.console import Console

    unbounded = 1 << 16  # columns; a table takes only what it needs
    return Console(width=None if sys.stdout.isatty() else unbounded, highlight=False, markup=False, emoji=False)


def human_age(created_ns: int, now_ns: int | None = None) -> str:
    """Format an age in the largest unit that fits; "just now" for a time in the future."""
    age_ns = (time.time_ns() if now_ns is None else now_ns) - created_ns
    return f"{human_span(age_ns)} ago" if age_ns >= 10**9 else "just now"


def human_span(ns: int) -> str:
    """Format a time span, given in nanoseconds, in the largest unit that fits."""
    seconds = max(ns, 0) // 10**9
    unit, length = next(
        ((unit, length) for unit, length in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= length), ("s", 1)
    )
    return f"{seconds // length} {unit}"


_LONGEST_NAME = 4096
"""Characters (PATH_MAX): no file, process or host has a longer name."""


def printable(text: str | bytes) -> str:
    """Make a name from an image safe to print: escape control and unprintable characters."""
    decoded = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    if len(decoded) > _LONGEST_NAME:
        decoded = decoded[:_LONGEST_NAME] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def snapshot_json(info: SnapshotInfo) -> dict[str, Any]:
    """Return a snapshot as JSON values; `created_ns` is nanoseconds since the epoch."""
    return {
        "id": info.id,
        "store": info.store,
        "kind": info.kind,
        "created_ns": info.created_ns,
        "host": info.host,
        "tags": dict(info.tags),
        "summary": info.summary,
        "notices": list(info.notices),
        "size": info.size,
        "written": info.written,
        "damage": info.damage,
    }


def exit_as(code: int) -> int:
    """End as the job ended: return its exit code, or kill this process by the signal -`code`."""
    if code >= 0:
        return code
    from torpor.remote import kernel_signals

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the job has already dumped its core, if any
    if -code in kernel_signals.EVERY:
        kernel_signals.set_default(-code)
        kernel_signals.unblock([-code])
    os.kill(os.getpid(), -code)
    return 128 - code  # the signal does not end a process by default: exit with the code that a shell gives


# --- progress -----------------------------------------------------------------------------------------------

PATIENCE = 1.0
"""Seconds that an operation may take before a bar appears."""


@contextmanager
def progress_bar(what: str) -> Iterator[Progress | None]:
    """Yield a callback for the bytes done and in total; it draws a bar on stderr after PATIENCE.

    Yields None if stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    begun = time.monotonic()
    bar: Any = None
    task: Any = None

    def advance(done: int, total: int) -> None:
        nonlocal bar, task
        seconds = time.monotonic() - begun
        if bar is None:
            if seconds < PATIENCE:
                return
            bar = _bar()
            task = bar.add_task(what, total=total, pace="")
            bar.start()
        bar.update(task, completed=done, total=total, pace=_pace(done, total, seconds))

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _pace(done: int, total: int, seconds: float) -> str:
    """Say how much is done, at which pace, and how long the rest takes.

    The pace is that since the beginning: what was mapped, and not read, comes all at once.
    """
    if not done:
        return f"of {readable(total)}"
    left = int((total - done) * seconds / done)
    return f"{readable(done)} of {readable(total)}, {readable(int(done / seconds))}/s, {left // 60}:{left % 60:02} left"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
