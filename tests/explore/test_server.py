"""The rules of the server: who may ask, how much may be sent, and an answer for whatever is sent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import threading
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from explore_helpers import asked, png
from gatelens.errors import InputError
from gatelens.explore import server
from gatelens.explore.explorer import Explorer, Outdated
from gatelens.explore.server import HEADERS, PAGE, Newest, application, listen
from gatelens.explore.shelf import LARGEST_UPLOAD
from gatelens.explore.state import State

OWN = "http://127.0.0.1:8000"


def send(client: TestClient, number: int = 1, page: str = "tests", **changes: Any) -> dict[str, Any]:
    reply = client.post("/run", json={"page": page, "number": number, "state": asked(**changes)})
    assert reply.status_code == 200
    return reply.json()


class Tags(HTMLParser):
    """Every tag of the page with its attributes, and what stands inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def tags() -> Tags:
    parsed = Tags()
    parsed.feed((PAGE / "index.html").read_text())
    return parsed


@pytest.mark.parametrize("host", ["example.org", "example.org:8000", "127.0.0.1.example.org", "10.0.0.1", ""])
@pytest.mark.parametrize("path", ["/", "/setup", "/explore.js", "/pictures/sample:0"])
def test_another_host_is_refused(client: TestClient, host: str, path: str) -> None:
    reply = client.get(path, headers={"host": host})
    assert reply.status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "127.0.0.1"])
def test_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200
    posted = client.post("/run", headers={"host": host, "origin": f"http://{host}"}, content=b"{}")
    assert posted.status_code == 400 and "no JSON" in posted.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://example.org"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "http://localhost:8000"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": OWN, "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/run", "/pictures"])
def test_another_page_may_send_nothing(client: TestClient, headers: dict[str, str], path: str) -> None:
    reply = client.post(path, headers=headers, content=png())
    assert reply.status_code == 403 and "another page" in reply.json()["error"]["message"]


def test_the_own_page_may(client: TestClient) -> None:
    reply = client.post("/pictures", headers={"origin": OWN, "sec-fetch-site": "same-origin"}, content=png())
    assert reply.json()["id"].startswith("upload:")


def test_every_reply_forbids_all_but_itself(client: TestClient) -> None:
    replies = [
        client.get(path) for path in ("/", "/setup", "/icon.svg", "/nothing", "/pictures/none", "/run")
    ]
    replies += [client.get("/", headers={"host": "example.org"}), client.post("/run", content=b"x")]
    replies.append(client.post("/run", headers={"origin": "http://example.org"}))
    assert [reply.status_code for reply in replies] == [200, 200, 200, 404, 404, 405, 400, 400, 403]
    for reply in replies:
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS
    rules = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert rules.pop("default-src") == "'none'" and set(rules.values()) == {"'self'", "'none'"}


def test_the_page_holds_no_script_and_asks_nobody_else(client: TestClient, tags: Tags) -> None:
    assert tags.inline == ""
    for tag, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            if attributes.get(name):
                assert client.get(str(attributes[name])).status_code == 200
    for file in ("explore.js", "explore.css", "icon.svg"):
        addresses = set(re.findall(r"https?://[\w./]+", (PAGE / file).read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in (PAGE / "explore.css").read_text()


def test_every_error_has_a_place_on_the_page(tags: Tags) -> None:
    places = " ".join(str(attributes.get("data-error", "")) for _, attributes in tags.tags).split()
    assert {*State.model_fields, "page", "upload"} <= set(places)
    assert len(places) == len(set(places))


def test_a_picture_that_is_too_large_is_refused_with_the_limit(client: TestClient) -> None:
    reply = client.post("/pictures?name=big.png", content=b"\0" * (LARGEST_UPLOAD + 1))
    assert reply.status_code == 413 and "16 MiB" in reply.json()["error"]["message"]
    assert client.get("/setup").json()["largest_upload"] == LARGEST_UPLOAD


def test_no_more_than_the_limit_is_read() -> None:
    parts = 0

    async def receive() -> dict[str, Any]:  # a body without an end
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    assert asyncio.run(server._body(request, 10_000)) is None
    assert parts == 11


def test_what_is_no_picture_is_said_at_the_control(client: TestClient) -> None:
    for content in (b"", b"text", png()[:40], b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        reply = client.post("/pictures?name=x.png", content=content)
        error = reply.json()["error"]
        assert (
            reply.status_code == 200
            and error["control"] == "upload"
            and "not a readable picture" in error["message"]
        )


def test_an_upload_comes_back_as_it_was(client: TestClient) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    key = client.post("/pictures?name=" + quote("a b.png"), content=file.getvalue()).json()["id"]
    shown = client.get(f"/pictures/{key}")
    assert shown.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), pixels)
    assert client.get(f"/pictures/{key}/about").json() == {"label": "a b.png", "size": [30, 20]}
    assert "upload it again" in client.get("/pictures/upload:none/about").json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'{"page": 1, "number": 1, "state": {}}',
        b'{"page": "p", "number": "1", "state": {}}',
        b'{"page": "p", "number": true, "state": {}}',
        b'{"page": "p", "number": 1e999, "state": {}}',
        b'{"page": "' + b"p" * 101 + b'", "number": 1, "state": {}}',
        b'{"page": "p", "number": ' + b"9" * 400 + b', "state": {}}',
        b"[" * 50_000,
        b"\xff\xfe",
    ],
    ids=range(12),
)
def test_what_is_no_request_is_refused(client: TestClient, content: bytes) -> None:
    reply = client.post("/run", content=content)
    assert reply.status_code == 400 and reply.json()["error"]["control"] == "page"


