"""SQLite: a transaction that stays open while another process reads the same database through its shared memory."""

import os
import sqlite3

from cycles import HERE, digest, repeat

ROWS = 4000
PATH = HERE / "data.sqlite"


def read(requests: int, answers: int) -> None:
    base = sqlite3.connect(PATH, timeout=30)
    while os.read(requests, 1):
        (count,) = base.execute("select count(*) from numbers").fetchone()
        os.write(answers, b"%6d" % count)
    os._exit(0)


def main() -> None:
    base = sqlite3.connect(PATH, timeout=30, isolation_level=None)
    base.execute("pragma journal_mode=wal")
    base.execute("pragma synchronous=off")
    base.execute("create table numbers (i integer primary key, word text)")
    base.execute("create index words on numbers (word)")
    (requests, ask), (answer, answers) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ask)
        os.close(answer)
        read(requests, answers)
    os.close(requests)
    os.close(answers)

    def seen() -> int:
        os.write(ask, b"?")
        return int(os.read(answer, 6))

    def cycle() -> str:
        base.execute("delete from numbers")
        base.execute("begin immediate")
        counts = []
        for number in range(ROWS):
            base.execute("insert into numbers values (?, ?)", (number, digest(number)))
            if number % 500 == 0:
                counts.append(seen())
                base.execute(f"savepoint s{number}")
        base.execute("rollback to s3000")
        base.execute("commit")
        counts.append(seen())
        rows = base.execute("select i, word from numbers order by word").fetchall()
        (sound,) = base.execute("pragma integrity_check").fetchone()
        return digest(counts, rows, sound)

    repeat(cycle)
    os.close(ask)
    assert os.waitpid(child, 0)[1] == 0


main()
