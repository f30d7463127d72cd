"""The command line: `torpor`. An error is printed as a line or as JSON; its kind gives the exit code.

The names in `__all__` are for commands of other packages that must look and fail like those of `torpor`.
"""

from __future__ import annotations

import errno
import importlib
import io
import itertools
import json
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from torpor.cli.common import command_options, console, human_age, note, print_json, printable, tell
from torpor.cli.session import Session, verbose_option
from torpor.util.sizes import readable

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from torpor.errors import TorporError

__all__ = [
    "command_options",
    "console",
    "human_age",
    "main",
    "note",
    "print_json",
    "printable",
    "readable",
    "run_command",
]

COMMANDS = (
    "doctor",
    "checkpoint",
    "restore",
    "run",
    "ps",
    "ls",
    "show",
    "diff",
    "init",
    "verify",
    "rm",
    "prune",
    "export",
    "import",
    "config",
    "sbatch",
    "slurm",
)
"""In the order in which a user needs them; each is a module of this package with a `command`."""

UNWRITTEN = 1
FAULT = 70  # EX_SOFTWARE of sysexits.h, as torpor.errors has it
REPORT = "this is a fault in Torpor: please report it, with what the same command says with -v"


class Unwritten(Exception):
    """Writing to standard output failed."""

    def __init__(self, error: OSError) -> None:
        self.errno, self.strerror = error.errno, error.strerror
        super().__init__(self.strerror)


class _Output(io.FileIO):
    """Standard output or error. A failed write to standard output is reported once."""

    failed = False

    def write(self, data: Buffer, /) -> int:
        """Write, or raise Unwritten; after a failure discard everything, since buffers above still flush."""
        if not self.failed:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = True
                if self.fileno() == 1:  # if standard error fails, only the exit code reports anything
                    raise Unwritten(error) from error
        return len(memoryview(data))


class Commands(click.Group):
    """Loads each command only on use, so that completion and --help do not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of COMMANDS."""
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `torpor help ls` for `torpor ls --help`. Say where an option of a command belongs."""
        try:
            return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)
        except click.NoSuchOption as error:
            ctx.fail(f"No such option: {error.option_name}. Options of a command go behind it: torpor ls --store DIR")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names; suggest one for a mistyped word."""
        if args[0] not in COMMANDS:
            from difflib import get_close_matches

            if near := get_close_matches(args[0], COMMANDS, 1):
                ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name + "_" * keyword.iskeyword(cmd_name)
        command: click.Command = importlib.import_module(f"torpor.cli.{module}").command
        return command


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.resources import files

        import torpor

        file = files("torpor").joinpath("build.txt")
        build = file.read_text() if file.is_file() else "editable"
        click.echo(f"torpor {torpor.__version__} ({build})")
        ctx.exit()


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Snapshots lie in --store, else where `torpor config` says.",
)
@verbose_option
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version, and from what it was built.",
)
def cli() -> None:
    """Freeze a running Jupyter kernel or batch job, keep it, and wake it later, here or elsewhere."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `torpor` and exit; `argv` is sys.argv[1:] unless given."""
    run_command(cli, "torpor", argv)


def run_command(command: click.Command, name: str, argv: Sequence[str] | None) -> NoReturn:
    """Run a command, print its error if it fails, and exit with its status or the exit code of the error.

    Args:
        command: the click command; its return value is the exit code.
        name: the name of the program in help and errors.
        argv: the command line without the program's name; None for sys.argv[1:].
    """
    sys.exit(_run(command, name, argv))


def _run(command: click.Command, name: str, argv: Sequence[str] | None) -> int:
    session = Session()
    _fill_standard_descriptors()
    if (out := sys.__stdout__) and sys.stdout is out:
        sys.stdout, sys.stderr = _output(out, 1), _output(sys.stderr, 2)
    try:
        status = command.main(argv, prog_name=name, standalone_mode=False, obj=session)
        sys.stdout.flush()
    except click.ClickException as error:  # the command line is wrong: click's own message and exit code
        if session.json or _asks_for_json(sys.argv[1:] if argv is None else argv):
            click.echo(json.dumps({"error": _usage_as_json(error)}))
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as interrupt:
        # click makes an Abort of a KeyboardInterrupt.
        tell("torpor: interrupted" + "".join(f": {text}" for text in (interrupt.__cause__ or interrupt).args))
        return 128 + signal.SIGINT
    except Unwritten as error:
        if error.errno != errno.EPIPE:  # the reader has closed the pipe, as `head` does
            click.echo(f"torpor: standard output cannot be written: {error.strerror}", err=True)
        return UNWRITTEN
    except Exception as error:
        return _tell(error, session)
    return status if isinstance(status, int) else 0


def _asks_for_json(argv: Sequence[str]) -> bool:
    """Whether --json is among words that could not be parsed; behind -- it is another program's."""
    return "--json" in itertools.takewhile(lambda word: word != "--", argv)


def _usage_as_json(error: click.ClickException) -> dict[str, Any]:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return {
        "kind": "UsageError",
        "message": error.format_message(),
        "advice": f"see `{context.command_path} --help`" if context else "",
        "exit_code": error.exit_code,
    }


def _output(stream: TextIO, number: int) -> TextIO:
    """Make a stream that replaces Python's own, which would keep what cannot be written."""
    buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
    lines = number == 2 or stream.isatty()
    # Characters of tags and file names that the locale's encoding lacks are shown escaped.
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=lines)


def _fill_standard_descriptors() -> None:
    """Open /dev/null for those of 0, 1 and 2 that are closed.

    Files opened later would get these numbers, and a job would inherit them as its standard streams.
    """
    for number, stream, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the kernel uses the lowest free number
            setattr(sys, stream, os.fdopen(number, mode, closefd=False))


def _tell(error: Exception, session: Session) -> int:
    from torpor.errors import TorporError

    if not isinstance(error, TorporError):
        error = _fault(error)
    if session.verbose:
        shown = error.with_traceback(_from_the_command(error.__traceback__))
        for line in "".join(traceback.format_exception(shown)).rstrip("\n").split("\n"):
            tell(line)
    if session.json:
        click.echo(json.dumps({"error": _as_json(error)}))
    else:
        _tell_people(error, session)
    return error.exit_code


def _from_the_command(frames: TracebackType | None) -> TracebackType | None:
    """The part of a traceback below the frames of click, which parses the command line."""
    last = frames
    at = frames
    while at:
        if at.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "click":
            last = at.tb_next
        at = at.tb_next
    return last or frames


def _fault(error: Exception) -> TorporError:
    from torpor.errors import TorporError

    unexpected = TorporError(f"{type(error).__name__}: {error}", advice=REPORT)
    unexpected.__cause__ = error
    return unexpected


def _tell_people(error: TorporError, session: Session) -> None:
    reasons = getattr(error, "reasons", ())
    if len(reasons) > 1:
        tell(f"torpor: {getattr(error, 'heading', '')}:")
        for reason in reasons:
            tell(f"  {reason}")
        if error.advice:
            tell(f"  {error.advice}")
        return
    tell(f"torpor: {error}")
    if session.verbose and error.details and not reasons:
        for line in error.details.split("\n"):
            tell(line)


def _as_json(error: TorporError) -> dict[str, Any]:
    as_json: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message,
        "advice": error.advice,
        "exit_code": error.exit_code,
    }
    if error.details:
        as_json["details"] = error.details
    if reasons := getattr(error, "reasons", ()):
        as_json["reasons"] = [{"subject": r.subject, "why": r.why, "advice": r.advice} for r in reasons]
    return as_json
