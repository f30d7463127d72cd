"""The command line: `torpor`. Errors are a line for people or JSON for programs, and an exit code by kind.

What `__all__` names is for commands of other packages that are to look and fail as those of `torpor` do.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from torpor.cli.common import command_options, console, human_age, human_size, note, print_json, printable, tell
from torpor.cli.session import Session, verbose_option

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from torpor.errors import TorporError

__all__ = [
    "command_options",
    "console",
    "human_age",
    "human_size",
    "main",
    "note",
    "print_json",
    "printable",
    "run_command",
]

COMMANDS = ("doctor", "checkpoint", "restore", "run", "ls", "show", "verify", "rm", "prune", "sbatch", "slurm")
"""In the order in which a person meets them; each is a module of this package with a `command`."""

UNWRITTEN = 1
FAULT = 70  # EX_SOFTWARE of sysexits.h, as torpor.errors has it
REPORT = "this is a fault in Torpor: please report it, with what the same command says with -v"


class Unwritten(Exception):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        self.errno, self.strerror = error.errno, error.strerror
        super().__init__(self.strerror)


class _Output(io.FileIO):
    """Standard output or error. What the first does not take is told once, and as that."""

    failed = False

    def write(self, data: Buffer, /) -> int:
        """Write, or raise Unwritten; afterwards forget what is still in the buffers above."""
        if not self.failed:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = True
                if self.fileno() == 1:  # of the other the exit code tells
                    raise Unwritten(error) from error
        return len(memoryview(data))


class Commands(click.Group):
    """Loads a command when it is wanted, so that completion and --help do not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in our own order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"torpor.cli.{cmd_name}").command
        return command


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"torpor {version('torpor')}")
        ctx.exit()


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Snapshots lie in --store, else $TORPOR_STORE, else $XDG_DATA_HOME/torpor.",
)
@verbose_option
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Tell the version.",
)
def cli() -> None:
    """Freeze a running Jupyter kernel or batch job, keep it, and wake it later, here or elsewhere."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `torpor` and exit; `argv` is sys.argv[1:] unless given."""
    run_command(cli, "torpor", argv)


def run_command(command: click.Command, name: str, argv: Sequence[str] | None) -> NoReturn:
    """Run a command, tell its error if it has one, and exit: with its status, or a code by the kind of the error.

    Args:
        command: what click made of a function; what it returns is the exit code.
        name: how the program is called, for help and errors.
        argv: the command line without the program's name; None: sys.argv[1:].
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
    except click.ClickException as error:  # the command line is wrong: click's own words and code
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except Unwritten as error:
        if error.errno != errno.EPIPE:  # whoever closed it, as `head` does, wants no more
            click.echo(f"torpor: standard output cannot be written: {error.strerror}", err=True)
        return UNWRITTEN
    except Exception as error:
        return _tell(error, session)
    return status if isinstance(status, int) else 0


def _output(stream: TextIO, number: int) -> TextIO:
    """A stream in the place of Python's own, which would not forget what cannot be written."""
    buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
    lines = number == 2 or stream.isatty()
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=lines)


def _fill_standard_descriptors() -> None:
    """Put /dev/null in the place of 0, 1 and 2 where they are closed: what is opened later would have their numbers,
    and a job would get it as its own."""
    for number, stream, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the kernel gives the lowest number that is free
            setattr(sys, stream, os.fdopen(number, mode, closefd=False))


def _tell(error: Exception, session: Session) -> int:
    from torpor.errors import TorporError

    if not isinstance(error, TorporError):
        error = _fault(error)
    if session.verbose:
        for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
            tell(line)
    if session.json:
        click.echo(json.dumps({"error": _as_json(error)}))
    else:
        _tell_people(error, session)
    return error.exit_code


def _fault(error: Exception) -> TorporError:
    from torpor.errors import TorporError

    told = TorporError(f"{type(error).__name__}: {error}", advice=REPORT)
    told.__cause__ = error
    return told


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
    told: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message,
        "advice": error.advice,
        "exit_code": error.exit_code,
    }
    if error.details:
        told["details"] = error.details
    if reasons := getattr(error, "reasons", ()):
        told["reasons"] = [{"subject": r.subject, "why": r.why, "advice": r.advice} for r in reasons]
    return told
