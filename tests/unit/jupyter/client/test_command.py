"""`jupyter torpor` at a server of HTTP: what it asks for, and what it says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from torpor_jupyter.client import rest
from torpor_jupyter.client.command import cli, main

KERNEL = {
    "id": "a1b2", "head": "20260102-000000000-def456", "state": "living", "execution_state": "idle",
    "sessions": [{"path": "work.ipynb"}], "memory": 3 << 20,
}  # fmt: skip
MADE = [
    {"id": "20260101-000000000-abc123", "name": "", "cell": "x = 1", "created_ns": time.time_ns(), "written": 2048},
    {"id": "20260102-000000000-def456", "name": "best", "cell": "y", "created_ns": time.time_ns(), "written": 1 << 20},
]


class Asked:
    """What the server was asked for, and what it answers to a POST."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, Any]] = []
        self.answer: dict[str, Any] = {}
        self.status = 200
        self.root = ""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    made = Asked()
    made.root = str(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be silent."""

        def _answer(self, status: int, body: object) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self) -> None:
            assert self.headers["Authorization"] == "token t"
            self._answer(200, MADE if self.path.endswith("/checkpoints") else [KERNEL])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.posts.append((self.path.removeprefix("/api/torpor/kernels/a1b2/"), body))
            self._answer(made.status, made.answer)

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        known = {"url": f"http://127.0.0.1:{server.server_port}/", "token": "t", "root_dir": made.root}
        (tmp_path / "jpserver-1.json").write_text(json.dumps(known))
        monkeypatch.setattr(rest, "jupyter_runtime_dir", lambda: str(tmp_path))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_kernels_are_listed(asked: Asked) -> None:
    told = run("list")
    assert all(word in told for word in ("a1b2", "idle", "3.0 MiB", "work.ipynb", "http://127.0.0.1"))
    (told_json,) = json.loads(run("list", "--json"))
    assert told_json["id"] == "a1b2" and told_json["server"].startswith("http://")


def test_checkpoints_are_listed_and_the_kernels_own_is_marked(asked: Asked) -> None:
    lines = run("checkpoints", "work.ipynb").splitlines()
    assert lines[0].startswith("  20260101-000000000-abc123") and lines[0].endswith("2.0 KiB  x = 1")
    assert lines[1].startswith("* 20260102-000000000-def456") and lines[1].endswith("best")
    assert json.loads(run("checkpoints", "a1", "--json")) == MADE


@pytest.mark.parametrize(
    ("words", "path", "body", "answer", "told"),
    [
        (["checkpoint", "a1", "--name", "n"], "checkpoints", {"name": "n"},
         {"id": "new", "size": 4096, "written": 1024, "notices": ["a FIFO is lost"]}, "saved as new: 4.0 KiB, 1.0 KiB"),
        (["park", "a1"], "park", {"name": ""}, {"snapshot": "s"}, "parked in s"),
        (["resume", "a1", "--files", "as-they-are"], "resume", {"files_as_they_are": True}, {"pid": 7}, "process 7"),
        (["restore", "a1", "best", "--notebook"], "checkpoints/20260102-000000000-def456/restore",
         {"notebook": True, "files_as_they_are": False}, {"undo": "u"}, "def456; the state before is u"),
        (["export", "a1", "best", "{root}/sub/best.torpor"], "checkpoints/20260102-000000000-def456/export",
         {"path": "sub/best.torpor"}, {"path": "sub/best.torpor"}, "/sub/best.torpor"),
        (["import", "{root}/best.torpor"], "/api/torpor/import", {"path": "best.torpor"},
         {"path": "work.ipynb", "kernel_id": "a1b2c3d4-9", "id": "new"}, "`jupyter torpor fork a1b2c3d4` wakes it"),
        (["fork", "a1", "--path", "p.ipynb"], "checkpoints/20260102-000000000-def456/fork",
         {"files_as_they_are": False, "path": "p.ipynb"}, {"kernel": {"id": "k2"}, "path": "p.ipynb"}, "kernel k2"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)  # fmt: skip
def test_what_a_command_asks_for(
    asked: Asked, words: list[str], path: str, body: dict[str, Any], answer: dict[str, Any], told: str
) -> None:
    asked.answer = answer
    words = [word.replace("{root}", asked.root) for word in words]
    assert told in run(*words)
    assert json.loads(run(*words, "--json")) == answer
    assert asked.posts == [(path, body)] * 2


def test_what_a_server_refuses_is_told_with_its_code(
    asked: Asked, capfd: pytest.CaptureFixture[str], runs: Callable[..., int]
) -> None:
    asked.status, asked.answer = 409, {"reason": "the kernel is parked already", "advice": "wake it first"}
    assert runs("park", "a1") == rest.ServerRefused.exit_code
    assert capfd.readouterr().err == "torpor: the kernel is parked already; wake it first\n"


@pytest.fixture
def runs() -> Callable[..., int]:
    """Runs the command as a process would; its exit code."""

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call
