"""Who says which objects two descriptions name, and which of them are the same: words, or an LLM of the user's.

WI lets an LLM list the physical objects of both descriptions and match them. :class:`OfflineJudge` does it with a
closed vocabulary; :class:`LLMJudge` asks any endpoint that speaks OpenAI's chat completions, at temperature 0. The
endpoint is named by environment variables: ``GATELENS_JUDGE_URL`` (such as ``http://localhost:8000/v1``),
``GATELENS_JUDGE_MODEL``, and ``GATELENS_JUDGE_KEY`` where it wants one.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from gatelens.errors import DataError, GatelensError
from gatelens.measures.objects import ObjectScore, Vocabulary, score_table

URL, MODEL, KEY = "GATELENS_JUDGE_URL", "GATELENS_JUDGE_MODEL", "GATELENS_JUDGE_KEY"
Reply = TypeVar("Reply")
_NAMES, _NAME_PAIRS = TypeAdapter(list[str]), TypeAdapter(list[tuple[str, str | None]])
_LONGEST_WAIT = 60.0  # seconds, whatever the endpoint's Retry-After asks for

LIST_PROMPT = """List the physical objects that the following image description says are in the image.
Give each object once, as a short singular noun. Leave out colours, places, feelings and actions.
Answer with a JSON list of strings and nothing else.

