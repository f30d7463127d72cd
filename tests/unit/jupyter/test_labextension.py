"""The committed build of JupyterLab's extension is that of its sources."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTENSION = ROOT / "jupyter_ext"
INSTALLED = ROOT / "build" / "labextension"
"""Where `make labextension` builds, with the modules that it needs."""


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


@pytest.mark.skipif(
    not (shutil.which("node") and (INSTALLED / "node_modules" / "jest").is_dir()),
    reason="needs Node and the modules that `make labextension` installs",
)
def test_the_typescript() -> None:
    """The tests beside this file in `labextension`, by jest."""
    for source, name in ((EXTENSION / "labextension" / "src", "src"), (Path(__file__).parent / "labextension", "test")):
        shutil.rmtree(INSTALLED / name, ignore_errors=True)
        shutil.copytree(source, INSTALLED / name)
    shutil.copy(EXTENSION / "labextension" / "jest.config.json", INSTALLED)
    ran = subprocess.run(
        ["node", "node_modules/jest/bin/jest.js"], cwd=INSTALLED, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


WORDS = re.compile(r"'[A-Z][^'\n]* [^'\n]*'")
"""A literal that begins as a sentence or a label does."""
TRANSLATED = re.compile(r"(?:__\(|_n\()\s*$|_n\(\s*'[^']*',\s*$")
NOT_SHOWN = {"'Saves kernels, parks and wakes them, and takes them back to a checkpoint.'", "'Kernel Checkpoints'"}
"""What Jupyter itself lists of an extension, in English."""
BARE = re.compile(r">\s*[A-Za-z][\w ,.]*\s*</")
"""Words between two tags."""


def test_every_word_is_translated() -> None:
    found = []
    for path in sorted((EXTENSION / "labextension" / "src").glob("*.ts*")):
        text = path.read_text()
        for literal in WORDS.finditer(text):
            if not TRANSLATED.search(text[: literal.start()]) and literal[0] not in NOT_SHOWN:
                found.append((path.name, literal[0]))
        if path.suffix == ".tsx":
            found += [(path.name, bare[0]) for bare in BARE.finditer(text)]
    assert not found
