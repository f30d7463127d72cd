"""Redis with its clients, over TCP and a unix socket: counters, a queue with readers that block, a large value."""

import os
import socket
import subprocess
import sys
import time

from cycles import HERE, digest, repeat

UNIX = str(HERE / "redis.sock")
Reply = object


class Client:
    """Speaks RESP."""

    def __init__(self, address: object) -> None:
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.connect(address)  # type: ignore[arg-type]
        self.stream = self.socket.makefile("rb")

    def send(self, *words: object) -> None:
        encoded = [str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)]
        self.socket.sendall(b"".join(parts))

    def hear(self) -> Reply:
        line = self.stream.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [self.hear() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.stream.read(int(rest) + 2)[:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return int(rest) if kind == b":" else rest

    def ask(self, *words: object) -> Reply:
        self.send(*words)
        return self.hear()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether the server can be reached by both ways."""
    try:
        return Client(("127.0.0.1", port)).ask("ping") == Client(UNIX).ask("ping")
    except (ConnectionError, FileNotFoundError):
        return False


def consume(port: int) -> None:
    """Takes words from one queue and puts their digests into another, until it is told to end."""
    client = Client(("127.0.0.1", port))
    while True:
        _, word = client.ask("brpop", "tasks", 0)  # type: ignore[misc]
        if word == b"end":
            os._exit(0)
        client.ask("lpush", "results", digest(word))


def main() -> None:
    port = free_port()
    options = ["--port", str(port), "--unixsocket", UNIX, "--dir", str(HERE), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    while not listens(port):
        if server.poll() is not None:
            sys.exit("redis-server ended")
        time.sleep(0.01)
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            consume(port)
        children.append(child)
    tcp, unix = Client(("127.0.0.1", port)), Client(UNIX)

    def cycle() -> str:
        unix.ask("flushall")
        for number in range(400):  # all at once: the queues of the sockets fill
            tcp.send("incrby", "sum", number)
        for number in range(60):
            unix.ask("lpush", "tasks", "word" * number)
        sums = [tcp.hear() for _ in range(400)]
        results = sorted(tcp.ask("brpop", "results", 0)[1] for _ in range(60))  # type: ignore[index]
        tcp.ask("set", "large", "y" * 300_000)
        tcp.ask("save")
        return digest(sums[-1], results, unix.ask("strlen", "large"), unix.ask("get", "large") == b"y" * 300_000)

    repeat(cycle)
    for _ in children:
        tcp.ask("lpush", "tasks", "end")
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    tcp.send("shutdown", "nosave")
    assert server.wait() == 0


main()
