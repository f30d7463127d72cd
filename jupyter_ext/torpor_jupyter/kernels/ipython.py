"""What is said to kernels of IPython (ipykernel) alone, by requests that nobody else sees.

The code is sent as a user expression of an empty cell: it counts for no cell, is in no history, and calls none of the
functions that a program has registered to be called at each cell. It uses no name of the user's.
"""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.session import Session

from torpor.errors import TorporError

EXPRESSION = "(lambda given: __import__('builtins').exec({code!r}, given) or given['answer'])({{'given': {given!r}}})"
"""Runs code in a namespace of its own, as `exec` does, and gives the string that it has called `answer`."""
IMPLEMENTATION = "ipython"
"""What ipykernel says of itself in its kernel_info_reply."""
SESSION = "torpor-request-"
"""Begins the session of each such request: what a kernel says of it is for nobody else."""
LISTING = Path(__file__).with_name("listing.py").read_text(encoding="utf-8")
LISTING_SECONDS = 5.0
"""How long an idle kernel may take to list its variables; without an answer the checkpoint is made without a list."""


class NoAnswer(TorporError):
    """The kernel does not answer, or with an error."""


async def run_code(
    connection: Mapping[str, Any],
    code: str,
    given: Mapping[str, Any] | None = None,
    *,
    seconds: float,
    reply_key: bytes | None = None,
) -> Any:
    """Let an idle kernel run code.

    Args:
        connection: of its connection file.
        code: gives the name ``answer`` to a string of JSON.
        given: what the code finds under the name ``given``, made of the types of JSON.
        seconds: how long it may take.
        reply_key: the key by which it signs the answer, if not the connection's.

    Returns:
        What the JSON says.

    Raises:
        NoAnswer: it did not answer in time, or the code failed.
    """
    expression = EXPRESSION.format(code=code, given=dict(given or {}))
    content = {
        "code": "", "silent": True, "store_history": False, "allow_stdin": False, "stop_on_error": False,
        "user_expressions": {"answer": expression},
    }  # fmt: skip
    reply = await _request(connection, "execute_request", content, seconds, reply_key)
    answer = reply.get("user_expressions", {}).get("answer", {})
    if answer.get("status") != "ok":
        raise NoAnswer(f"the kernel answered: {answer.get('ename')}: {answer.get('evalue')}")
    try:
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))
    except (KeyError, SyntaxError, TypeError, ValueError) as error:  # strings are shown otherwise by the user's wish
        raise NoAnswer(f"cannot read the kernel's answer: {error}") from None


async def list_variables(connection: Mapping[str, Any]) -> str:
    """Let an idle kernel list its variables: text that `torpor_jupyter.data.variables` reads. Raises NoAnswer."""
    return json.dumps(await run_code(connection, LISTING, seconds=LISTING_SECONDS))


async def holders(connection: Mapping[str, Any], numbers: list[int]) -> dict[str, str]:
    """Which variables or modules of an idle kernel hold descriptors, by their numbers. Raises NoAnswer."""
    found: dict[str, str] = await run_code(connection, HOLDERS, {"fds": numbers}, seconds=LISTING_SECONDS)
    return found


async def count_of_cells(connection: Mapping[str, Any], *, seconds: float) -> int | None:
    """How many cells an idle kernel of IPython has run; None for another kernel. Raises NoAnswer."""
    if await implementation(connection, seconds=seconds) != IMPLEMENTATION:
        return None
    nothing = {"code": "", "silent": True, "store_history": False, "allow_stdin": False, "stop_on_error": False}
    return int((await _request(connection, "execute_request", nothing, seconds, None))["execution_count"])


async def implementation(connection: Mapping[str, Any], *, seconds: float) -> str:
    """What an idle kernel calls itself. Raises NoAnswer."""
    reply = await _request(connection, "kernel_info_request", {}, seconds, None)
    return str(reply.get("implementation", ""))


