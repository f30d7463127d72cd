"""The committed build of JupyterLab's extension is that of its sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

EXTENSION = Path(__file__).parents[2] / "jupyter_ext"


def test_the_build_is_of_these_sources() -> None:
    sources = EXTENSION / "labextension"
    found = {
        f"./{path.relative_to(sources)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sources.rglob("*")
        if path.is_file()
    }
    told = (line.split("  ", 1) for line in (EXTENSION / "static" / "sources.sha256").read_text().splitlines())
    assert {path: digest for digest, path in told} == found, "run `make labextension`"


def test_the_build_is_whole() -> None:
    static = EXTENSION / "static"
    built = json.loads((static / "package.json").read_text())["jupyterlab"]["_build"]
    assert (static / built["load"]).is_file()
    assert (static / "schemas" / "torpor" / "plugin.json").is_file()
