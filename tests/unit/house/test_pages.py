"""What README and the pages in docs name is there, and works as they say."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests import pages
from tests.pages import ROOT, Command, Snippet
from torpor import errors
from torpor.cli import cli, main
from torpor.cli.session import Session
from torpor.store import Store
from torpor.util import settings
from torpor_jupyter.client.command import cli as jupyter_command
from torpor_jupyter.server.app import TorporApp
from torpor_slurm.step.options import EFFECTIVE, NEEDLESS

PROGRAMS: dict[str, click.Command] = {"torpor": cli, "jupyter torpor": jupyter_command}
MEANT = {
    "PID": "4711",
    "N": "5",
    "ID": "latest",
    "ID...": "latest",
    "COMMAND": "ls",
    "K=V": "project=tides",
    "TIME": "10m",
    "FILE": "snapshot.torpor",
}
"""What a page's words in capitals stand for, where a command takes no such word."""
OF_OTHERS = {
    *("--signal", "--open-mode", "--requeue", "--no-requeue", "--nodes", "--torpor"),  # sbatch
    *(f"--{name}" for name in (*EFFECTIVE, *NEEDLESS, "pty", "time")),  # srun
    *("--host", "--no-nanny"),  # dask worker
    *("--cap-add", "--gateway-url"),  # docker, jupyter
}
"""Options of other programs."""
OF_OTHERS_CODE = {124: "timeout(1), as the supervisor at a time limit"}
INTERNAL = {"TORPOR_BEGAN", "TORPOR_SBATCH_PID", "TORPOR_STEP_PLAN"}
"""Variables by which parts of Torpor speak with each other."""
ELSEWHERE = {"RUNNER", "SLURMD_NODENAME", "VIRTUAL_ENV"}
"""Variables that Torpor neither sets nor reads."""


def name(one: Command | Snippet) -> str:
    return one.name


# --- commands ----------------------------------------------------------------------------------------------


def words_of(command: Command) -> list[str]:
    """A page's command with something for each word that stands for one, without what is optional."""
    text = re.sub(r"\[.*?\]|(?<= )\.\.\.$", "ID" if command.words[-1] == "..." else "", " ".join(command.words))
    return [MEANT.get(word.lstrip("$").upper(), word) for word in text.split()]


@pytest.mark.parametrize("command", pages.commands(), ids=name)
def test_a_command_is_taken_as_the_page_has_it(command: Command) -> None:
    """click parses it, and does nothing. A text may name a command without its arguments."""
    words = words_of(command)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            parse(PROGRAMS[command.program], command.program, words)
    except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
        assert not command.whole
    except click.BadOptionUsage as error:  # an option without its value
        assert not command.whole and error.option_name == words[-1]
    except click.exceptions.Exit as done:
        assert done.exit_code == 0


def parse(command: click.Command, name: str, words: list[str], parent: click.Context | None = None) -> None:
    context = command.make_context(name, words, parent, obj=Session())
    # click 8 keeps the name of the command apart, in what click 9 will not have
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    if isinstance(command, click.Group) and rest:
        _, below, rest = command.resolve_command(context, rest)
        assert below and below.name
        parse(below, below.name, rest, context)


def all_options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below
            yield from all_options(below)


def test_options_are_there() -> None:
    known = {option for program in PROGRAMS.values() for option in all_options(program)} | OF_OTHERS
    assert [(page, option) for page, option in sorted(pages.options()) if option not in known] == []


READERS = ("ls", "show", "verify", "rm", "prune", "export", "config")
"""Commands that need no more than a store."""


@pytest.mark.parametrize(
    "command",
    [one for one in pages.commands() if one.words[0] in READERS and one.program == "torpor" and one.whole],
    ids=name,
)
def test_commands_that_need_only_a_store_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    for text in (b"a", b"b"):
        with store.writer("dask", {"project": "tides"}) as writer:
            writer.add_blocks(memoryview(text * 4096), [4096])
            writer.publish(b"", "a snapshot")
    monkeypatch.setenv("TORPOR_STORE", store.path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([word.replace("STORE/slurm/CLUSTER-JOBID", store.path) for word in words_of(command)])
    assert (ended.value.code, capsys.readouterr().err) == (0, "")


# --- snippets ----------------------------------------------------------------------------------------------


def of_kind(kind: str) -> list[Snippet]:
    return [one for one in pages.snippets() if one.kind == kind]


@pytest.mark.parametrize("snippet", of_kind("shell"), ids=name)
def test_a_shell_takes_it(snippet: Snippet) -> None:
    lines = [line.removeprefix("$ ") for line in snippet.text.splitlines()]
    text = "\n".join(re.split(r"\s{3,}(?=[\w;(])", line)[0] if "#" not in line else line for line in lines)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("snippet", of_kind("python"), ids=name)
def test_what_python_calls_is_there(snippet: Snippet) -> None:
    """Every name below a module of Torpor's, and every argument that is given to it."""
    tree = ast.parse(snippet.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (found := resolved(node)) is not None:
            assert found is not MISSING, ast.unparse(node)
        if isinstance(node, ast.Call) and callable(found := resolved(node.func)):
            inspect.signature(found).bind_partial(
                *[None] * len(node.args), **{word.arg: None for word in node.keywords if word.arg}
            )


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.name))
def test_what_python_needs_is_imported_before(page: Path) -> None:
    """Every package of Torpor's, in this snippet or in one above it."""
    imported: set[str] = set()
    for snippet in (one for one in of_kind("python") if one.page == page.name):
        nodes = list(ast.walk(ast.parse(snippet.text)))
        imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        used = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
        assert {name for name in used if name.startswith("torpor")} <= imported, snippet.name


