"""The settings: Dask's own configuration, block ``torpor:``. torpor-schema.yaml says what each is."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

from torpor.store import Store

with open(Path(__file__).with_name("torpor.yaml")) as _file:
    _defaults = yaml.safe_load(_file)
dask.config.update_defaults(_defaults)


@dataclass(frozen=True)
class Settings:
    """The user's settings. The scheduler sends them to every worker. Durations are in seconds, sizes in bytes."""

    store: str
    """Absolute path."""
    keep_all: bool
    min_duration: float
    max_size: int
    write_through: bool
    gather: float
    queue: int
    patience: float
    warm_start: bool
    warning: int | None
    """Number of the signal that announces preemption."""
    drain: float
    hold: float
    """0: never."""

    @classmethod
    def read(cls, **given: Any) -> Settings:
        """Read the settings from the arguments, and the others from Dask's configuration.

        An argument has the name of the setting, with ``_`` for ``-``. Raises ValueError for an invalid value, and
        TypeError for an unknown name.
        """
        known = _defaults["torpor"]
        given = {name.replace("_", "-"): value for name, value in given.items()}
        if unknown := sorted(given.keys() - known.keys()):
            raise TypeError(f"there is no setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        value = {name: given.get(name, dask.config.get(f"torpor.{name}")) for name in known}
        if value["store"] is not None and not isinstance(value["store"], str | os.PathLike):
            raise ValueError(f"torpor.store is {value['store']!r}; it must be the path of a directory")
        if value["keep"] not in ("auto", "all"):
            raise ValueError(f"torpor.keep is {value['keep']!r}; it can be auto or all")
        warning = value["warning"]
        if warning is not None and warning not in signal.Signals.__members__:
            raise ValueError(f"torpor.warning is {warning!r}, which is not a signal; give SIGUSR1, for example")
        if warning in ("SIGKILL", "SIGSTOP"):
            raise ValueError(f"torpor.warning is {warning}, which no process can catch; give SIGUSR1, for example")
        return cls(
            store=Store(value["store"]).path,
            keep_all=value["keep"] == "all",
            min_duration=_seconds(value, "min-duration"),
            max_size=_bytes(value, "max-size"),
            write_through=_truth(value, "write-through"),
            gather=_seconds(value, "gather"),
            queue=_bytes(value, "queue"),
            patience=_seconds(value, "patience"),
            warm_start=_truth(value, "warm-start"),
            warning=None if warning is None else signal.Signals[warning],
            drain=_seconds(value, "drain"),
            hold=0.0 if value["hold"] is None else _seconds(value, "hold"),
        )


def _seconds(values: Mapping[str, Any], name: str) -> float:
    try:  # Dask's function raises whatever comes, and gives None for None
        seconds = float(parse_timedelta(values[name]))
    except (TypeError, ValueError, LookupError, AttributeError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ValueError(f"torpor.{name} is {values[name]!r}; it must be a time span such as 10s, or seconds")
    return seconds


def _bytes(values: Mapping[str, Any], name: str) -> int:
    try:
        size = int(parse_bytes(values[name]))
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        size = -1
    if size < 0 or isinstance(values[name], bool):
        raise ValueError(f"torpor.{name} is {values[name]!r}; it must be a size such as 512MiB, or bytes")
    return size


def _truth(values: Mapping[str, Any], name: str) -> bool:
    value = values[name]
    if isinstance(value, bool):  # not "no", which would be true
        return value
    raise ValueError(f"torpor.{name} is {value!r}; it must be true or false")
