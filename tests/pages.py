"""What the pages name: commands, snippets, links, options, exit codes, settings and environment variables."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]

PROGRAMS = (
    *("torpor", "jupyter torpor", "jupyter", "make", "pip", "python", "python3", "sbatch", "srun", "scontrol", "dask"),
    *("apt", "docker", "podman", "install", "setcap", "apparmor_parser", "torpor-native", "echo", "eval", "git", "for"),
    *("exec", "tests/apart", ".", "for user", ".venv/bin/pytest", "systemd-run", "mount", "rsync", "scp", "cp", "man"),
)
"""What the first line of a snippet for a shell begins with."""


@dataclass(frozen=True)
class Snippet:
    """A block of code in a page."""

    page: str
    line: int
    kind: str
    """shell, python, yaml, json, toml, or figure: what is shown and not executed."""
    text: str

    @property
    def name(self) -> str:
        """Where it is, for the tests' ids."""
        return f"{self.page}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    """A page's parts."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def snippets() -> list[Snippet]:
    """Every block of code."""
    return [
        Snippet(page.name, token.map[0] + 1, _kind(token.info, text), text)
        for page in PAGES
        for token in tokens(page)
        if token.type in ("fence", "code_block") and not token.info.startswith("{") and token.map
        for text in _parts(token)
    ]


def _parts(token: Token) -> list[str]:
    """The parts of a block that begins for a shell and goes on as a program or a file."""
    return token.content.split("\n\n") if _kind(token.info, token.content) == "shell" else [token.content]


def _kind(info: str, text: str) -> str:
    if info:
        return {"mermaid": "figure", "text": "figure"}.get(info, info)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if text.startswith("#!") or lines[0].removeprefix("$ ").startswith(tuple(f"{program} " for program in PROGRAMS)):
        return "shell"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        pass
    else:
        if not all(isinstance(part, ast.Expr | ast.AnnAssign) and not _calls(part) for part in tree.body):
            return "python"
    for kind, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        try:
            if isinstance(load(text), dict):
                return kind
        except (ValueError, yaml.YAMLError):
            continue
    return "figure"


def _calls(part: ast.AST) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(part))


def spans() -> Iterator[tuple[str, str]]:
    """Every piece of code within a text, with its page; a line break in it is a blank."""
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield page.name, " ".join(child.content.split())


def links() -> Iterator[tuple[Path, str]]:
    """Every link and every picture, with its page."""
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or ():
                if child.type in ("link_open", "image"):
                    yield page, str(child.attrs["href" if child.type == "link_open" else "src"])


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to: as GitHub and MyST make them."""
    found = set()
    parts = tokens(page)
    for heading, text in pairwise(parts):
        if heading.type == "heading_open":
            words = "".join(child.content for child in text.children or ())
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


@dataclass(frozen=True)
class Command:
    """A command line of Torpor's that a page names."""

    page: str
    program: str
    """torpor or jupyter torpor."""
    words: tuple[str, ...]
    whole: bool
    """Whether it stands in a snippet, to be typed as it is; a text may name a command without its arguments."""

    @property
    def name(self) -> str:
        """For the tests' ids."""
        return f"{self.page}: {self.program} {' '.join(self.words)}"


_COMMAND = re.compile(r"(?:^|[\s$(`])(jupyter torpor|torpor) ([a-z-].*)")
_END = re.compile(r"\s{3,}|\s#|\)|\s\|(?= )|;|&& |`|\s>")
"""Where a command of a snippet's line ends: at a remark, or at another command."""


def commands() -> list[Command]:
    """Every command line of Torpor's, each once."""
    found: dict[Command, None] = {}
    for snippet in snippets():
        if snippet.kind == "shell":
            for line in snippet.text.replace("\\\n", " ").splitlines():
                if (match := _COMMAND.search(line)) and not line.lstrip().startswith("#"):
                    words = shlex.split(_END.split(match[2])[0], comments=True)
                    found[Command(snippet.page, match[1], tuple(words), whole=True)] = None
    texts = [(page, re.sub(r"\$\((.*?)\)", "ID", span)) for page, span in spans()]
    texts += [(page, inner) for page, span in spans() for inner in re.findall(r"\$\((.*?)\)", span)]
    for page, span in texts:
        if match := re.match(_COMMAND.pattern.removeprefix(r"(?:^|[\s$(`])"), span):
            words = shlex.split(_END.split(match[2])[0])
            found[Command(page, match[1], tuple(words), whole=False)] = None
    return list(found)


_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def options() -> set[tuple[str, str]]:
    """Every long option that a text names by itself, with its page."""
    return {(page, option) for page, span in spans() if span.startswith("-") for option in _OPTION.findall(span)}


def variables() -> set[tuple[str, str]]:
    """Every environment variable, with its page: $NAME in code, and names of Torpor's own."""
    texts = [*spans(), *((one.page, one.text) for one in snippets() if one.kind == "shell")]
    pattern = re.compile(r"\$\{?([A-Z][A-Z0-9_]+)|\b((?:DASK_)?TORPOR_[A-Z0-9_]+)")
    return {(page, a or b) for page, text in texts for a, b in pattern.findall(text)}


def exit_codes() -> set[tuple[str, int]]:
    """Every exit code that a page names, with the page."""
    text = re.compile(r"(?:exit code|exits with) (\d+)")
    table = re.compile(r"^\| (\d+) \|", re.M)
    found = {(page.name, int(code)) for page in PAGES for code in text.findall(page.read_text())}
    return found | {("cli.md", int(code)) for code in table.findall((ROOT / "docs/cli.md").read_text())}


_SETTING = re.compile(r"c\.([A-Z]\w+\.\w+)")


def settings() -> dict[str, str]:
    """Every setting of Jupyter's that a page names, with its default where a table has one."""
    found = {name: "" for page in PAGES for name in _SETTING.findall(page.read_text())}
    rows = re.findall(r"^\| `c\.(\w+\.\w+)` \| `?([^`|]*?)`? \|", (ROOT / "docs/jupyter.md").read_text(), re.M)
    return found | dict(rows)


def files() -> set[tuple[str, str]]:
    """Every file and folder of the source, with its page."""
    tops = ("engine/", "docs/", "tests/", "native/", "jupyter_ext/", "scheduler_hooks/", "notebooks/", ".ci/")
    return {(page, span) for page, span in spans() if span.startswith(tops) and " " not in span}
