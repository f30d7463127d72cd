"""Where a tree meets the world outside of it: standard descriptors, connections, signals, who waits for it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conformance import observe
from tests.conformance.building import named
from tests.conformance.harness import (
    PATIENCE,
    Actor,
    EngineError,
    Stage,
    Subject,
    alive,
    belonging,
    in_capsule,
    occupied,
    reborn,
    restored,
    wait_until,
)

HERE = Path(__file__).parent
EDGES = HERE / "edges"


@pytest.fixture(params=["user", "root"])
def actor(request: pytest.FixtureRequest) -> Actor:
    """Each of the two kinds of users in turn."""
    found: Actor = request.getfixturevalue(request.param)
    return found


def test_standard_descriptors_are_the_restorers(stage: Stage, actor: Actor) -> None:
    """A program on pipes of a parent that is gone talks through what its restorer gives it."""
    pipes = (subprocess.PIPE, subprocess.PIPE, subprocess.PIPE)
    with stage.play(EDGES / "talker.py", actor, stdio=pipes) as subject:
        before = subject.process
        assert before and before.stdin and before.stdout and before.stderr
        before.stdin.write(b"first line\n")
        before.stdin.flush()
        assert before.stdout.readline() == b"FIRST LINE\n"
        subject.wait_ready()
        given = [subject.directory / name for name in ("given", "out", "err")]
        given[0].write_bytes(b"second line\n")
        for path in given:
            path.touch()
            os.chown(path, actor.uid, actor.gid)
        job = reborn(stage, subject, stdio=list(map(str, given)))
        assert before.communicate() == (b"", b"")
        subject.go()
        subject.judged()
        assert job.status() == 0
        assert (given[1].read_bytes(), given[2].read_bytes()) == (b"SECOND LINE\n", b"23\n")


def outside(subject: Subject, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """The outer ends of the program's connections, once it has them."""
    taken, _ = listener.accept()
    port = subject.directory / "port"
    wait_until(port.exists, "the program's port")
    made = socket.create_connection(("127.0.0.1", json.loads(port.read_text())))
    assert taken.recv(100) == b"hello"
    taken.sendall(b"hello to you")
    for one in (taken, made):
        one.settimeout(PATIENCE)
    return taken, made


@contextmanager
def connected(stage: Stage, actor: Actor) -> Iterator[tuple[Subject, tuple[socket.socket, socket.socket]]]:
    """A program with connections to the outside, and their outer ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with stage.play(EDGES / "peer.py", actor, environment={"OUTSIDE_PORT": port}) as subject:
            taken, made = outside(subject, listener)
            with closing(taken), closing(made):
                subject.wait_ready()
                yield subject, (taken, made)


def newcomer(subject: Subject) -> None:
    """A new client finds the program on its old port."""
    with socket.create_connection(("127.0.0.1", json.loads((subject.directory / "port").read_text()))) as client:
        client.settimeout(PATIENCE)
        client.sendall(b"new")
        assert client.recv(100) == b"welcome"


def test_connections_to_the_outside_are_reset(stage: Stage, actor: Actor) -> None:
    """Both sides see what a peer's crash looks like, and the program listens on its port again."""
    with connected(stage, actor) as (subject, outer):
        job = reborn(stage, subject)
        for one in outer:
            with suppress(ConnectionResetError):
                assert one.recv(100) == b""
        subject.go()
        newcomer(subject)
        subject.judged()
        assert job.status() == 0


def test_connections_of_one_left_running(stage: Stage, actor: Actor) -> None:
    """A checkpoint that lets the program run on does not disturb its connections."""
    with connected(stage, actor) as (subject, outer):
        stage.driver(actor).checkpoint(subject.pid, subject.directory / "store", "run")
        subject.go()
        for one in outer:
            assert one.recv(100) == b"still here"
            one.sendall(b"so am I")
        newcomer(subject)
        subject.judged()
        assert subject.exited() == 0


