"""The documents: their links lead somewhere, and what they list is what there is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from torpor import cli, errors

ROOT = Path(__file__).parents[3]


def test_what_contributing_names_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    folders = re.findall(r"^    ([\w/]+/)", page, re.M)
    targets = re.findall(r"make (\w+)", page)
    assert len(folders) > 10
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    makefile = (ROOT / "Makefile").read_text()
    assert {target for target in targets if not re.search(rf"^{target}( \w+)*:", makefile, re.M)} <= {
        "test",
        "bench",
        "soak",
    }


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    assert [name for name in cli.COMMANDS if f"    torpor {name} " not in page] == []


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TorporError)]
    assert {kind.exit_code for kind in kinds} <= {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}


def test_pictures_show_the_figures_of_the_pages() -> None:
    """`python docs/pictures.py` draws them."""
    found = runpy.run_path(str(ROOT / "docs/pictures.py"))["pictures"]()
    assert {name: (ROOT / "docs/pictures" / name).read_text() for name in found} == found
