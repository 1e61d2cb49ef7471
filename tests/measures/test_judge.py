"""The judges; the one that asks an LLM against a stand-in server on this machine only."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gatelens.errors import DataError
from gatelens.measures.judge import (
    KEY,
    MODEL,
    URL,
    Judge,
    LLMJudge,
    OfflineJudge,
    judge_from_environment,
    judge_score,
    judge_table,
)
from gatelens.measures.objects import ObjectScore, Vocabulary

SECRET = "sk-secret-42"
Answer = Callable[[dict[str, Any]], tuple[int, str, dict[str, str]]]


def says(content: str) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}), {}


class Stand:
    """A chat endpoint that answers what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Any] = []
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand.requests.append({"path": self.path, **body})
                stand.headers.append(dict(self.headers))
                answer = stand.answers.pop(0) if len(stand.answers) > 1 else stand.answers[0]
                status, text, headers = answer(body) if callable(answer) else answer
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # the client gave up waiting, as it should

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Stand()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def make(stand: Stand, log: Path, **rest: Any) -> LLMJudge:
    return LLMJudge(stand.url, "judge-1", log, SECRET, **{"wait": 0.0, "retries": 2, **rest})


def test_offline_judge() -> None:
    judge: Judge = OfflineJudge(Vocabulary(["fox", "bus", "pig"]))
    assert isinstance(judge, Judge)
    assert judge.match(["fox", "bus", "bus"], ["bus", "pig"]) == [("bus", "bus")]
    assert judge_score(judge, "a fox and a bus", "two buses and a pig") == ObjectScore(2, 2, 1)
    assert OfflineJudge().objects("a puppy") == ["dog"]
    table = judge_table(judge, ["a fox", "a pig"], ["a fox", ""])
    assert table.f1.tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="1 original descriptions but 0"):
        judge_table(judge, ["a"], [])


def test_what_is_sent_and_kept(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [says('["Dog", "tree", "dog"]'), says('```json\n[["dog", "puppy"]]\n```')]
    judge = make(stand, tmp_path / "deep" / "judge.jsonl")
    assert isinstance(judge, Judge)
    assert judge.objects("A dog under a tree — nice.") == ["dog", "tree"]
    assert judge.match(["dog", "tree"], ["puppy"]) == [("dog", "puppy")]
    first = stand.requests[0]
    assert (
        first["path"] == "/v1/chat/completions" and first["model"] == "judge-1" and first["temperature"] == 0
    )
    assert "A dog under a tree — nice." in first["messages"][0]["content"]
    assert stand.headers[0]["Authorization"] == f"Bearer {SECRET}"
    kept = [json.loads(line) for line in judge.log.read_text(encoding="utf-8").splitlines()]
    assert [k["kind"] for k in kept] == ["objects", "match"]
    assert (
        kept[0]["prompt"] == first["messages"][0]["content"] and kept[0]["reply"] == '["Dog", "tree", "dog"]'
    )
    assert SECRET not in judge.log.read_text(encoding="utf-8")


def test_goes_on_from_the_log_even_a_torn_one(stand: Stand, tmp_path: Path) -> None:
    log = tmp_path / "judge.jsonl"
    stand.answers = [says('["dog"]')]
    assert make(stand, log).objects("one") == ["dog"]
    with log.open("a", encoding="utf-8") as f:
        f.write('{"id": "half')  # killed while writing
    stand.answers = [says('["cat"]')]
    again = make(stand, log)
    assert again.objects("one") == ["dog"] and len(stand.requests) == 1
    assert again.objects("two") == ["cat"] and len(stand.requests) == 2
    third = make(stand, log)
    assert (third.objects("one"), third.objects("two"), len(stand.requests)) == (["dog"], ["cat"], 2)
    other = LLMJudge(stand.url, "judge-2", log)
    assert other.objects("one") == ["cat"] and len(stand.requests) == 3, (
        "another model's replies do not count"
    )


def test_nothing_is_asked_about_nothing(stand: Stand, tmp_path: Path) -> None:
    judge = make(stand, tmp_path / "log")
    assert judge.objects(" \n") == [] and judge.match([], ["dog"]) == [] and judge.match(["dog"], []) == []
    stand.answers = [says("[]")]
    assert judge_score(judge, "mist", "") == ObjectScore(0, 0, 0)
    assert len(stand.requests) == 1


def test_matches_are_one_to_one(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [says('[["man", "person"], ["woman", "person"], ["man", "tree"]]')]
    assert make(stand, tmp_path / "log").match(["man", "woman"], ["person", "tree"]) == [("man", "person")]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says("I cannot see any image."), "no JSON list: I cannot see any image."),
        (says('["dog", 3]'), "not a list of strings"),
        (says("[unfinished"), "no JSON list"),
        ((200, "<html>hello</html>", {}), "not a chat completion: <html>hello</html>"),
        ((200, '{"choices": []}', {}), "not a chat completion"),
        ((200, '{"choices": [{"message": {"content": null}}]}', {}), "not a chat completion"),
        ((503, "busy", {}), "HTTP 503 Service Unavailable: busy"),
    ],
)
def test_failures_end_in_one_line(stand: Stand, tmp_path: Path, answer: Any, message: str) -> None:
    stand.answers = [answer]
    with pytest.raises(DataError, match=message) as error:
        make(stand, tmp_path / "log").objects("a dog")
    said = str(error.value)
    assert "\n" not in said and "judge-1 at 127.0.0.1" in said and SECRET not in said and "3 attempts" in said
    assert len(stand.requests) == 3


