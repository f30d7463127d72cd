"""The options of a Python that runs a program of Torpor's in a job's environment.

Only with modules that Python has imported at its start: see `torpor.entry`.

Documented in: python(1).
"""

from __future__ import annotations

import os
import site
import sys

NEEDED = ("blake3", "cffi", "click", "google/protobuf", "rich")
"""The packages that Torpor imports. pip installs none beside Torpor that it has found by PYTHONPATH."""


def isolation() -> list[str]:
    """Return the options by which Python ignores a job's variables, its current directory and its user's packages.

    They are fewer if Torpor itself is one of the user's packages, and none if it, or what it needs, is found by
    PYTHONPATH only.
    """
    root = os.path.abspath(__file__).rsplit("/", 3)[0]
    given = {os.path.abspath(path) for path in _of("PYTHONPATH")} - set(site.getsitepackages())
    if given:
        own = [path for path in sys.path if path not in given]
        if root in given or not all(any(os.path.isdir(f"{path}/{name}") for path in own) for name in NEEDED):
            return []
    if _is_of_user():
        return [] if _of("PYTHONUSERBASE") else ["-E"]
    return ["-I"]


def _of(name: str) -> list[str]:
    return [word for word in os.environ.get(name, "").split(os.pathsep) if word]


def _is_of_user() -> bool:
    if not site.ENABLE_USER_SITE or site.USER_SITE is None:
        return False
    try:
        return any(name.startswith("torpor-") for name in os.listdir(site.USER_SITE))
    except OSError:
        return False