MISSING = object()


def resolved(node: ast.expr) -> Any:
    """What a dotted name below one of Torpor's packages is; None for any other; MISSING if it is not there."""
    return look_up(ast.unparse(node)) if re.fullmatch(r"torpor\w*(\.\w+)+", ast.unparse(node)) else None


def look_up(dotted: str) -> Any:
    first, *rest = dotted.split(".")
    try:
        found: Any = import_module(first)
    except ImportError:
        return MISSING
    at = first
    for word in rest:
        at = f"{at}.{word}"
        try:
            found = getattr(found, word)
        except AttributeError:
            try:
                found = import_module(at)
            except ImportError:
                return MISSING
    return found


CALL = re.compile(r"(torpor\w*(?:\.\w+)+)(\(.*\))?")


@pytest.mark.parametrize(
    ("page", "span"),
    sorted({(page, span) for page, span in pages.spans() if CALL.fullmatch(span)} - {("dask.md", "torpor.dask")}),
)
def test_names_of_python_in_a_text(page: str, span: str) -> None:
    match = CALL.fullmatch(span)
    assert match
    if "." in match[1] and not match[1].endswith((".lua", ".so", ".yaml")):
        assert look_up(match[1]) is not MISSING


HEADING = re.compile(r"^## (torpor\.[\w.]+)\((.*)\)(?: → (\w+))?$", re.M)


@pytest.mark.parametrize("heading", HEADING.findall((ROOT / "docs/python.md").read_text()), ids=lambda one: str(one[0]))
def test_a_signature_is_that_of_the_code(heading: tuple[str, str, str]) -> None:
    dotted, arguments, result = heading
    found = look_up(dotted)
    signature = inspect.signature(found)
    plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    assert f"({arguments})" == str(inspect.Signature(plain)).replace("'", '"')
    assert str(signature.return_annotation).replace("SnapshotInfo", "Snapshot") == (result or "None")


def test_yaml_of_dask_has_the_defaults() -> None:
    defaults = yaml.safe_load((ROOT / "scheduler_hooks/torpor_dask/torpor.yaml").read_text())["torpor"]
    blocks = [yaml.safe_load(one.text)["torpor"] for one in of_kind("yaml") if "torpor:" in one.text]
    assert max(blocks, key=len) == defaults
    assert [key for block in blocks for key in block if key not in defaults] == []


def test_configuration_files_have_settings_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    files = of_kind("toml")
    assert files
    for number, file in enumerate(files):
        path = tmp_path / f"{number}.toml"
        path.write_text(file.text)
        assert settings.read(str(path))
    page = (ROOT / "docs/cli.md").read_text()
    assert [name for name in settings.SETTINGS if name.rpartition(".")[2] not in page] == []


# --- links, files, codes, settings, variables --------------------------------------------------------------


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: str(page.name))
def test_links_lead_to_a_heading(page: Path) -> None:
    lost = []
    for where, target in pages.links():
        path, _, anchor = target.partition("#")
        if where == page and "://" not in target:
            there = where.parent / path if path else where
            if not there.exists() or (anchor and anchor not in pages.anchors(there)):
                lost.append(target)
    assert lost == []


def test_files_of_the_source_are_there() -> None:
    assert [(page, file) for page, file in sorted(pages.files()) if not (ROOT / file).exists()] == []


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    texts = [*(text for _, text in pages.spans()), *(one.text for one in of_kind("shell"))]
    targets = {target for text in texts for target in re.findall(r"(?:^|\n)make ([a-z]\w*)", text)}
    assert len(targets) > 8
    assert [one for one in sorted(targets) if not re.search(rf"^([\w ]+ )?{one}( [\w ]+)?:", makefile, re.M)] == []


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TorporError)]
    known = {0, 1, 2, 40, 130, *(kind.exit_code for kind in kinds), *OF_OTHERS_CODE}
    assert [(page, code) for page, code in sorted(pages.exit_codes()) if code not in known] == []


@cache
def source() -> str:
    """All that Torpor runs."""
    folders = ("engine", "jupyter_ext/torpor_jupyter", "scheduler_hooks", "native")
    kinds = (".py", ".c", ".h", ".lua", ".yaml")
    return "\n".join(
        path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds
    )


def test_variables_are_read_or_set() -> None:
    dask = {
        f"DASK_TORPOR__{key.replace('-', '_').upper()}"
        for key in yaml.safe_load((ROOT / "scheduler_hooks/torpor_dask/torpor.yaml").read_text())["torpor"]
    }
    lost = [(page, one) for page, one in pages.variables() - {(p, o) for p, o in pages.variables() if o in dask}]
    assert [one for _, one in sorted(lost) if one not in source() and one not in ELSEWHERE] == []


def test_variables_are_documented() -> None:
    named = {one for _, one in pages.variables()}
    assert set(re.findall(r"\bTORPOR_[A-Z_]+[A-Z]\b", source())) - named - INTERNAL - {"TORPOR_H"} == set()


def test_settings_of_jupyter_are_there_and_documented() -> None:
    traits = TorporApp.class_own_traits(config=True)
    named = {one.partition(".")[2]: value for one, value in pages.settings().items() if one.startswith("TorporApp.")}
    assert named.keys() == traits.keys()
    for trait, default in named.items():
        assert default.strip('"') == str(traits[trait].default()), trait
