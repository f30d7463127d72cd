"""Messages to the user of a job: lines on its standard error."""

from __future__ import annotations

import signal
import sys
import traceback

from torpor.errors import TorporError
from torpor_slurm.job_directory import JobDirectory


def tell(words: str) -> None:
    """Print a line for the user."""
    print(f"torpor: {words}", file=sys.stderr, flush=True)


def name_of(number: int) -> str:
    """The name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"


class Failures:
    """Reports failures while the job runs on. Each reason is printed once until a save has succeeded again."""

    def __init__(self, directory: JobDirectory) -> None:
        self._directory = directory
        self._known: set[str] = set()

    def tell(self, what: str, error: Exception, *, silent: bool = False) -> None:
        """Log an error, with a traceback if it is a defect of Torpor. Print it for the user, unless `silent`."""
        words = str(error) if isinstance(error, TorporError) else "".join(traceback.format_exception(error))
        self._directory.log(f"{what}: {words}")
        if words not in self._known and not silent:
            tell(f"{what}: {words}")
            self._known.add(words)

    def over(self) -> None:
        """Forget the failures: a save has succeeded."""
        self._known.clear()
