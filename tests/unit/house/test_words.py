"""One word for one thing: the names that the engine gives to what it does at a dump and at a restore.

At a dump `unsupported` says what cannot be kept. At a restore `validate` says what this host cannot restore, and
`validate_form` what a checkpoint would not have written so. Names that once meant the same do not come back.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = (
    "engine/torpor",
    "jupyter_ext/torpor_jupyter",
    "scheduler_hooks/torpor_dask",
    "scheduler_hooks/torpor_slurm",
)
STORIES = tuple(f"engine/torpor/{folder}/" for folder in ("dump", "objects", "restorer"))
SOURCES = [
    path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.endswith("_pb2.py")
]

OF_STORIES = re.compile(r"_?(judge|refuse|faults?|problems?|check)(_[a-z_]+)?")
"""`unsupported`, `validate` and `validate_form` say it."""
EVERYWHERE = re.compile(
    r"told|Held|Holder|Keeper|Roll|TakenProcess|traits|gadgets?|unkept|Unkept|rehears\w*|refusals|moved_ports|tcp_keep"
    r"|tcp_end|last_steps|[Tt]ender|urged?|_?hand(ed)?_on|_?bear(_\w+)?|\w*[Ww]idow|\w*[Ww]itness\w*|Loan|_?bury|furnish|_?kin"
    r"|_?(over)?heard?(_\w+)?"
)
"""Words of our own for what has a usual one: an answer, an open file description, thread attributes, code stubs..."""
USUAL = {
    "scheduler_hooks/torpor_dask/state.py": {"unkept"},
    "scheduler_hooks/torpor_dask/scheduler.py": {"unkept"},
}
"""What keeps its name: results that are not stored, as Prometheus has them."""


def names(source: str) -> Iterator[str]:
    """Every name that a module defines: of classes, functions, arguments, variables and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def old_words(name: str, source: str) -> set[str]:
    """The names in a module that this house has another word for."""
    found = {one for one in names(source) if EVERYWHERE.fullmatch(one)} - USUAL.get(name, set())
    if name.startswith(STORIES):
        found |= {one for one in names(source) if OF_STORIES.fullmatch(one)}
    return found


def test_one_word_for_one_thing() -> None:
    found = {str(path.relative_to(ROOT)): old_words(str(path.relative_to(ROOT)), path.read_text()) for path in SOURCES}
    assert {name: words for name, words in found.items() if words} == {}


def test_an_old_word_is_seen() -> None:
    source = (
        "class Held: pass\ndef f(problems): self.told = [one for fault in problems]\ndef _check_form(): problem = 1"
    )
    assert old_words("engine/torpor/dump/x.py", source) == {
        *("Held", "problems", "told", "fault", "_check_form", "problem"),
    }
    assert old_words("engine/torpor/store/x.py", source) == {"Held", "told"}
    assert old_words("engine/torpor/dump/x.py", "def checkpoint(checksum): return told") == set()