def test_a_refused_key_is_not_tried_again(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [(401, f"bad key {SECRET}\nsorry", {})]
    with pytest.raises(DataError, match=r"HTTP 401 Unauthorized: bad key \*\*\* sorry; check") as error:
        make(stand, tmp_path / "log").objects("a dog")
    assert len(stand.requests) == 1 and "\n" not in str(error.value)


def test_mends_itself(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [(429, "slow down", {"Retry-After": "0.2"}), says("hm"), says('["dog"]')]
    judge, start = make(stand, tmp_path / "log"), time.monotonic()
    assert judge.objects("a dog") == ["dog"] and len(stand.requests) == 3
    assert time.monotonic() - start > 0.2, "Retry-After is heeded"
    assert judge.objects("a dog") == ["dog"] and len(stand.requests) == 3
    assert make(stand, tmp_path / "log").objects("a dog") == ["dog"], "the last reply kept is the good one"
    assert len(stand.requests) == 3


def test_thoughts_before_the_answer_and_objects_without_a_partner(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [
        says('Perhaps ["dog"] or [1]? No.\n["Cat", "dog"]'),
        says('[["CAT", "kitten"], ["dog", null]]'),
    ]
    judge = make(stand, tmp_path / "log")
    assert judge.objects("x") == ["cat", "dog"]
    assert judge.match(["cat", "dog"], ["Kitten"]) == [("cat", "Kitten")]


def test_a_mended_log_is_believed(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [says("no idea")]
    judge = make(stand, tmp_path / "log", retries=0)
    with pytest.raises(DataError, match="fix it there to continue"):
        judge.objects("a dog")
    judge.log.write_text(judge.log.read_text().replace("no idea", r"[\"dog\"]"))
    assert make(stand, tmp_path / "log").objects("a dog") == ["dog"] and len(stand.requests) == 1


def test_a_pair_of_unknown_objects_is_refused(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [says('[["dog", "unicorn"]]')]
    with pytest.raises(DataError, match="not a list of pairs of the objects given"):
        make(stand, tmp_path / "log", retries=0).match(["dog"], ["puppy"])


def test_time_out_and_lost_connection(stand: Stand, tmp_path: Path) -> None:
    stand.answers = [lambda body: time.sleep(0.6) or says("[]")]
    with pytest.raises(DataError, match=r"no reply within 0.1 seconds \(2 attempts\)"):
        make(stand, tmp_path / "log", timeout=0.1, retries=1).objects("a dog")
    closed = LLMJudge("http://127.0.0.1:9", "m", tmp_path / "other", retries=0)
    with pytest.raises(DataError, match=r"127\.0\.0\.1: cannot be reached"):
        closed.objects("a dog")


def test_a_redirect_does_not_carry_the_key_along(stand: Stand, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    stand.answers = [(302, "", {"Location": f"http://127.0.0.1:{other.server_port}/x"})]
    with pytest.raises(DataError):
        make(stand, tmp_path / "log", retries=0).objects("a dog")
    other.shutdown()
    other.server_close()
    assert seen and "Authorization" not in seen[0]


def test_environment(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL, MODEL, KEY):
        monkeypatch.delenv(name, raising=False)
    vocabulary = Vocabulary(["fox"])
    offline = judge_from_environment(tmp_path / "log", vocabulary)
    assert isinstance(offline, OfflineJudge) and offline.vocabulary is vocabulary
    with pytest.raises(DataError, match=f"{URL} is not set"):
        LLMJudge.from_environment(tmp_path / "log")
    monkeypatch.setenv(URL, stand.url + "/chat/completions/")
    with pytest.raises(DataError, match=f"{MODEL} is not set"):
        judge_from_environment(tmp_path / "log")
    monkeypatch.setenv(MODEL, "judge-1")
    judge = judge_from_environment(tmp_path / "log")
    assert isinstance(judge, LLMJudge)
    stand.answers = [says('["fox"]')]
    assert judge.objects("x") == ["fox"]
    assert stand.requests[0]["path"] == "/v1/chat/completions" and "Authorization" not in stand.headers[0]
    for url in ("ftp://somewhere", "localhost:8000", "http://[::1", "http://host:port/v1"):
        with pytest.raises(DataError, match="must be an http"):
            LLMJudge(url, "m", tmp_path / "log")
    with pytest.raises(DataError, match=f"{KEY} holds characters") as error:
        LLMJudge(stand.url, "m", tmp_path / "log", key="sk-\nsecret")
    assert "secret" not in str(error.value)
