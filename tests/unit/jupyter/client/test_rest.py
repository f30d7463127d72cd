"""Which kernel and which checkpoint a person means: one, or an error that names the candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torpor.errors import NotFound, TorporError
from torpor_jupyter.client import rest
from torpor_jupyter.client.rest import JupyterServer

MADE = [
    {"id": "20260101-000000000-abc123", "name": "first"},
    {"id": "20260102-000000000-def456", "name": "again"},
    {"id": "20260102-000000001-abc789", "name": "again"},
    {"id": "20260103-000000000-fff000", "name": ""},
]


def kernel(id: str, *paths: str | None) -> dict[str, Any]:
    return {"id": id, "head": None, "sessions": [{"path": path} for path in paths]}


class Answers:
    """What servers answer, by their addresses."""

    def __init__(self) -> None:
        self.kernels: dict[str, list[dict[str, Any]] | TorporError] = {}
        self.ended: list[dict[str, Any]] = []

    def get(self, server: JupyterServer, path: str) -> Any:
        """Answer in place of a server."""
        if path.endswith("/checkpoints"):
            return MADE
        if path == "checkpoints":
            return self.ended
        found = self.kernels[server.url]
        if isinstance(found, TorporError):
            raise found
        return found


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(JupyterServer, "get", lambda server, path: made.get(server, path))  # noqa: PLW0108  binds the server
    monkeypatch.setattr(rest, "servers", lambda: [JupyterServer(url, "", "/") for url in made.kernels])
    return made


@pytest.mark.parametrize("name", ["aaa", "aaa1", "work.ipynb", "folder/work.ipynb"])
def test_a_kernel_by_its_id_or_its_notebook(answers: Answers, name: str) -> None:
    answers.kernels = {"http://one/": [kernel("bbb", None)], "http://two/": [kernel("aaa1", None, "folder/work.ipynb")]}
    found = rest.find(name)
    assert (found.id, found.server.url) == ("aaa1", "http://two/")


@pytest.mark.parametrize("name", ["", "a", "work.ipynb"])
def test_a_name_that_is_not_one_kernels(answers: Answers, name: str) -> None:
    answers.kernels = {"http://one/": [kernel("a1", "work.ipynb"), kernel("a2", "b/work.ipynb")]}
    with pytest.raises(NotFound) as caught:
        rest.find(name)
    assert ("a1, a2" in str(caught.value)) == bool(name)


def test_a_server_without_torpor_hides_no_other(answers: Answers) -> None:
    answers.kernels = {"http://one/": NotFound("no such page"), "http://two/": []}
    assert rest.kernels() == []
    del answers.kernels["http://two/"]
    with pytest.raises(NotFound, match="no Jupyter server with Torpor") as caught:
        rest.kernels()
    assert "http://one/: no such page" in caught.value.details


@pytest.mark.parametrize(
    ("name", "number"),
    [("first", 0), ("again", 2), ("latest", 3), ("20260101", 0), ("20260102-000000000", 1), ("fff000", 3)],
)
def test_a_checkpoint_by_name_by_age_or_by_id(answers: Answers, name: str, number: int) -> None:
    server = JupyterServer("http://one/", "", "/")
    assert rest.checkpoint_named(server, "aaa", name) is MADE[number]


@pytest.mark.parametrize(("name", "why"), [("20260102", "several"), ("none", "not one of its"), ("", "not one of its")])
def test_a_name_that_is_not_one_checkpoints(answers: Answers, name: str, why: str) -> None:
    with pytest.raises(NotFound, match=why):
        rest.checkpoint_named(JupyterServer("http://one/", "", "/"), "aaa", name)


def test_files_of_servers_that_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "jupyter_runtime_dir", lambda: str(tmp_path))
    good = {"url": "http://here/", "token": "t", "root_dir": "/"}
    for number, told in enumerate([{**good, "url": "http+unix://socket"}, {"url": "http://old/"}, [], good]):
        (tmp_path / f"jpserver-{number}.json").write_text(json.dumps(told))
    (tmp_path / "jpserver-9.json").write_text("{")
    assert [server.url for server in rest.servers()] == ["http://here/"]


def test_a_server_is_asked_although_its_process_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a kernel that was woken into a PID namespace of its own."""
    monkeypatch.setattr(rest, "jupyter_runtime_dir", lambda: str(tmp_path))
    told = {"url": "http://127.0.0.1:1/", "token": "t", "root_dir": "/", "pid": 2**22 + 1}
    (tmp_path / "jpserver-1.json").write_text(json.dumps(told))
    assert rest.servers() == [JupyterServer("http://127.0.0.1:1/", "t", "/")]
    assert rest.server_of("a-b-c-d-e") is None, "one that was killed does not answer"


def test_a_kernel_that_has_ended_is_found_by_its_checkpoints(answers: Answers) -> None:
    answers.kernels["http://one/"] = [kernel("aaa", "work.ipynb")]
    answers.ended = [{"kernel_id": id, "path": path} for id, path in [("bbb", "old.ipynb"), ("aaa", "work.ipynb")] * 2]
    assert rest.find("old.ipynb").id == rest.find("bb").id == "bbb"
    assert rest.find("aaa").id == "aaa"


def test_the_server_that_has_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The nearest one, also by a path that goes through a link; a file that no server has is refused."""
    (tmp_path / "home" / "work").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    both = [JupyterServer(f"http://{name}/", "", str(tmp_path / name)) for name in ("home", "home/work")]
    monkeypatch.setattr(rest, "servers", lambda: both)
    monkeypatch.setattr(JupyterServer, "get", lambda server, path: [])
    assert rest.serving(str(tmp_path / "link" / "work" / "x.torpor")) == (both[1], "x.torpor")
    monkeypatch.chdir(tmp_path / "home")
    assert rest.serving("x.torpor") == (both[0], "x.torpor")
    with pytest.raises(NotFound, match="not below the folder"):
        rest.serving(str(tmp_path / "x.torpor"))
