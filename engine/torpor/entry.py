"""The beginning of the command `torpor`: Python must run as it was installed, not as the variables of a job say.

Module systems on clusters set PYTHONPATH for the programs of a job, and the packages there may be another Python's. So
this module imports only what Python has imported already. If such a variable is set, it starts Python anew, which then
ignores it. The job gets its variables unchanged.

Documented in: python(1), https://docs.python.org/3/using/cmdline.html.
"""

from __future__ import annotations

import os
import site
import sys

from torpor.util.isolation import isolation

CHANGING = (
    "PYTHONASYNCIODEBUG", "PYTHONDEBUG", "PYTHONDEVMODE", "PYTHONDUMPREFS", "PYTHONHOME", "PYTHONINSPECT",
    "PYTHONOPTIMIZE", "PYTHONPATH", "PYTHONPROFILEIMPORTTIME", "PYTHONTRACEMALLOC", "PYTHONVERBOSE", "PYTHONWARNINGS",
)  # fmt: skip
"""The variables that change which modules Python imports, what it prints, or how it ends."""


def main() -> None:
    """Run `torpor`."""
    others_packages = site.ENABLE_USER_SITE and site.USER_SITE in sys.path
    variables = any(os.environ.get(name) for name in CHANGING)
    asked = (others_packages or variables) and not sys.flags.ignore_environment
    flags = isolation() if asked else []  # it looks into folders, which may lie on a network
    if flags and (variables or "-I" in flags):
        try:
            with open("/proc/self/environ", "rb") as file:  # os.environ may have an LC_CTYPE of Python's own (PEP 538)
                words = [word.partition(b"=") for word in file.read().split(b"\0") if b"=" in word]
            given = {name: value for name, _, value in words}
            os.execve(sys.executable, [sys.executable, *flags, *sys.orig_argv[1:]], given)
        except OSError:  # no /proc, or the arguments have their greatest length: perhaps this Python will do
            pass
    elif sys.flags.isolated:
        try:
            with open("/proc/self/comm", "w") as file:  # as before execve(2) of Python, for ps(1) and pgrep(1)
                file.write("torpor")
        except OSError:
            pass
    from torpor.cli import main as run  # noqa: PLC0415  see above

    run()
