"""The shell of the scripts that Torpor puts before a job's own programs. It must leave their environment as it is."""

from __future__ import annotations

import os


def shebang() -> str:
    """The first line of such a script, with its end.

    dash removes from the environment what cannot be a variable of a shell, such as the functions that bash exports:
    without `BASH_FUNC_module%%` there is no `module load` in a script. bash leaves all of it. With -p it neither takes
    over the functions nor reads $BASH_ENV (bash(1)).
    """
    return "#!/bin/bash -p\n" if os.access("/bin/bash", os.X_OK) else "#!/bin/sh\n"
