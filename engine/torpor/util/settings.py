"""Torpor's settings: from the environment, else from the user's or the host's configuration file.

The files are TOML: $XDG_CONFIG_HOME/torpor/config.toml (~/.config if that is not set), which takes precedence, and
/etc/torpor/config.toml. A process reads them once. So a later change does not affect a running job, and a mistake in it
cannot keep the job from being saved.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from torpor.errors import SettingError
from torpor.util import durations

SYSTEM_FILE: Final = "/etc/torpor/config.toml"
MAX_FILE: Final = 1 << 20
"""Bytes."""
_left_out: Final[set[str]] = set()
DEFAULT: Final = "default"
"""The source of a value that nothing sets."""


@dataclass(frozen=True)
class Setting:
    """A setting: its name, and where its value comes from."""

    name: str
    """The key in a file; ``table.key`` if it is in a table."""
    help: str
    read: Callable[[object], Any]
    """Checks and converts the value in a file. Raises ValueError."""
    default: Any = None
    variable: str = ""
    """The environment variable that takes precedence; an empty one counts as not set."""


@dataclass(frozen=True)
class Value:
    """The value of a setting, and its source."""

    value: Any
    source: str
    """The environment variable, the file, or DEFAULT."""


def _directory(said: object) -> str:
    path = os.path.expanduser(os.path.expandvars(said)) if isinstance(said, str) else ""
    if not os.path.isabs(path):
        raise ValueError("it must be the path of a directory that begins with / or ~")
    if "$" in path:
        raise ValueError("it names an environment variable that is not set")
    return path


def _yes_or_no(said: object) -> bool:
    if isinstance(said, bool):
        return said
    raise ValueError("it must be true or false")


def _count(least: int) -> Callable[[object], int]:
    def read(said: object) -> int:
        if isinstance(said, int) and not isinstance(said, bool) and said >= least:
            return said
        raise ValueError(f"it must be a whole number, {least} or more")

    return read


def _time(said: object) -> float:
    if isinstance(said, str):
        return durations.seconds(said)
    raise ValueError('it must be a time span such as "90s", "12h" or "30d"')


_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(said: object) -> int:
    """Read a number of bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,15})([KMG]?)", str(said).upper())
    if match and not isinstance(said, bool):
        return int(match[1]) * _UNITS[match[2]]
    raise ValueError("it must be a size such as 4M, 512K, or 0 for none")


def written(name: str, value: Any) -> str:
    """A value of a setting as a file has it, without quotes; ``-`` for none."""
    read = SETTINGS[name].read
    if value is None:
        return "-"
    if read is _time:
        return durations.written(value)
    if read is size:
        unit = max((one for one in _UNITS if value and value % _UNITS[one] == 0), key=_UNITS.__getitem__, default="")
        return f"{value // _UNITS[unit]}{unit}"
    return str(value).lower() if isinstance(value, bool) else str(value)


SETTINGS: Final = {
    setting.name: setting
    for setting in (
        Setting("store", "the directory of the snapshots", _directory, variable="TORPOR_STORE"),
        Setting(
            "small-files",
            "the size of the largest file, made by a job, that its snapshots contain",
            size,
            4 << 20,
            "TORPOR_SMALL_FILES",
        ),
        Setting("limit", "how much a save may write per second; 0: any amount", size, 0, "TORPOR_LIMIT"),
        Setting("prove", "compare a woken tree with its snapshot before it runs", _yes_or_no, False, "TORPOR_PROVE"),
        Setting(
            "metrics",
            "the directory of node_exporter's textfile collector, for docs/metrics.md",
            _directory,
            variable="TORPOR_METRICS",
        ),
        Setting("run.keep-last", "how many of its snapshots `torpor run --every` keeps", _count(1), 5),
        Setting("prune.keep-last", "how many of the newest snapshots `torpor prune` keeps", _count(0)),
        Setting("prune.keep-hourly", "for how many hours it keeps the newest snapshot of the hour", _count(0)),
        Setting("prune.keep-daily", "for how many days it keeps the newest snapshot of the day", _count(0)),
        Setting("prune.keep-weekly", "for how many weeks it keeps the newest snapshot of the week", _count(0)),
        Setting("prune.keep-monthly", "for how many months it keeps the newest snapshot of the month", _count(0)),
        Setting("prune.keep-within", "it keeps all snapshots taken within this time before the newest", _time),
    )
}
"""All settings, by name."""


def files() -> tuple[str, str]:
    """The files that are read if they exist; the first one takes precedence."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    # XDG base directory specification: a relative path must be ignored
    home = home if os.path.isabs(home) else os.path.expanduser("~/.config")
    return os.path.join(home, "torpor", "config.toml"), SYSTEM_FILE


def get(name: str) -> Value:
    """The value of a setting. Raises SettingError if a file has any mistake, also in another setting."""
    setting = SETTINGS[name]
    # Even if an environment variable overrides them: a mistake is reported early.
    found = {file: read(file) for file in files() if file not in _left_out}
    said = os.environ.get(setting.variable, "").strip() if setting.variable else ""
    if said:
        return Value(_of_variable(setting, said), f"${setting.variable}")
    found_values = (Value(values[name], file) for file, values in found.items() if name in values)
    return next(found_values, Value(setting.default, DEFAULT))


def without_files() -> None:
    """Make this process use only the environment and the defaults."""
    _left_out.update(files())


def _of_variable(setting: Setting, said: str) -> Any:
    if setting.read is size:
        try:
            return size(said)
        except ValueError as error:
            raise SettingError(f"${setting.variable} is {said!r}: {error}") from None
    return said if setting.read is _directory else True  # any directory name, and any value but an empty one means yes


@cache
def read(file: str) -> dict[str, Any]:
    """The settings in a file; empty if there is none that this user may know of. Raises SettingError."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if isinstance(error, PermissionError) and not _is_known(file):
            return {}  # $HOME is another user's, for example after `su` without `-`
        raise SettingError(f"{file} cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE:
        raise SettingError(f"{file} is too large for a configuration file")
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415  only if there is a file
    else:
        import tomli as tomllib  # noqa: PLC0415  as above
    try:
        said = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{file} is not valid TOML: {error}") from None
    return {name: _checked(name, value, file) for name, value in _flat(said)}


def _is_known(file: str) -> bool:
    """Whether this user may see whether a file of this name exists."""
    try:
        os.lstat(file)
    except OSError:
        return False
    return True


def _flat(said: dict[str, Any]) -> list[tuple[str, Any]]:
    """The keys of a file; those of a table as ``table.key``."""
    tables = {name.partition(".")[0] for name in SETTINGS if "." in name}
    found = []
    for key, value in said.items():
        if key in tables and isinstance(value, dict):
            found += [(f"{key}.{below}", inner) for below, inner in value.items()]
        else:
            found.append((key, value))
    return found


def _checked(name: str, said: object, file: str) -> Any:
    if name not in SETTINGS:
        import difflib  # noqa: PLC0415  only for a mistake

        near = difflib.get_close_matches(name, SETTINGS, 1)
        advice = f"did you mean {near[0]}?" if near else "`torpor config` lists all"
        raise SettingError(f"{file}: there is no setting {name!r}", advice=advice)
    try:
        return SETTINGS[name].read(said)
    except ValueError as error:
        raise SettingError(f"{file}: {name} is {said!r}: {error}") from None
