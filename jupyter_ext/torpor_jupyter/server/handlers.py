"""The REST API at ``/api/torpor``; docs/jupyter.md has it for users, api.yaml as OpenAPI.

Every request needs Jupyter's own authentication (token or cookie with XSRF header) and the permission of its authorizer
for the resource ``torpor``: ``read`` to look, ``execute`` for everything that touches a kernel or a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from http.client import responses
from pathlib import Path
from typing import Any, TypeVar

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from torpor import errors
from torpor_jupyter.data.records import KERNEL_ID, SNAPSHOT_ID
from torpor_jupyter.kernels.service import Service
from torpor_jupyter.kernels.state import Unsuitable, as_json

DESCRIPTION = Path(__file__).with_name("api.yaml").read_bytes()
MAX_NAME, MAX_NOTE = 200, 4000
"""Characters."""
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, characters that change the text direction, and lone surrogates."""

_ADVICE = {
    400: "see /api/torpor/api.yaml for what a request may say",
    401: "log in, or send the server's token",
    403: "log in, or send the server's token; with a cookie also the XSRF header",
    404: "see /api/torpor/api.yaml for what there is",
    405: "see /api/torpor/api.yaml for the methods",
}


class BadRequest(errors.TorporError):
    """The request's body is not what the description of the API says."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, advice=_ADVICE[400])


_STATUS: dict[type[errors.TorporError], int] = {
    BadRequest: 400,
    errors.NotFound: 404,
    errors.NotPermitted: 403,
    errors.StoreError: 507,
    errors.CheckpointFailed: 500,
    errors.RestoreFailed: 500,
    errors.ImageDamaged: 500,
}

H = TypeVar("H", bound="TorporHandler")
Action = Callable[..., Awaitable[None]]


def errors_as_answers(action: Action) -> Action:
    """Turn Torpor's errors into HTTP answers, with the reason as the message, and the advice in a field of its own."""

    @wraps(action)
    async def wrapped(self: TorporHandler, *arguments: str, **named: str) -> None:
        try:
            await action(self, *arguments, **named)
        except errors.TorporError as error:
            self.set_status(next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 409))
            self.finish(as_json(error))

    return wrapped


class Answers(APIHandler):
    """Sends every error in one form."""

    def write_error(self, status_code: int, **known: Any) -> None:
        """Send an error of Jupyter's, or one that nobody has expected, in the form of Torpor's."""
        error = (known.get("exc_info") or (None, None))[1]
        if isinstance(error, web.HTTPError):
            message = (error.log_message or error.reason or "") % (error.args or ())
            kind, advice = "HTTPError", _ADVICE.get(status_code, "")
        else:
            message, kind, advice = "an unexpected error", type(error).__name__, "see the server's log"
        message = message or responses.get(status_code, "an error")
        self.set_header("Content-Type", "application/json")
        self.finish(as_json(errors.TorporError(message, advice=advice)) | {"kind": kind})


class TorporHandler(Answers):
    """The base class of the handlers."""

    auth_resource = "torpor"

    @property
    def service(self) -> Service:
        """The server's."""
        service: Service = self.settings["torpor_service"]
        return service

    def body(self, **wanted: type) -> dict[str, Any]:
        """The fields of the request's JSON body. Raises BadRequest for an unknown field, or one of a wrong type."""
        try:
            body = self.get_json_body() or {}
        except UnicodeDecodeError:
            raise BadRequest("the body is not UTF-8") from None
        if not isinstance(body, dict):
            raise BadRequest("the body is not a JSON object")
        for name, value in body.items():
            if name not in wanted:
                raise BadRequest(f"unknown field {name!r}")
            if type(value) is not wanted[name]:
                raise BadRequest(f"{name} is no {wanted[name].__name__}")
            limit = MAX_NOTE if name in ("note", "path") else MAX_NAME
            if isinstance(value, str) and len(value) > limit:
                raise BadRequest(f"{name} is longer than {limit} characters")
            if isinstance(value, str) and (bad := UNSHOWN.search(value)):
                raise BadRequest(f"{name} holds the character U+{ord(bad[0]):04X}, which cannot be shown")
        return body

    def answer(self, value: object, status: int = 200) -> None:
        """Send JSON."""
        self.set_status(status)
        self.finish(json.dumps(value))


class Off(Answers):
    """Answers all requests in a server in which Torpor is not active."""

    @web.authenticated
    async def get(self) -> None:
        """Send the reason why Torpor is not active."""
        why = Unsuitable(self.settings["torpor_why_off"], advice="use a server that runs its kernels itself")
        self.set_status(409)
        self.finish(as_json(why))

    post = patch = delete = get


class Unknown(Answers):
    """Answers what is no request of the API."""

    async def prepare(self) -> None:  # type: ignore[override]
        """Say that there is no such thing."""
        raise web.HTTPError(404, "the API has no %s", self.request.path)


class Description(TorporHandler):
    """The description of the API."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Send its description (OpenAPI)."""
        self.finish(DESCRIPTION, set_content_type="application/yaml")


class Kernels(TorporHandler):
    """All kernels."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self) -> None:
        """List the kernels of this server, living and parked."""
        self.answer(self.service.registry.kernels())


class Kernel(TorporHandler):
    """One kernel."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self, kernel_id: str) -> None:
        """Describe the kernel, with the progress of the operation on it."""
        self.answer(self.service.registry.describe(kernel_id))


