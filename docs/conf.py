"""The settings of Sphinx: `make docs`."""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import yaml

project = "Torpor"
copyright = "The Torpor authors"
version = release = installed("torpor")

extensions = [
    "myst_parser",  # the pages are Markdown, which people read in the repository, too
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings have the sections of Google's style
    "sphinxcontrib.openapi",
]
html_theme = "furo"
html_title = "Torpor"
root_doc = "index"
exclude_patterns = ["apparmor", "capability"]
myst_heading_anchors = 4
suppress_warnings = [
    "myst.xref_missing",  # links to sources; tests/unit/house/test_pages.py looks at every link
    "misc.highlighting_failure",
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")
"""Pages of the repository that stand outside of this folder: copies of them are made in `_made`."""


def _make(app: Any) -> None:
    made = Path(app.srcdir, "_made")
    made.mkdir(exist_ok=True)
    for page in OUTSIDE:
        text = (ROOT / f"{page}.md").read_text()
        (made / f"{page}.md").write_text(text.replace("](docs/", "](../"))
    description = yaml.safe_load((ROOT / "jupyter_ext/torpor_jupyter/server/api.yaml").read_text())
    for path in description["paths"].values():
        for method in (one for one in path.values() if "responses" in one):
            method["responses"].pop(
                "default", None
            )  # sphinxcontrib-openapi takes numbers only; rest.md tells of errors
    (made / "api.yaml").write_text(yaml.safe_dump(description, sort_keys=False))


def _lead(app: Any, name: str, source: list[str]) -> None:
    """Lead a page's links to those outside to their copies."""
    del app, name
    for page in OUTSIDE:
        source[0] = source[0].replace(f"](../{page}.md", f"](_made/{page}.md")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _make)
    app.connect("source-read", _lead)
