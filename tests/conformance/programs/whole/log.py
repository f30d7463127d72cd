"""Files that are appended to: a log, and a database in use, as every Jupyter kernel has one for its history."""

import sqlite3

from ready import HERE, expect, judge, ready_and_wait, same


def main() -> None:
    log = open(HERE / "log", "a", buffering=1)  # noqa: SIM115
    print("before", file=log)
    history = sqlite3.connect(HERE / "history.sqlite")
    history.execute("create table history (line text)")
    history.execute("insert into history values ('before')")
    history.commit()
    ready_and_wait()

    print("after", file=log)
    lines = (HERE / "log").read_text().splitlines()
    expect(lines[0] == "before" and lines[-1] == "after", f"the log: {lines[0]} ... {lines[-1]}")
    history.execute("insert into history values ('after')")
    history.commit()
    same(history.execute("select count(*) from history").fetchall(), [(2,)], "the history")
    same(history.execute("pragma integrity_check").fetchall(), [("ok",)], "the database")
    (HERE / "history.sqlite").unlink()  # so that another copy of this program finds none
    (HERE / "log").unlink()


judge(main)
