"""What is heard for a page that has gone: given to the one that comes, and to nobody twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from torpor_jupyter.kernels.listener import Listener
from torpor_jupyter.kernels.registry import Registry
from torpor_jupyter.kernels.state import State

KERNEL, OTHER = "kernel", "other"


class Stream:
    """A ZMQStream to which the test hands messages."""

    def __init__(self, identity: bytes = b"") -> None:
        self.identity, self.closed = identity, False
        self._recv_callback: Callable[[Any], None] = lambda parts: None

    def on_recv(self, callback: Callable[[Any], None]) -> None:
        self._recv_callback = callback

    def close(self, linger: int | None = None) -> None:
        self.closed = True


class Kernel:
    """A kernel manager."""

    def __init__(self) -> None:
        self.session = Session(key=b"secret")
        self._activity_stream = Stream()
        self.opened: list[Stream] = []

    def connect_stdin(self, identity: bytes) -> Stream:
        self.opened.append(Stream(identity))
        return self.opened[-1]


class Page:
    """A websocket that is connected."""

    def __init__(self, session: str, kernel: str = KERNEL) -> None:
        self.session_key = f"{kernel}:{session}"


class Manager(dict[str, Kernel]):
    """The manager of the kernels."""

    def __init__(self) -> None:
        super().__init__({KERNEL: Kernel(), OTHER: Kernel()})
        self._kernel_buffers: dict[str, Any] = {}
        self.watched: list[Any] = []

    def start_watching_activity(self, kernel_id: str) -> None:
        self[kernel_id]._activity_stream.on_recv(self.watched.append)

    def stop_watching_activity(self, kernel_id: str) -> None:
        self.watched.append("no more")

    def stop_buffering(self, kernel_id: str) -> None:
        self._kernel_buffers.pop(kernel_id, None)


class Rig:
    """A listener, and what it hears."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.states = {id: State() for id in self.manager}
        self.emitted: list[tuple[str, str]] = []
        self.listener = Listener(cast(Registry, self), lambda *what: self.emitted.append(what))
        for id in self.manager:
            self.manager.start_watching_activity(id)

    def state(self, kernel_id: str) -> State:
        return self.states[kernel_id]

    def gate(self, kernel_id: str) -> Any:
        return self.states[kernel_id].gate

    def kernel_manager(self, kernel_id: str) -> Kernel:
        return self.manager[kernel_id]

    @property
    def cells(self) -> dict[str, Any]:
        return self.states[KERNEL].transcript.cells

    def begin(self, id: str, session: str) -> None:
        """A page has sent a cell."""
        self.states[KERNEL].transcript.begin({"msg_id": id, "session": session}, "", "1")

    def parts(self, kind: str, parent: str, key: bytes = b"secret", **content: Any) -> list[bytes]:
        """A message of the kernel as it comes."""
        session = Session(key=key)
        return [b"topic", *session.serialize(session.msg(kind, content, parent={"msg_id": parent}))]

    def say(self, kind: str, parent: str, **content: Any) -> None:
        """The kernel says something on iopub."""
        self.manager[KERNEL]._activity_stream._recv_callback(self.parts(kind, parent, **content))

    def end(self, parent: str) -> None:
        self.say("status", parent, execution_state="idle")


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def connect() -> Iterator[Callable[[str], Page]]:
    """Connect a page with a session."""
    pages: set[Any] = set()
    before = ZMQChannelsWebsocketConnection._open_sockets
    ZMQChannelsWebsocketConnection._open_sockets = pages

    def connected(session: str) -> Page:
        page = Page(session)
        pages.add(page)
        return page

    yield connected
    ZMQChannelsWebsocketConnection._open_sockets = before


def test_what_a_cell_says_goes_to_the_page_that_comes(rig: Rig, connect: Callable[[str], Page]) -> None:
    rig.say("stream", "x", name="stdout", text="of nobody")
    rig.begin("x", "gone")
    rig.say("stream", "x", name="stdout", text="1")
    rig.end("x")
    connect("new")
    (cell,) = rig.listener.take(KERNEL, "new")
    assert ([one["content"].get("text") for one in cell["messages"]], cell["done"]) == (["1", None], True)
    assert rig.listener.take(KERNEL, "new") == [], "it has seen the cell"
    assert len(rig.manager.watched) == 3, "the manager hears all of it"


def test_a_page_that_is_there_sees_by_itself(rig: Rig, connect: Callable[[str], Page]) -> None:
    connect("here")
    rig.begin("x", "here")
    rig.end("x")
    assert rig.cells == {}


def test_what_another_page_shows_is_not_taken(rig: Rig, connect: Callable[[str], Page]) -> None:
    connect("here")
    rig.begin("x", "here")
    rig.begin("y", "gone")
    assert [cell["request"]["msg_id"] for cell in rig.listener.take(KERNEL, "new")] == ["y"]