async def _request(
    connection: Mapping[str, Any], kind: str, content: dict[str, Any], seconds: float, reply_key: bytes | None
) -> dict[str, Any]:
    """Send a request on the shell channel, by a connection of its own; the content of the reply."""
    client = AsyncKernelClient(context=zmq.asyncio.Context.instance())
    known: Any = dict(connection)
    client.load_connection_info(known)
    signed = client.session
    signed.session = SESSION + uuid4().hex
    checked = Session(key=reply_key, signature_scheme=signed.signature_scheme) if reply_key else signed
    shell: Any = client.connect_shell()
    try:
        sent = signed.send(shell, kind, content)
        if isinstance(sent, asyncio.Future):
            await sent
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                parts = await asyncio.wait_for(shell.recv_multipart(), max(left, 0.001))
            except asyncio.TimeoutError:  # until Python 3.10 another one than the built-in
                raise NoAnswer(f"the kernel did not answer within {seconds:.0f} s") from None
            _, message = checked.feed_identities(parts)
            try:
                reply = checked.deserialize(message)
            except ValueError as error:  # signed by another key
                raise NoAnswer(f"the kernel's answer is not authentic: {error}") from None
            if reply["header"]["msg_type"] == kind.replace("_request", "_reply"):
                answer: dict[str, Any] = reply["content"]
                return answer
    finally:
        shell.close(linger=1000)  # a busy kernel is to get it, too


HOLDERS = """
import gc, json, types
from IPython import get_ipython
space = get_ipython().user_ns
names = {id(thing): name for name, thing in space.items() if type(name) is str and not name.startswith("_")}

def number(thing):
    try:
        return thing.fileno()
    except Exception:  # closed, or without one
        return -1

def holder(thing):
    level, seen = [thing], {id(space), id(names)}
    for _ in range(6):
        for one in level:
            if type(one) is types.ModuleType:
                return "module " + one.__name__
            if id(one) in names:
                return "variable " + names[id(one)]
        seen.update(map(id, level), [id(level)])
        above = [one for one in gc.get_referrers(*level) if id(one) not in seen and type(one) is not types.FrameType]
        level = above[:1000]

found = {}
for thing in gc.get_objects():
    if type(thing).__module__ in ("_io", "socket", "ssl") and (fd := number(thing)) in given["fds"]:
        if str(fd) not in found and (name := holder(thing)):
            found[str(fd)] = name
answer = json.dumps(found)
"""
"""Asks the garbage collector who refers to the objects with these descriptors."""

NEW_HISTORY = "from IPython import get_ipython\nget_ipython().history_manager.new_session()\nanswer = 'null'"
"""Begins a new session in IPython's database of cells."""

NEW_IDENTITY = """
import json, os, uuid
from IPython import get_ipython
from ipykernel.kernelapp import IPKernelApp

app = IPKernelApp.instance()
pipe = getattr(app.iopub_thread, "_pipe_port", None)
moved = {int(old): new for old, new in given["ports"].items()}
own = {name: getattr(app, name) for name in given["names"]}
unknown = sorted(set(moved) - {pipe, *own.values()})
if unknown:
    raise RuntimeError(f"it also listens at port {unknown[0]}, which is not IPython's")
shell_of_debugger = getattr(app, "debug_shell_socket", None)
if shell_of_debugger is not None:
    at = f"{app.transport}://{app.ip}:"
    shell_of_debugger.disconnect(at + str(app.shell_port))
    shell_of_debugger.connect(at + str(moved[app.shell_port]))
for name, port in own.items():
    setattr(app, name, moved[port])
if pipe in moved:
    app.iopub_thread._pipe_port = moved[pipe]
app.connection_file = given["connection_file"]
os.environ["JPY_SESSION_NAME"] = given["notebook"]
log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
logs = {os.path.realpath(path) for path in given["logs"]}
for fd in os.listdir("/proc/self/fd"):
    if os.path.realpath(f"/proc/self/fd/{fd}") in logs:
        os.dup2(log, int(fd), os.get_inheritable(int(fd)))
os.close(log)
app.session.session = uuid.uuid4().hex
app.session.key = given["key"].encode()
get_ipython().history_manager.new_session()
answer = json.dumps({name: getattr(app, name) for name in own})
"""
"""Makes a woken kernel another one than it was: its ports as it knows them, its connection file, its log, its key.

What ipykernel knows of its ports: its own five; the one to which forks of the kernel send what they print
(ipykernel.iostream); and the connection of its debugger to its own shell channel, which would reconnect to the old one.
"""