class Park(TorporHandler):
    """Parks a kernel."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str) -> None:
        """Save the kernel and end its process."""
        self.answer(await self.service.park(kernel_id, **self.body(name=str)))


class Resume(TorporHandler):
    """Wakes a parked kernel."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str) -> None:
        """Wake the parked kernel."""
        self.answer(await self.service.resume(kernel_id, **self.body(files_as_they_are=bool)))


class Cells(TorporHandler):
    """The cells whose pages have gone, that run or have ended since."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str) -> None:
        """Give them to the page with this session, with the kernel's messages about them."""
        body = self.body(session=str)
        self.answer(self.service.take_cells(kernel_id, body.get("session", "")))


class Cancel(TorporHandler):
    """Cancels an operation."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str) -> None:
        """Cancel the operation on the kernel."""
        self.body()
        self.answer(self.service.operations.cancel(kernel_id))


class Checkpoints(TorporHandler):
    """A kernel's checkpoints."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self, kernel_id: str) -> None:
        """List them, oldest first; also of a kernel that is gone."""
        self.answer(await self.service.checkpoints.list(kernel_id))

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str) -> None:
        """Make a checkpoint; the kernel runs on."""
        self.answer(await self.service.save(kernel_id, **self.body(name=str, note=str)), 201)


class AllCheckpoints(TorporHandler):
    """The checkpoints of all kernels."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self) -> None:
        """List them, oldest first."""
        self.answer(await self.service.checkpoints.list())


class TheStore(TorporHandler):
    """The store and the server's rules."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self) -> None:
        """Describe the size of the store, and what is saved and removed automatically."""
        store = self.service.registry.store
        used = await self.service.workers.read(store.used)
        self.answer({"path": store.path, "used": used, **self.settings["torpor_rules"]})


class Checkpoint(TorporHandler):
    """One checkpoint."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def patch(self, kernel_id: str, checkpoint_id: str) -> None:
        """Change its name, note or pin."""
        self.answer(
            await self.service.checkpoints.change(
                kernel_id, checkpoint_id, **self.body(name=str, note=str, pinned=bool)
            )
        )

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def delete(self, kernel_id: str, checkpoint_id: str) -> None:
        """Delete the checkpoint, and send how many bytes only it held."""
        report = await self.service.checkpoints.delete(kernel_id, checkpoint_id)
        self.answer({"freed": report.freed})


class Restore(TorporHandler):
    """Takes a kernel back to a checkpoint."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str, checkpoint_id: str) -> None:
        """Take the kernel back to the checkpoint; ``undo`` is the checkpoint of its former state."""
        wanted = self.body(discard=bool, notebook=bool, files_as_they_are=bool)
        self.answer(await self.service.restore(kernel_id, checkpoint_id, **wanted))


class Diff(TorporHandler):
    """Compares checkpoints."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self, kernel_id: str, checkpoint_id: str) -> None:
        """Compare the checkpoint with the one that ``with`` names; by default with its parent."""
        other = self.get_query_argument("with", "")
        self.answer(await self.service.checkpoints.diff(kernel_id, checkpoint_id, other))


class Variables(TorporHandler):
    """The variables at a checkpoint."""

    @web.authenticated
    @authorized
    @errors_as_answers
    async def get(self, kernel_id: str, checkpoint_id: str) -> None:
        """List the variables that the kernel had."""
        self.answer(await self.service.checkpoints.variables_at(kernel_id, checkpoint_id))


class Export(TorporHandler):
    """Writes checkpoints to files."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str, checkpoint_id: str) -> None:
        """Write the checkpoint, with its notebook, to one file."""
        self.answer(await self.service.export(kernel_id, checkpoint_id, **self.body(path=str)), 201)


class Import(TorporHandler):
    """Reads checkpoints from files."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self) -> None:
        """Take the checkpoint in a file into the store, and write its notebook beside the file."""
        self.answer(await self.service.import_(self.body(path=str).get("path", "")), 201)


class Fork(TorporHandler):
    """Forks a checkpoint."""

    @web.authenticated
    @authorized("execute")
    @errors_as_answers
    async def post(self, kernel_id: str, checkpoint_id: str) -> None:
        """Wake the checkpoint as another kernel, beside the first, with a copy of the notebook."""
        wanted = self.body(path=str, files_as_they_are=bool)
        self.answer(await self.service.fork(kernel_id, checkpoint_id, **wanted), 201)


_KERNEL = f"/api/torpor/kernels/(?P<kernel_id>{KERNEL_ID.pattern.replace('(-', '(?:-')})"
_CHECKPOINT = f"{_KERNEL}/checkpoints/(?P<checkpoint_id>{SNAPSHOT_ID.pattern})"
HANDLERS = [
    (r"/api/torpor/api\.yaml", Description),
    (r"/api/torpor/kernels", Kernels),
    (r"/api/torpor/checkpoints", AllCheckpoints),
    (r"/api/torpor/store", TheStore),
    (r"/api/torpor/import", Import),
    (_KERNEL, Kernel),
    (f"{_KERNEL}/park", Park),
    (f"{_KERNEL}/resume", Resume),
    (f"{_KERNEL}/cancel", Cancel),
    (f"{_KERNEL}/cells", Cells),
    (f"{_KERNEL}/checkpoints", Checkpoints),
    (_CHECKPOINT, Checkpoint),
    (f"{_CHECKPOINT}/restore", Restore),
    (f"{_CHECKPOINT}/fork", Fork),
    (f"{_CHECKPOINT}/diff", Diff),
    (f"{_CHECKPOINT}/variables", Variables),
    (f"{_CHECKPOINT}/export", Export),
    (r"/api/torpor/.*", Unknown),
]
