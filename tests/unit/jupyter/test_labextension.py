"""The committed build of JupyterLab's extension is that of its sources."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

EXTENSION = Path(__file__).parents[3] / "jupyter_ext"


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
