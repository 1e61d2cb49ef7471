"""The server of the page: on this machine only, for this page only."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
import webbrowser
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatelens.errors import GatelensError, InputError
from gatelens.explore.explorer import Explorer, Outdated
from gatelens.explore.shelf import LARGEST_UPLOAD
from gatelens.explore.state import ControlError, read_state

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": "index.html",
    "/explore.css": "explore.css",
    "/explore.js": "explore.js",
    "/icon.svg": "icon.svg",
}
HOSTS = ["127.0.0.1", "localhost"]
LARGEST_STATE = 64 << 10  # bytes
PAGES = 256  # open pages whose newest request is known
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class OwnPageOnly:
    """Sets the headers of every reply, and refuses what another page sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        own = origin in (None, f"http://{headers.get('host', '')}") and site in ("same-origin", "none")
        if scope["method"] not in ("GET", "HEAD") and not own:
            refusal = _error("page", f"refused: a request from another page ({origin or site:.100})", 403)
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


class Newest:
    """The newest request of each page."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    def note(self, page: str, number: int) -> Callable[[], None]:
        """A request has come; what is given raises :class:`Outdated` as soon as a newer one has."""
        with self._lock:
            self._numbers[page] = max(number, self._numbers.get(page, 0))
            self._numbers.move_to_end(page)
            while len(self._numbers) > PAGES:
                self._numbers.popitem(last=False)

        def go_on() -> None:
            if self._numbers.get(page, 0) > number:
                raise Outdated

        return go_on


class Answers:
    """What each address of an explorer's page answers."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.newest = explorer, Newest()
        self.server = secrets.token_hex(8)  # a page that was opened from another one must be reloaded

    async def setup(self, request: Request) -> Response:
        """What the page has to know before it asks for anything."""
        return JSONResponse(
            {**self.explorer.setup(), "server": self.server, "largest_upload": LARGEST_UPLOAD}
        )

    async def picture(self, request: Request) -> Response:
        """A picture as the page shows it."""
        try:
            content = await run_in_threadpool(lambda: self.explorer.shelf[request.path_params["key"]].view)
        except InputError as error:
            return _error("picture", str(error), 404)
        return Response(content, media_type="image/png")

    async def about(self, request: Request) -> Response:
        """What the page says of a picture, as long as it is here."""
        try:
            shown = self.explorer.shelf[request.path_params["key"]]
        except InputError as error:
            return _error("picture", str(error))
        return JSONResponse({"label": shown.label, "size": shown.image.size})

    async def upload(self, request: Request) -> Response:
        """Keeps a picture."""
        content = await _body(request, LARGEST_UPLOAD)
        if content is None:
            limit = f"{LARGEST_UPLOAD >> 20} MiB"
            return _error("upload", f"the picture is larger than {limit}: give a smaller one", 413)
        try:
            name = request.query_params.get("name", "picture")
            key = await run_in_threadpool(self.explorer.shelf.upload, content, name)
        except InputError as error:
            return _error("upload", str(error))
        return JSONResponse({"id": key, "size": self.explorer.shelf[key].image.size})

    async def run(self, request: Request) -> Response:
        """What the page shows of a state."""
        content = await _body(request, LARGEST_STATE)
        if content is None:
            return _error("page", f"the page sent more than {LARGEST_STATE >> 10} KiB", 413)
        try:
            page, number, sent = _request(content)
        except InputError as error:
            return _error("page", str(error), 400)
        about: dict[str, Any] = {"number": number, "server": self.server}
        try:
            go_on = self.newest.note(page, number)
            result = await run_in_threadpool(self.explorer.run, read_state(sent), go_on)
        except Outdated:
            return JSONResponse({**about, "outdated": True})
        except ControlError as error:
            return _error(error.control, str(error), **about)
        except GatelensError as error:
            return _error("page", str(error), **about)
        return JSONResponse({**about, "result": result})


def application(explorer: Explorer) -> Starlette:
    """The page of an explorer as an ASGI application."""
    answers = Answers(explorer)
    return Starlette(
        routes=[
            *(Route(path, _file(PAGE / name)) for path, name in FILES.items()),
            Route("/setup", answers.setup),
            Route("/pictures/{key}", answers.picture),
            Route("/pictures/{key}/about", answers.about),
            Route("/pictures", answers.upload, methods=["POST"]),
            Route("/run", answers.run, methods=["POST"]),
        ],
        middleware=[
            Middleware(OwnPageOnly),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        ],
        exception_handlers={Exception: _bug},
    )


def _file(path: Path) -> Callable[[Request], Any]:
    async def give(request: Request) -> Response:
        return FileResponse(path)

    return give


def _error(control: str, message: str, status: int = 200, **more: Any) -> Response:
    """What the page shows at a control. 200 for what its user can put right: a browser reports others as its own."""
    error = {"control": control, "message": " ".join(message.split())}
    return JSONResponse({"error": error, **more}, status)


async def _bug(request: Request, error: Exception) -> Response:
    """The page says that something went wrong; the terminal says what."""
    return _error("page", f"{type(error).__name__}: a bug in gatelens; the terminal says where", 500)


async def _body(request: Request, most: int) -> bytes | None:
    """The body; None where it is longer, of which no more than that is read."""
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _request(content: bytes) -> tuple[str, int, Any]:
    """Page, number of the request, state.

    Raises:
        InputError: it is no such JSON.
    """
    try:
        sent = json.loads(content)
        page, number, state = sent["page"], sent["number"], sent["state"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError("the page sent no JSON with page, number and state") from error
    if not isinstance(page, str) or len(page) > 100 or type(number) is not int or abs(number) >= 1 << 53:
        raise InputError("the page sent a name or number that it cannot have")
    return page, number, state


def listen(port: int = 0) -> socket.socket:
    """A socket on this machine alone; port 0 is a free one.

    Raises:
        InputError: the port is taken, or may not be used.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"port {port} cannot be used ({error}): give another, or none for a free one"
        ) from error
    return listening


def _no_stopped_work(record: logging.LogRecord) -> bool:
    """Drops what uvicorn logs of the work that Ctrl-C ends; a bug is still logged with its traceback."""
    stopped = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not stopped and "timeout graceful shutdown exceeded" not in record.getMessage()


def serve(explorer: Explorer, listening: socket.socket, open_browser: bool = False) -> None:
    """Answer until a signal comes, which is then raised again."""
    config = uvicorn.Config(
        application(explorer),
        log_config=None,  # the logging of the process stays as it is
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    if open_browser and _has_screen():
        with suppress(webbrowser.Error):
            webbrowser.open("http://{}:{}/".format(*listening.getsockname()))
    log = logging.getLogger("uvicorn.error")
    log.addFilter(_no_stopped_work)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        log.removeFilter(_no_stopped_work)


def _has_screen() -> bool:
    """Whether a browser can show itself; without a screen ``webbrowser`` would take one of text over the terminal."""
    named = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return named or sys.platform in ("darwin", "win32")