Description:
{text}"""

MATCH_PROMPT = """Two descriptions of one image name these objects.
A: {a}
B: {b}
Pair every object of A with the object of B that means the same thing, where there is one.
Use each object in one pair at most, spelled exactly as above.
Answer with a JSON list of pairs [object of A, object of B] and nothing else; [] when nothing matches."""


@runtime_checkable
class Judge(Protocol):
    """Lists the objects a text names, and pairs the objects of two texts."""

    def objects(self, text: str) -> list[str]:
        """The objects, each once."""
        ...

    def match(self, a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
        """Pairs (object of a, object of b) that are the same; each object in one pair at most."""
        ...


class OfflineJudge:
    """A closed vocabulary: MS-COCO's classes by default. Objects are classes, and match by name.

    Example:
        >>> judge = gl.measures.OfflineJudge()
        >>> judge.objects("Two dogs beside a sofa.")
        ['dog', 'couch']
    """

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        self.vocabulary = Vocabulary.coco() if vocabulary is None else vocabulary

    def objects(self, text: str) -> list[str]:
        """The classes a text names, in order of first mention."""
        return self.vocabulary.objects(text)

    def match(self, a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
        """Equal names."""
        there = set(b)
        return [(x, x) for x in dict.fromkeys(a) if x in there]


def judge_score(judge: Judge, reference: str, candidate: str) -> ObjectScore:
    """How the candidate description names the objects of the reference description."""
    a, b = judge.objects(reference), judge.objects(candidate)
    return ObjectScore(len(a), len(b), len(judge.match(a, b)) if a and b else 0)


def judge_table(judge: Judge, references: Sequence[str], candidates: Sequence[str]) -> pd.DataFrame:
    """:func:`judge_score` of every pair: ``n_reference, n_candidate, n_common, precision, recall, f1``.

    Args:
        judge: extracts and matches the objects of a text.
        references: the original descriptions.
        candidates: one description for each reference.

    Example:
        >>> judge = gl.measures.OfflineJudge()
        >>> table = gl.measures.judge_table(judge, ["A dog and a cat."], ["A dog."])
        >>> table[["n_common", "precision", "recall"]].values.tolist()
        [[1.0, 1.0, 0.5]]
    """
    if len(references) != len(candidates):
        raise DataError(f"judge: {len(references)} original descriptions but {len(candidates)} others")
    return score_table(judge_score(judge, r, c) for r, c in zip(references, candidates, strict=True))


class LLMJudge:
    """An LLM served by an OpenAI-compatible endpoint; DataError where it fails or its reply cannot be read.

    Args:
        url: the endpoint, such as ``http://localhost:8000/v1`` (``/chat/completions`` is added if missing).
        model: the model's name there.
        log: JSONL file of prompts and replies. What it holds is not asked again, but for a reply that could not be
            read. The key is never written.
        key: sent as a bearer token; empty for endpoints without.
        timeout: seconds to wait for a reply.
        retries: further attempts after a time-out, a lost connection, status 408, 429 or 5xx, or an unreadable reply.
        wait: seconds before the first further attempt, doubled each time; Retry-After is heeded up to a minute.

    Example:
        >>> judge = gl.measures.LLMJudge("http://localhost:8000/v1", model="my-model", log=folder / "judge.jsonl")
        >>> judge.url  # nothing is asked yet
        'http://localhost:8000/v1/chat/completions'
    """

    def __init__(
        self,
        url: str,
        model: str,
        log: str | Path,
        key: str = "",
        timeout: float = 60.0,
        retries: int = 3,
        wait: float = 1.0,
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a bracket or a port that cannot be read
            fits = False
        if not fits:
            raise DataError(f"judge: {URL} must be an http(s) address such as http://localhost:8000/v1")
        key = key.strip()
        if not (key.isascii() and key.isprintable()):
            raise DataError(f"judge: {KEY} holds characters that no header can carry; set it again")
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path += "/chat/completions"
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        self.model, self.key, self.log = model, key, Path(log)
        self.timeout, self.retries, self.wait = timeout, retries, wait
        self._host = str(parts.hostname)  # all that errors say of the address: the rest may hold a secret
        self._replies = _read_log(self.log)

    @classmethod
    def from_environment(
        cls, log: str | Path, environment: Mapping[str, str] | None = None, **rest: Any
    ) -> LLMJudge:
        """The judge that ``GATELENS_JUDGE_URL``, ``_MODEL`` and ``_KEY`` describe; ``rest`` as in the class.

        Raises:
            DataError: the address or the model is not set, or the log cannot be read.
        """
        variables = os.environ if environment is None else environment
        for name in (URL, MODEL):
            if not variables.get(name):
                raise DataError(f"judge: environment variable {name} is not set; set it, or use OfflineJudge")
        return cls(variables[URL], variables[MODEL], log, variables.get(KEY, ""), **rest)

    def objects(self, text: str) -> list[str]:
        """What the LLM lists; an empty text names nothing and is not sent."""
        if not text.strip():
            return []
        return self._ask("objects", LIST_PROMPT.format(text=text), _strings)

    def match(self, a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
        """What the LLM pairs; nothing is sent when one list is empty."""
        if not a or not b:
            return []
        lists = {"a": json.dumps(list(a), ensure_ascii=False), "b": json.dumps(list(b), ensure_ascii=False)}
        return self._ask("match", MATCH_PROMPT.format(**lists), lambda reply: _pairs(reply, a, b))

    def _ask(self, kind: str, prompt: str, read: Callable[[str], Reply]) -> Reply:
        """The reply to a prompt, read: from the log when it is there, else from the endpoint."""
        id_ = hashlib.sha256(json.dumps([self.model, prompt]).encode()).hexdigest()
        if id_ in self._replies:
            try:
                return read(self._replies[id_])
            except _Unreadable:
                pass  # kept by an earlier run that failed on it: ask again
        problem = ""
        for attempt in range(self.retries + 1):
            pause = self.wait * 2**attempt
            try:
                reply = self._post(prompt)
            except _Again as error:
                problem, pause = str(error), max(pause, error.after)
            else:
                self._keep({"id": id_, "kind": kind, "model": self.model, "prompt": prompt, "reply": reply})
                try:
                    answer = read(reply)
                except _Unreadable as error:
                    problem = f"{error}: {_short(reply)}; it is kept in {self.log}, fix it there to continue"
                else:
                    self._replies[id_] = reply
                    return answer
            if attempt < self.retries:
                time.sleep(min(pause, _LONGEST_WAIT))
        raise DataError(f"judge {self.model} at {self._host}: {problem} ({self.retries + 1} attempts)")

    def _post(self, prompt: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        if self.key:  # a redirect to another host must not carry the key along
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                raw = response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = self._hide(_short(error.read(2000).decode("utf-8", "replace")))
            message = f"HTTP {error.code} {error.reason}: {said or 'no message'}"
            if error.code in (408, 429) or error.code >= 500:
                raise _Again(message, _seconds(error.headers.get("Retry-After"))) from None
            hint = f"check {URL}, {MODEL} and {KEY}"
            raise DataError(f"judge {self.model} at {self._host}: {message}; {hint}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise _Again(f"no reply within {self.timeout:g} seconds") from None
            raise _Again(self._hide(_short(f"cannot be reached ({reason})"))) from None
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            said = self._hide(_short(raw.decode("utf-8", "replace")))
            raise _Again(f"the reply is not a chat completion: {said or 'empty'}")
        return content

    def _hide(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    def _keep(self, record: dict[str, str]) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a+b") as f:
                f.seek(0, os.SEEK_END)
                torn = False
                if f.tell():
                    f.seek(-1, os.SEEK_END)
                    torn = f.read(1) != b"\n"  # a run that was killed while writing
                f.write(b"\n" * torn + json.dumps(record, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            what = f"{self.log} cannot be written ({error.strerror})"
            raise DataError(f"judge: {what}; give another log") from None


def judge_from_environment(log: str | Path, vocabulary: Vocabulary | None = None) -> Judge:
    """The user's LLM when ``GATELENS_JUDGE_URL`` is set, else the offline judge with this vocabulary."""
    return LLMJudge.from_environment(log) if os.environ.get(URL) else OfflineJudge(vocabulary)


