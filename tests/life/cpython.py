"""Runs files of CPython's own tests, with the interpreter that they belong to; notes what becomes of each test.

python3 tests/life/cpython.py OUTCOMES test_os test_pty: a line for each test, "name<TAB>outcome<TAB>reason".
"""

from __future__ import annotations

import sys
import traceback
import unittest
from types import TracebackType
from typing import TextIO, TypeAlias

Raised: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"


def told(raised: Raised) -> str:
    """An exception in words."""
    return "".join(traceback.format_exception(*raised))


class Noted(unittest.TestResult):
    """Writes every outcome at once, for whoever reads along."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file

    def note(self, test: unittest.TestCase, outcome: str, reason: object = "") -> None:
        print(test.id(), outcome, " ".join(str(reason).split())[-300:], sep="\t", file=self._file, flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.note(test, "ok")

    def addError(self, test: unittest.TestCase, err: Raised) -> None:
        self.note(test, "error", told(err))

    def addFailure(self, test: unittest.TestCase, err: Raised) -> None:
        self.note(test, "failure", told(err))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.note(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Raised) -> None:
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.note(test, "unexpected success")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Raised | None) -> None:
        if err:
            self.note(test, "failure", f"{subtest} {told(err)}")


def main(outcomes: str, *names: str) -> None:
    from test import support  # noqa: PLC0415 - only the interpreter whose tests they are has it

    support.use_resources = []  # what a plain run of the suite does: no network, no hours
    with open(outcomes, "a") as file:
        for name in names:
            try:
                tests = unittest.TestLoader().loadTestsFromName(f"test.{name}")
            except unittest.SkipTest as reason:  # the whole file
                print(name, "skipped", reason, sep="\t", file=file, flush=True)
            else:
                tests.run(Noted(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