@pytest.mark.parametrize("then", ["run", "kill"])
def test_unix_sockets_to_the_outside(stage: Stage, actor: Actor, then: str) -> None:
    """They are refused; when asked for, they come back as closed by the peer, with what had been received."""
    with (
        tempfile.TemporaryDirectory(prefix="torpor-test-outside-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        os.chmod(folder, 0o755)
        listener.bind(f"{folder}/socket")
        os.chmod(f"{folder}/socket", 0o666)
        listener.listen()
        listener.settimeout(PATIENCE)
        with stage.play(EDGES / "unix_peer.py", actor, environment={"OUTSIDE": f"{folder}/socket"}) as subject:
            (quiet, _), (answering, _) = listener.accept(), listener.accept()
            for one in (quiet, answering):
                one.settimeout(PATIENCE)
            assert answering.recv(100) == b"question"
            answering.sendall(b"answer")
            subject.wait_ready()
            driver, store = stage.driver(actor), subject.directory / "store"
            with closing(quiet), closing(answering):
                with pytest.raises(EngineError, match="outside of the tree"):
                    driver.checkpoint(subject.pid, store, then)
                snapshot = driver.checkpoint(subject.pid, store, then, outside="reset")
                if then == "kill":
                    subject.wait_gone([subject.pid])
                    job = restored(stage, subject, snapshot)
                    for one in (quiet, answering):
                        with suppress(ConnectionResetError):
                            assert one.recv(100) == b""
                subject.go()
                if then == "run":
                    for one in (quiet, answering):
                        assert one.recv(100) == b"still here"
                        one.sendall(b"so am I")
            subject.judged()
            assert (job.status() if then == "kill" else subject.exited()) == 0


def everything(sock: socket.socket, end: bytes) -> bytes:
    """What comes until `end`."""
    found = bytearray()
    while not found.endswith(end):
        piece = sock.recv(1 << 16)
        assert piece, f"the connection ended after {len(found)} bytes"
        found += piece
    return bytes(found)


CAP_NET_ADMIN, CAP_NET_RAW = 12, 13


def may_keep(host: str) -> None:
    """Skip a test where root may not keep connections, or the host has no such address."""
    capabilities = int(observe.status(os.getpid())["CapEff"], 16)
    if not capabilities >> CAP_NET_ADMIN & capabilities >> CAP_NET_RAW & 1:
        pytest.skip("root lacks CAP_NET_ADMIN or CAP_NET_RAW")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")


@contextmanager
def kept(stage: Stage, root: Actor, host: str) -> Iterator[tuple[Subject, list[socket.socket]]]:
    """A program with connections that are to go on, and their outer ends: full, shut, ended and made."""
    may_keep(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, ExitStack() as stack:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind((host, 0))
        listener.listen()
        listener.settimeout(PATIENCE)
        environment = {"OUTSIDE": json.dumps(listener.getsockname()[:2])}
        with stage.play(EDGES / "kept_peer.py", root, environment=environment) as subject:
            full, shut, ended = (stack.enter_context(listener.accept()[0]) for _ in range(3))
            port = subject.directory / "port"
            wait_until(port.exists, "the program's port")
            made = stack.enter_context(socket.create_connection((host, json.loads(port.read_text()))))
            for one in (full, shut, ended, made):
                one.settimeout(PATIENCE)
            ended.sendall(b"last but not read")
            ended.shutdown(socket.SHUT_WR)
            full.sendall(b"helloand this is not read")
            assert everything(shut, b"last words") == b"last words"
            assert shut.recv(100) == b""
            subject.wait_ready()
            yield subject, [full, shut, ended, made]


@pytest.mark.parametrize(("host", "capsule"), [("127.0.0.1", False), ("::1", False), ("127.0.0.1", True)])
def test_connections_that_go_on(stage: Stage, root: Actor, host: str, capsule: bool) -> None:
    """Root's restore continues them: every byte arrives once, in both directions, and none is reset."""
    with kept(stage, root, host) as (subject, (full, shut, ended, made)), ExitStack() as stack:
        snapshot = stage.driver(root).checkpoint(subject.pid, subject.directory / "store", "kill", tcp="keep")
        subject.wait_gone([subject.pid])
        if capsule:
            stack.enter_context(occupied(stage, subject.pid))
        job = restored(stage, subject, snapshot)
        assert in_capsule(subject) == capsule
        subject.go()
        sent = int((subject.directory / "sent").read_text())
        whole = b"".join(b"%08d" % k for k in range(-(-sent // 8)))[:sent]
        assert everything(full, b"the end") == whole + b"the end"
        full.sendall(b"all received")
        assert full.recv(100) == b""
        shut.sendall(b"still heard")
        shut.close()
        assert everything(ended, b"has ended") == b"to a peer that has ended"
        assert ended.recv(100) == b""
        assert everything(made, b"accepted") == b"from the accepted"
        made.sendall(b"thanks")
        port = json.loads((subject.directory / "port").read_text())
        with socket.create_connection((host, port)) as client:
            client.settimeout(PATIENCE)
            assert everything(client, b"welcome") == b"welcome"
        subject.judged()
        assert job.status() == 0


@pytest.mark.parametrize("before", [0, 64 << 20], ids=["in a buffer that was asked for", "in one that has grown"])
def test_connections_with_megabytes_unread_go_on(stage: Stage, root: Actor, before: int) -> None:
    """As much as a receive buffer holds comes back, in each of several connections, and they go on."""
    may_keep("127.0.0.1")
    size, count = 1 << 20, 3
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(PATIENCE)
        environment = {"OUTSIDE": json.dumps(listener.getsockname()), "UNREAD": str(size), "CONNECTIONS": str(count)}
        environment["READ_BEFORE"] = str(before)
        with stage.play(EDGES / "unread.py", root, environment=environment) as subject:
            peers = [stack.enter_context(listener.accept()[0]) for _ in range(count)]
            contents = [os.urandom(size) for _ in peers]
            for peer, content in zip(peers, contents, strict=True):
                peer.settimeout(PATIENCE)
                assert peer.recv(2) == b"go"
                peer.sendall(bytes(before))
                peer.sendall(content)
            subject.wait_ready()
            snapshot = stage.driver(root).checkpoint(subject.pid, subject.directory / "store", "kill", tcp="keep")
            subject.wait_gone([subject.pid])
            job = restored(stage, subject, snapshot)
            subject.go()
            for peer, content in zip(peers, contents, strict=True):
                assert everything(peer, hashlib.sha256(content).digest()) == hashlib.sha256(content).digest()
                peer.sendall(b"right")
            subject.judged()
            assert job.status() == 0


def test_connections_go_on_once(stage: Stage, root: Actor, user: Actor) -> None:
    """They are kept when the tree is killed, by root; what is restored a second time sees them reset."""
    with kept(stage, root, "127.0.0.1") as (subject, (full, *_)):
        driver, store = stage.driver(root), subject.directory / "store"
        with pytest.raises(EngineError, match="continue in one place only"):
            driver.checkpoint(subject.pid, store, "run", tcp="keep")
        with pytest.raises(EngineError, match="by root only"):
            stage.driver(user).checkpoint(subject.pid, store, "kill", tcp="keep")
        snapshot = driver.checkpoint(subject.pid, store, "kill", tcp="keep")
        subject.wait_gone([subject.pid])
        job = restored(stage, subject, snapshot)
        os.kill(subject.root(), signal.SIGKILL)
        assert job.status() == -signal.SIGKILL
        wait_until(lambda: not belonging(subject.directory), "the end of the first one")
        with pytest.raises(ConnectionResetError):
            everything(full, b"the end")
        job = restored(stage, subject, snapshot)
        os.kill(subject.root(), signal.SIGKILL)
        assert job.status() == -signal.SIGKILL


def test_signal_to_the_job_reaches_the_root(stage: Stage, actor: Actor) -> None:
    """The one PID outside stands for the job: what it is sent the root gets, and how the root ends it ends."""
    with stage.play(named("static.c"), actor) as subject:
        subject.wait_ready()
        job = reborn(stage, subject)
        os.kill(job.pid, signal.SIGTERM)
        assert job.status() == -signal.SIGTERM


def test_detached_job_outlives_its_restorer(stage: Stage, actor: Actor) -> None:
    """A detached job lives on when the restorer has ended, and its PID lives as long as it does."""
    with stage.play(named("threads.c"), actor) as subject:
        subject.wait_ready()
        job = reborn(stage, subject, detach=True)
        wait_until(lambda: not alive(job.talk.handler), "the restorer's end")
        job.talk.close()
        assert alive(job.pid)
        subject.go()
        subject.judged()
        wait_until(lambda: not alive(job.pid), "the end of the job's process")


def test_stopped_by_the_checkpoint(stage: Stage, actor: Actor) -> None:
    """A checkpoint can leave the tree stopped; SIGCONT lets it go on."""
    with stage.play(named("tree.py"), actor) as subject:
        subject.wait_ready()
        tree = subject.settled()
        stage.driver(actor).checkpoint(subject.pid, subject.directory / "store", "stop")
        stopped = subject.settled()
        assert {process.state for process in stopped.values()} == {"stopped"}
        assert tree.keys() == stopped.keys()
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        subject.go()
        subject.judged()
        assert subject.exited() == 0


@pytest.mark.parametrize("left", ["changed", "removed"])
def test_memory_with_a_name_goes_back_to_what_it_was(stage: Stage, actor: Actor, left: str) -> None:
    """A file of /dev/shm that the tree has left behind, changed since, is made anew; one that somebody has is not."""
    with stage.play(EDGES / "counter.py", actor) as subject:
        subject.wait_ready()
        path = Path((subject.directory / "path").read_text())
        snapshot = stage.driver(actor).checkpoint(subject.pid, subject.directory / "store", "run")
        path.write_bytes(b"\7".ljust(8192, b"\0"))
        with open(path, "rb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stderr=file, **actor.popen()):
            os.kill(subject.pid, signal.SIGKILL)
            subject.wait_gone([subject.pid])
            with pytest.raises(EngineError, match="exists with other content"):
                restored(stage, subject, snapshot)
            assert path.read_bytes()[0] == 7
        if left == "removed":
            path.unlink()
        job = restored(stage, subject, snapshot)
        subject.go()
        subject.judged()
        assert job.status() == 0
        assert not path.exists()


def test_a_tree_is_not_built_with_the_limits_of_its_restorer(stage: Stage, root: Actor) -> None:
    """What a process had mapped may be more than the restorer's own limits let it map."""
    with stage.play(named("dev_zero.c"), root) as subject:
        subject.wait_ready()
        snapshot = stage.driver(root).checkpoint(subject.pid, subject.directory / "store", "kill")
        subject.wait_gone([subject.pid])
        driver = stage.driver(root).process.pid
        soft, hard = resource.prlimit(driver, resource.RLIMIT_AS)
        if hard != resource.RLIM_INFINITY:
            pytest.skip("the address space is limited here")
        resource.prlimit(driver, resource.RLIMIT_AS, (32 << 30, hard))
        try:
            job = restored(stage, subject, snapshot)
        finally:
            resource.prlimit(driver, resource.RLIMIT_AS, (soft, hard))
        assert resource.prlimit(subject.root(), resource.RLIMIT_AS) == (soft, hard)
        subject.go()
        subject.judged()
        assert job.status() == 0


def test_what_the_host_mounts_later_is_seen_in_a_capsule(stage: Stage, user: Actor, root: Actor) -> None:
    """What is mounted where mounts are shared appears in a capsule, and what is unmounted is gone."""
    with stage.play(named("folder.py"), user) as subject, ExitStack() as stack:
        subject.wait_ready()
        place = subject.directory / "place"
        (place / "later").mkdir(parents=True)
        subprocess.run(["mount", "--bind", place, place], check=True)
        stack.callback(lambda: subprocess.run(["umount", "--recursive", place], check=True))
        subprocess.run(["mount", "--make-shared", place], check=True)
        job = reborn(stage, subject)
        assert in_capsule(subject)
        seen = Path(f"/proc/{subject.root()}/root{place}/later")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "later"], check=True)
        (place / "later" / "sign").touch()
        assert [path.name for path in seen.iterdir()] == ["sign"]
        subprocess.run(["umount", place / "later"], check=True)
        assert list(seen.iterdir()) == []
        subject.go()
        subject.judged()
        assert job.status() == 0


def test_what_a_woken_job_removes_is_gone_for_good(stage: Stage, actor: Actor) -> None:
    """What lies on the host still, from before its first wake, is none of a job's that had a namespace of its own."""
    with stage.play(EDGES / "removed.c", actor) as subject:
        subject.wait_ready()
        reborn(stage, subject)
        os.kill(subject.root(), signal.SIGUSR1)
        wait_until((subject.directory / "removed").exists, "the job to remove what it had")
        job = reborn(stage, subject)
        subject.go()
        subject.judged()
        assert job.status() == 0, subject.output()