def test_a_message_that_is_not_the_kernels_disturbs_nobody(rig: Rig) -> None:
    rig.begin("x", "gone")
    callback = rig.manager[KERNEL]._activity_stream._recv_callback
    with pytest.raises(ValueError, match="Signature"):
        callback(rig.parts("status", "x", key=b"forged", execution_state="idle"))
    assert not rig.cells["x"].done
    assert len(rig.manager.watched) == 1, "the manager judges it by itself"
    rig.end("x")
    assert rig.cells["x"].done


def test_a_line_that_is_asked_for_is_heard_in_the_place_of_the_page(rig: Rig) -> None:
    rig.begin("x", "gone")
    rig.listener.stand_in(KERNEL, "gone")
    rig.listener.stand_in(KERNEL, "gone")
    (stream,) = rig.manager[KERNEL].opened
    assert (stream.identity, rig.listener.streams(KERNEL)) == (b"gone", [stream])
    stream._recv_callback(rig.parts("input_request", "x", prompt="? ", password=False))
    assert rig.gate(KERNEL).awaits_input
    assert rig.emitted == [(KERNEL, "asks")]
    assert [message["channel"] for message in rig.cells["x"].messages] == ["stdin"]


def test_the_stream_is_closed_with_the_last_cell_of_the_session(rig: Rig) -> None:
    for id in "xy":
        rig.begin(id, "gone")
    rig.listener.stand_in(KERNEL, "gone")
    (stream,) = rig.manager[KERNEL].opened
    rig.end("x")
    assert not stream.closed
    rig.end("y")
    assert stream.closed and not rig.listener.streams(KERNEL)


def test_the_stream_is_closed_when_the_page_is_back_or_the_kernel_gone(rig: Rig) -> None:
    for session in ("gone", "other"):
        rig.begin(session, session)
        rig.listener.stand_in(KERNEL, session)
    gone, other = rig.manager[KERNEL].opened
    rig.listener.returns(KERNEL, "gone")
    rig.listener.returns(KERNEL, "gone")
    assert (gone.closed, other.closed) == (True, False)
    rig.manager.stop_watching_activity(OTHER)
    assert not other.closed
    rig.manager.stop_watching_activity(KERNEL)
    assert other.closed
    assert rig.manager.watched == ["no more"] * 2


@pytest.mark.parametrize(("kernel", "session"), [(KERNEL, "gone"), (KERNEL, ""), ("unknown", "gone")])
def test_a_stream_that_nobody_needs_is_closed(rig: Rig, kernel: str, session: str) -> None:
    rig.begin("x", "")
    stream = Stream()
    rig.listener.stand_in(kernel, session, stream)
    assert stream.closed and not rig.manager[KERNEL].opened


def test_what_jupyter_has_kept_for_a_page_is_heard_before_it_throws_it_away(rig: Rig) -> None:
    """Another page has come: Jupyter forgets what it has buffered, and closes the streams of the first."""
    rig.begin("x", "gone")
    stdin, shell = Stream(), Stream()
    asked = ("stdin", rig.parts("input_request", "x", prompt="? ", password=False))
    kept = {
        "session_key": f"{KERNEL}:gone",
        "channels": {"stdin": stdin, "shell": shell},
        "buffer": [("shell", [b"no message"]), asked],
    }
    rig.manager._kernel_buffers[KERNEL] = kept
    rig.manager.stop_buffering(KERNEL)
    assert rig.emitted == [(KERNEL, "asks")]
    assert rig.listener.streams(KERNEL) == [stdin], "by its own stream nothing is lost in between"
    assert "stdin" not in kept["channels"]
    rig.manager.stop_buffering(OTHER)


def test_what_an_earlier_server_heard_goes_on(rig: Rig) -> None:
    for id in "xyz":
        rig.begin(id, "gone")
    rig.say("execute_input", "x", execution_count=8, code="1")
    rig.end("z")
    after = Rig()
    after.begin("undone", "gone")
    after.listener.load(KERNEL, rig.states[KERNEL].transcript.as_text(), ["x"])
    assert list(after.cells) == ["x"], "of the others none runs at the checkpoint"
    assert [stream.identity for stream in after.listener.streams(KERNEL)] == [b"gone"]
    assert list(after.gate(KERNEL).unanswered) == ["x"], "a checkpoint that is made now knows that it runs"
    after.end("x")
    assert after.cells["x"].done
    assert after.gate(KERNEL).unanswered == {} and after.gate(KERNEL).execution_count == 8


def test_cells_have_ended_when_a_later_one_runs(rig: Rig) -> None:
    for id in "xyz":
        rig.begin(id, "gone")
    rig.cells["x"].taken_up = rig.cells["y"].taken_up = True
    rig.say("execute_input", "y", execution_count=8, code="1")
    assert [cell.done for cell in rig.cells.values()] == [True, False, False]
    assert rig.emitted == [(KERNEL, "ended")]
    rig.say("stream", "y", name="stdout", text="1")
    rig.say("stream", "z", name="stdout", text="1")
    assert [cell.done for cell in rig.cells.values()] == [True, True, False]
    assert len(rig.emitted) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", json.dumps([{"request": {}}]), "null"])
def test_a_transcript_of_another_version_is_left_out(rig: Rig, text: str) -> None:
    rig.listener.load(KERNEL, text, ["x"])
    assert rig.cells == {}
