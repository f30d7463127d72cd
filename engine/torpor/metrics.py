"""What became of checkpoints and restores, counted for Prometheus.

`families` has the counts of this process. If `metrics` is set (see `torpor config`), each checkpoint and restore is
also added to a file of its user's in that directory, which node_exporter's textfile collector reads. What cannot be
written there is not counted: no job fails for it.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from torpor.errors import Refused, RestoreRefused, TorporError
from torpor.util import settings
from torpor.util.whole_files import drafted

__all__ = ["Family", "Labels", "families"]

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values of a sample's labels."""
_Samples: TypeAlias = dict[tuple[str, Labels], float]
F = TypeVar("F", bound=Callable[..., Any])
_What: TypeAlias = Literal["checkpoint", "restore"]


@dataclass(frozen=True)
class Family:
    """A metric with its samples."""

    name: str
    """Without the suffixes of its samples."""
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: tuple[tuple[str, Labels, float], ...] = ()
    """The full name, the labels and the value of each."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of its samples end with."""
        return {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]


_FAMILIES: Final = (
    Family("torpor_checkpoints", "counter", "Checkpoints by how they ended: saved, or the name of the error"),
    Family("torpor_checkpoint_seconds", "histogram", "How long the checkpoints took that succeeded"),
    Family("torpor_pause_seconds", "histogram", "How long processes stood still that ran on after a checkpoint"),
    Family("torpor_checkpoint_size_bytes", "counter", "Bytes that the snapshots have"),
    Family("torpor_checkpoint_written_bytes", "counter", "Bytes of these that were new to the store"),
    Family("torpor_last_checkpoint_timestamp_seconds", "gauge", "When the last checkpoint succeeded"),
    Family("torpor_restores", "counter", "Restores by how they ended: woken, or the name of the error"),
    Family("torpor_restore_seconds", "histogram", "How long the restores took that succeeded"),
    Family("torpor_refusals", "counter", "Why checkpoints and restores were refused; one may have several reasons"),
)
_BOUNDS: Final = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0)
"""Seconds: of the buckets of every histogram."""
_REFUSALS: Final = "torpor_refusals_total"
_MOST_REASONS: Final = 64
"""How many reasons are told apart; all others count as OTHER."""
OTHER: Final = "other"
_LONGEST_REASON: Final = 120
"""Characters."""
_LARGEST_FILE: Final = 1 << 20
"""Bytes."""
_LOCK_SECONDS: Final = 1.0
"""How long to wait for another process that adds to the file."""
_LOOK_SECONDS: Final = 0.01

_here: _Samples = {}
_lock: Final = threading.Lock()


def families() -> list[Family]:
    """Every metric, with what this process has counted."""
    with _lock:
        return _sorted(_here)


def saved(seconds: float, pause: float, size: int, written: int) -> None:
    """Count a checkpoint that succeeded; `pause` is 0 for processes that were stopped or killed."""
    _add(
        _ended("torpor_checkpoints_total", "saved")
        | _observed("torpor_checkpoint_seconds", seconds)
        | (_observed("torpor_pause_seconds", pause) if pause else {})
        | {
            ("torpor_checkpoint_size_bytes_total", ()): float(size),
            ("torpor_checkpoint_written_bytes_total", ()): float(written),
            ("torpor_last_checkpoint_timestamp_seconds", ()): time.time(),
        }
    )


