"""Becomes an ipykernel, as a Jupyter server starts one, with a connection file in the test's folder."""

import os
import sys

# A kernel ends itself when its parent is not the one that this names.
os.environ["JPY_PARENT_PID"] = str(os.getppid())
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", os.path.abspath("connection.json")])
