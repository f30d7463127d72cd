"""PostgreSQL with its clients: transactions that stay open, rows that are locked, a listener that is notified."""

import os
import signal
import socket
import subprocess
import sys
from glob import glob

from cycles import HERE, digest, repeat

(BIN,) = sorted(glob("/usr/lib/postgresql/*/bin"))[-1:]
OPTIONS = ["fsync=off", "shared_buffers=16MB", "max_connections=10", "listen_addresses=127.0.0.1"]


class Client:
    """A psql that stays connected; what it is told it answers line by line."""

    def __init__(self, port: int, host: str) -> None:
        self.process = subprocess.Popen(
            [f"{BIN}/psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", str(port), "postgres"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def tell(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{command};\n\\echo .\n")

    def hear(self) -> str:
        assert self.process.stdout
        lines = []
        while (line := self.process.stdout.readline()) != ".\n":
            if not line:
                sys.exit("psql ended")
            lines.append(line)
        return "".join(lines)

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.hear()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait() == 0


def main() -> None:
    data = HERE / "data"
    subprocess.run([f"{BIN}/initdb", "-D", data, "-A", "trust", "--no-sync"], check=True, stdout=subprocess.DEVNULL)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [word for option in OPTIONS for word in ("-c", option)]
    server = subprocess.Popen([f"{BIN}/postgres", "-D", data, "-p", str(port), "-k", HERE, *words])
    waiting = [f"{BIN}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(waiting, check=False).returncode:
        if server.poll() is not None:
            sys.exit("postgres ended")
    one, two, three = Client(port, "127.0.0.1"), Client(port, "127.0.0.1"), Client(port, str(HERE))
    one.ask("create table accounts (id int primary key, balance bigint)")

    def cycle() -> str:
        one.ask("truncate accounts; insert into accounts select i, 0 from generate_series(1, 50) i")
        told = []
        for number in range(20):
            one.ask(f"begin; update accounts set balance = balance + {number} where id = 1")
            two.tell("update accounts set balance = balance * 2 + 1 where id = 1")  # waits for the first
            three.tell(f"select sum(i * {number}), md5(string_agg(i::text, '-')) from generate_series(1, 3000) i")
            told.append(one.ask("select balance from accounts where id = 1; commit"))
            two.hear()
            told.append(three.hear())
        return digest(told, three.ask("table accounts order by id"))

    repeat(cycle)
    for client in (one, two, three):
        client.end()
    os.kill(server.pid, signal.SIGINT)
    assert server.wait() == 0


main()
