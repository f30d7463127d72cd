"""JupyterLab's debugger: a cell that stands at a breakpoint stands there after a wake, and what asks is answered."""

from __future__ import annotations

from itertools import count
from typing import Any

from tests.jupyter import Notebook, Server

CELL = "def double(x):\n    y = 2 * x\n    return y\nprint(double(21))"


class Debugger:
    """What JupyterLab's debugger is for a kernel."""

    def __init__(self, page: Notebook) -> None:
        self.page, self.numbers = page, count(1)

    def ask(self, command: str, **arguments: object) -> Any:
        """Send a request; the body of its answer."""
        seq = next(self.numbers)
        content = {"type": "request", "seq": seq, "command": command, "arguments": arguments}
        id = self.page.send("debug_request", content, "control")
        self.page.until(lambda: self.page.about(id, "debug_reply"), f"{command} is answered")
        (answer,) = self.page.about(id, "debug_reply")
        assert answer.get("success", True), answer
        return answer.get("body", {})

    def begin(self) -> None:
        self.ask("initialize", clientID="test", adapterID="", pathFormat="path")
        self.ask("attach")

    def stops(self) -> int:
        """How often a thread has stopped at a breakpoint."""
        events = [m["content"] for m in self.page.seen if m["msg_type"] == "debug_event"]
        return sum(event["event"] == "stopped" for event in events)

    def where(self) -> tuple[int, int]:
        """The thread that has stopped, and its line."""
        stopped = [m["content"] for m in self.page.seen if m["msg_type"] == "debug_event"]
        thread = next(event["body"]["threadId"] for event in reversed(stopped) if event["event"] == "stopped")
        return thread, self.ask("stackTrace", threadId=thread)["stackFrames"][0]["line"]


def test_a_cell_stands_at_its_breakpoint_after_a_wake(server: Server) -> None:
    _, kernel = server.new_session("work.ipynb")
    with Notebook(server, kernel) as page:
        page.run("x = 1")
        debugger = Debugger(page)
        debugger.begin()
        path = debugger.ask("dumpCell", code=CELL)["sourcePath"]
        debugger.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 2}], sourceModified=False)
        debugger.ask("configurationDone")
        for number in (1, 2):
            cell = page.start(CELL)
            page.until(lambda number=number: debugger.stops() == number, "it is at the breakpoint")  # type: ignore[misc]
            server.torpor(kernel, "/park")
            server.torpor(kernel, "/resume")
            assert debugger.ask("debugInfo")["stoppedThreads"]
            thread, line = debugger.where()
            assert line == 2 and not page.output(cell)
            debugger.ask("continue", threadId=thread)
            assert page.finish(cell) == "42\n"
        debugger.ask("disconnect", restart=False, terminateDebuggee=False)
        debugger.begin()
        assert debugger.ask("debugInfo")["isStarted"]