VALUES = (
    st.none() | st.booleans() | st.integers(-3, 80) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.lists(st.integers(-1, 70) | st.sampled_from(["text", "gate", "image", "region", "x"]), max_size=4)
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from([*State.model_fields, "extra"]), value=VALUES)
def test_whatever_a_control_sends_is_answered(client: TestClient, field: str, value: Any) -> None:
    sent = {"page": "any", "number": 1, "state": asked(**{field: value})}
    reply = client.post("/run", content=json.dumps(sent))
    assert reply.status_code == 200
    told = reply.json()
    if "error" in told:
        assert told["number"] == 1 and set(told["error"]) == {"control", "message"}
        assert told["error"]["control"] in (*State.model_fields, "page")
        assert told["error"]["message"] and "\n" not in told["error"]["message"]
    else:
        assert told["result"]["answer"]["before"]


def test_a_bug_is_said_on_the_page(
    client: TestClient, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("oh")

    monkeypatch.setattr(explorer, "run", broken)
    reply = client.post("/run", json={"page": "p", "number": 1, "state": asked()})
    assert reply.status_code == 500 and "KeyError" in reply.json()["error"]["message"]


def test_an_older_request_is_not_computed(client: TestClient, explorer: Explorer) -> None:
    assert send(client, 5, "one")["number"] == 5
    old = send(client, 3, "one")
    assert (old["number"], old["outdated"]) == (3, True) and "result" not in old
    assert "result" in send(client, 3, "another")


def test_a_running_request_stops_when_a_newer_one_comes(explorer: Explorer) -> None:
    client = TestClient(application(explorer), base_url=OWN)
    told: dict[int, Any] = {}
    with explorer.model.lock:  # both wait for the model
        threads = []
        for number in (1, 2):
            one = threading.Thread(target=lambda n=number: told.update({n: send(client, n, "p")}))  # type: ignore[misc]
            one.start()
            threads.append(one)
            threads[0].join(timeout=0.3)
    for one in threads:
        one.join()
    assert told[1]["outdated"] and "result" not in told[1] and "result" in told[2]
    assert told[1]["server"] == told[2]["server"] == client.get("/setup").json()["server"]


def test_pages_are_forgotten_after_many() -> None:
    newest = Newest()
    first = newest.note("first", 1)
    for i in range(server.PAGES):
        newest.note(str(i), 7)()
    first()
    newest.note("0", 8)
    with pytest.raises(Outdated):
        newest.note("0", 7)()


def test_only_this_machine_can_connect() -> None:
    with listen() as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            listen(port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_a_browser_is_opened_only_where_it_can_show_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, shows in ((None, False), (":0", True)):
        monkeypatch.delenv("DISPLAY", raising=False)
        if display:
            monkeypatch.setenv("DISPLAY", display)
        assert server._has_screen() == shows


def test_results_are_json_that_any_browser_reads(client: TestClient) -> None:
    told = send(client, cut=[["text", "gate"]], cut_layers=[0, 5])
    json.dumps(told, allow_nan=False)
    assert told["result"]["answer"]["before"] == "cactus" != told["result"]["answer"]["after"]


def test_work_that_ctrl_c_ends_is_not_logged_but_bugs_are() -> None:
    def logged(error: BaseException | None, text: str) -> bool:
        about = None if error is None else (type(error), error, None)
        return server._no_stopped_work(logging.LogRecord("uvicorn.error", 40, "", 1, text, None, about))

    assert not logged(asyncio.CancelledError(), "Exception in ASGI application")
    assert not logged(None, "Cancel 1 running task(s), timeout graceful shutdown exceeded")
    assert logged(KeyError("oh"), "Exception in ASGI application") and logged(None, "another")
