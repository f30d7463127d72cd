"""The settings: Dask's own configuration, block ``torpor:``. torpor-schema.yaml says what each is."""

from __future__ import annotations

import signal
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
    """What the user wants; goes from the scheduler to every worker. Durations in seconds, sizes in bytes."""

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
        """Take what is given, by its name in the configuration with ``_`` for ``-``, and Dask's configuration.

        Raises ValueError for a value that is none, TypeError for a name that is none.
        """
        known = _defaults["torpor"]
        given = {name.replace("_", "-"): value for name, value in given.items()}
        if unknown := sorted(given.keys() - known.keys()):
            raise TypeError(f"there is no setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        value = {name: given.get(name, dask.config.get(f"torpor.{name}")) for name in known}
        if value["keep"] not in ("auto", "all"):
            raise ValueError(f"torpor.keep is {value['keep']!r}; it can be auto or all")
        warning = value["warning"]
        if warning is not None and warning not in signal.Signals.__members__:
            raise ValueError(f"torpor.warning is {warning!r}, which is no signal; give SIGUSR1, say")
        return cls(
            store=Store(value["store"]).path,
            keep_all=value["keep"] == "all",
            min_duration=parse_timedelta(value["min-duration"]),
            max_size=parse_bytes(value["max-size"]),
            write_through=bool(value["write-through"]),
            gather=parse_timedelta(value["gather"]),
            queue=parse_bytes(value["queue"]),
            patience=parse_timedelta(value["patience"]),
            warm_start=bool(value["warm-start"]),
            warning=None if warning is None else signal.Signals[warning],
            drain=parse_timedelta(value["drain"]),
            hold=0.0 if value["hold"] is None else parse_timedelta(value["hold"]),
        )
