"""The beginning of the command `torpor`: a Python that ignores what is meant for a job's runs it (native/start.c).

Module systems on clusters set PYTHONPATH for the programs of a job, and the packages there may be another Python's. So
this module imports only what Python has imported already: if what Torpor needs is found there only, it starts Python
anew.

Documented in: python(1), https://docs.python.org/3/using/cmdline.html.
"""

from __future__ import annotations

import os
import sys

from torpor.util.isolation import isolation


def main() -> None:
    """Run `torpor`."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True
    if sys.orig_argv[1:2] == ["-I"] and "-I" not in (options := isolation()):
        with open("/proc/self/environ", "rb") as file:  # os.environ may have an LC_CTYPE of Python's own (PEP 538)
            words = [word.partition(b"=") for word in file.read().split(b"\0") if b"=" in word]
        given = {name: value for name, _, value in words}
        os.execve(sys.executable, [sys.executable, *options, *sys.orig_argv[2:]], given)
    try:
        with open("/proc/self/comm", "w") as file:  # as of a script that the kernel starts, for ps(1) and pgrep(1)
            file.write("torpor")
    except OSError:
        pass
    from torpor.cli import main as run  # noqa: PLC0415  see above

    run()