def counts_restores(restore: F) -> F:
    """Make a function that restores snapshots count how that ended."""

    @wraps(restore)
    def counted(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        with counted_failures("restore"):
            job = restore(*arguments, **options)
        seconds = time.monotonic() - began
        _add(_ended("torpor_restores_total", "woken") | _observed("torpor_restore_seconds", seconds))
        return job

    return cast(F, counted)


@contextmanager
def counted_failures(what: _What) -> Iterator[None]:
    """Count an error that leaves the block."""
    try:
        yield
    except TorporError as error:
        failed(what, error)
        raise


def failed(what: _What, error: TorporError) -> None:
    """Count a checkpoint or a restore that failed or was refused."""
    added = _ended(f"torpor_{what}s_total", type(error).__name__)
    if isinstance(error, Refused | RestoreRefused):
        for reason in error.reasons:
            added[_REFUSALS, (("of", what), ("reason", in_general(reason.why)))] = 1.0
    _add(added)


def in_general(why: str) -> str:
    """A reason without what is particular to one process: numbers, names and paths, which the file shows to all."""
    text = re.sub(r"process \d+ \(.*?\)", "process N", why)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    text = re.sub(r"(?<![\w.])/[^\s,;:)]+", "/...", text)
    return re.sub(r"\b(0x[0-9a-f]+|\d+)\b", "N", text)[:_LONGEST_REASON]


def _ended(name: str, result: str) -> _Samples:
    return {(name, (("result", result),)): 1.0}


def _observed(name: str, value: float) -> _Samples:
    buckets = {(f"{name}_bucket", (("le", str(bound)),)): float(value <= bound) for bound in _BOUNDS}
    return buckets | {
        (f"{name}_bucket", (("le", "+Inf"),)): 1.0,
        (f"{name}_sum", ()): value,
        (f"{name}_count", ()): 1.0,
    }


def _add(added: _Samples) -> None:
    with _lock:
        _merge(_here, added)
    with suppress(OSError, TorporError):
        if directory := settings.get("metrics").value:
            _add_to_file(directory, added)


def _merge(into: _Samples, added: Mapping[tuple[str, Labels], float]) -> None:
    for (name, labels), value in added.items():
        key = name, labels
        if name == _REFUSALS and key not in into and sum(known == name for known, _ in into) >= _MOST_REASONS:
            key = name, (labels[0], ("reason", OTHER))
        into[key] = max(into.get(key, 0.0), value) if "timestamp" in name else into.get(key, 0.0) + value


def _sorted(samples: Mapping[tuple[str, Labels], float]) -> list[Family]:
    found = []
    for family in _FAMILIES:
        names = [family.name + suffix for suffix in family.suffixes]
        own = [(name, labels, samples[name, labels]) for name, labels in samples if name in names]
        own.sort(key=lambda sample: names.index(sample[0]))
        found.append(Family(family.name, family.kind, family.help, tuple(own)))
    return found


# ------------------------------------------------------------------------------------------------- the file


def _add_to_file(directory: str, added: _Samples) -> None:
    """Add samples to this user's file. Other processes of the user may do so at the same time."""
    path = os.path.join(directory, f"torpor-{os.geteuid()}.prom")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        if not _locked(lock):
            return
        samples = _read(path)
        _merge(samples, added)
        with drafted(path, 0o644) as fd:
            os.fchmod(fd, 0o644)  # for the collector, whatever the umask
            with open(fd, "w", closefd=False, encoding="utf-8") as file:
                file.write(_text(samples))
    finally:
        os.close(lock)


def _locked(fd: int) -> bool:
    """Lock a file. Return False if another process keeps it: one that was frozen meanwhile may do so for ever."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_SECONDS)


def _read(path: str) -> _Samples:
    """The samples of a file; none if it is not there, or not this user's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    with open(fd, encoding="utf-8", errors="replace") as file:
        if os.fstat(fd).st_uid != os.geteuid():
            return {}
        return dict(_parsed(file.read(_LARGEST_FILE)))


_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES: Final = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
_MEANT: Final = {escape: char for char, escape in _ESCAPES.items()}


def _parsed(text: str) -> Iterator[tuple[tuple[str, Labels], float]]:
    for line in text.splitlines():
        if found := _SAMPLE.fullmatch(line):
            labels = tuple(
                (name, re.sub(r"\\.", lambda match: _MEANT.get(match[0], match[0]), value))
                for name, value in _LABEL.findall(found[2] or "")
            )
            with suppress(ValueError):
                yield (found[1], labels), float(found[3])


def _text(samples: _Samples) -> str:
    """The text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats)."""
    lines = []
    for family in _sorted(samples):
        name = family.name + "_total" * (family.kind == "counter")
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
        for sample, labels, value in family.samples:
            shown = ",".join(f'{label}="{"".join(_ESCAPES.get(c, c) for c in text)}"' for label, text in labels)
            lines.append(f"{sample}{{{shown}}} {value!r}" if labels else f"{sample} {value!r}")
    return "\n".join(lines) + "\n"
