"""torpor(1): the manual page, made of the help texts when the package is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import TypeGuard

import click

from torpor import errors
from torpor.cli import cli
from torpor.util import settings


def page(version: str) -> str:
    """The page in the language of man(7)."""
    commands = [line for name, command in _leaves(cli, "torpor") for line in _command(name, command)]
    kinds = {kind.exit_code: kind for kind in vars(errors).values() if _is_error(kind)}
    files = ("~/.config/torpor/config.toml", settings.SYSTEM_FILE)
    lines = [
        f'.TH TORPOR 1 "" "Torpor {_text(version)}"',
        ".SH NAME",
        rf"torpor \- {_text(_first(cli.help))}",
        ".SH SYNOPSIS",
        r"\fBtorpor\fR COMMAND [OPTIONS] [ARGUMENTS]",
        ".SH COMMANDS",
        r"Every command has \fB\-\-json\fR, \fB\-v\fR (print errors in full) and \fB\-\-help\fR.",
        *commands,
        ".SH EXIT STATUS",
        *_items((str(code), _first(inspect.getdoc(kind))) for code, kind in sorted(kinds.items())),
        ".SH FILES",
        *_items((file, "settings in TOML, as below") for file in files),
        ".SH SETTINGS",
        *_items(
            (name + (f", ${one.variable}" if one.variable else ""), one.help) for name, one in settings.SETTINGS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _is_error(kind: object) -> TypeGuard[type[errors.TorporError]]:
    return isinstance(kind, type) and issubclass(kind, errors.TorporError) and not kind.__name__.startswith("_")


def _leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is not a group, with its full name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for word in command.list_commands(context):
        below = command.get_command(context, word)
        assert below
        yield from _leaves(below, f"{name} {word}")


def _command(name: str, command: click.Command) -> Iterator[str]:
    arguments = " ".join(command.collect_usage_pieces(click.Context(command)))
    yield f'.SS "{_text(f"{name} {arguments}")}"'
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ".PP"
        yield _text(" ".join(paragraph.split()))
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    context = click.Context(command)
    records = (one.get_help_record(context) for one in options if not {"--json", "--verbose"} & {*one.opts})
    yield from _items(record for record in records if record)


def _items(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in pairs:
        yield ".TP"
        yield rf"\fB{_text(term)}\fR"
        yield _text(" ".join(text.split()))


def _first(text: str | None) -> str:
    return (text or "").partition("\n")[0].rstrip(".")


def _text(text: str) -> str:
    """Escape text that roff would interpret."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