class _Again(GatelensError):
    """A failure that another attempt may get past. ``after``: seconds the endpoint asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _Unreadable(GatelensError):
    """A reply that is not what was asked for."""


def _read_log(log: Path) -> dict[str, str]:
    """Replies by id, the last one kept. Lines that a killed run left unfinished are passed over."""
    if not log.exists():
        return {}
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"judge: {log} cannot be read ({error.strerror}); give another log") from None
    out: dict[str, str] = {}
    for line in lines:
        try:
            record = json.loads(line)
            out[str(record["id"])] = str(record["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return out


def _list_in(reply: str) -> list[Any]:
    """The last JSON list of a reply, which may be in a code fence or follow reasoning."""
    decoder, last, start = json.JSONDecoder(), None, reply.find("[")
    while start >= 0:
        try:
            last, end = decoder.raw_decode(reply, start)
        except ValueError:
            end = start + 1
        start = reply.find("[", end)
    if last is None:
        raise _Unreadable("the reply holds no JSON list")
    return last


def _strings(reply: str) -> list[str]:
    try:
        names = _NAMES.validate_python(_list_in(reply))
    except ValidationError:
        raise _Unreadable("the reply is not a list of strings") from None
    return list(dict.fromkeys(x.strip().lower() for x in names if x.strip()))


def _pairs(reply: str, a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    ours, theirs = ({x.lower(): x for x in reversed(side)} for side in (a, b))
    try:
        pairs = _NAME_PAIRS.validate_python(_list_in(reply))
        # some models pair what has no partner with null
        matches = [(ours[x.lower()], theirs[y.lower()]) for x, y in pairs if y is not None]
    except (ValidationError, KeyError):
        raise _Unreadable("the reply is not a list of pairs of the objects given") from None
    once: list[tuple[str, str]] = []
    for x, y in matches:
        if all(x != old and y != other for old, other in once):  # a second pair of an object is left out
            once.append((x, y))
    return once


def _short(text: str, n: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= n else text[: n - 1] + "…"


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value)) if value else 0.0
    except ValueError:
        return 0.0
