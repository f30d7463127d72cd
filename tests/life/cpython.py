"""Runs files of CPython's own tests, with the interpreter that they belong to; notes what becomes of each test.

python3 tests/life/cpython.py OUTCOMES test_os test_pty: a line for each test, "name<TAB>outcome<TAB>reason".
"""

from __future__ import annotations

import sys
import unittest
from typing import TextIO


class Noted(unittest.TestResult):
    """Writes every outcome at once, for whoever reads along."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file

    def note(self, test, outcome, reason=""):  # type: ignore[no-untyped-def]
        print(test.id(), outcome, " ".join(str(reason).split())[-300:], sep="\t", file=self._file, flush=True)

    def addSuccess(self, test):  # type: ignore[no-untyped-def]
        self.note(test, "ok")

    def addError(self, test, err):  # type: ignore[no-untyped-def]
        self.note(test, "error", self._exc_info_to_string(err, test))

    def addFailure(self, test, err):  # type: ignore[no-untyped-def]
        self.note(test, "failure", self._exc_info_to_string(err, test))

    def addSkip(self, test, reason):  # type: ignore[no-untyped-def]
        self.note(test, "skipped", reason)

    def addExpectedFailure(self, test, err):  # type: ignore[no-untyped-def]
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test):  # type: ignore[no-untyped-def]
        self.note(test, "unexpected success")

    def addSubTest(self, test, subtest, err):  # type: ignore[no-untyped-def]
        if err:
            self.note(test, "failure", f"{subtest} {self._exc_info_to_string(err, test)}")


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
