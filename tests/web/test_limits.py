"""What strangers may send, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from heed.web import limits
from heed.web.limits import Attempts, BodyLimit

MOST = 1000


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


class Text(BaseModel):
    text: str


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.add_middleware(BodyLimit, max_bytes=MOST)

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.post("/form")
    async def form(request: Request) -> int:
        return len(str((await request.form())["text"]))

    @app.post("/json")
    def json(body: Text) -> int:
        return len(body.text)

    return TestClient(app)


def chunks(size: int, of: int = 100) -> Iterator[bytes]:
    """A body that does not say how long it will be."""
    for start in range(0, size, of):
        yield b"x" * min(of, size - start)


def test_a_body_of_just_the_limit_is_read(client: TestClient) -> None:
    assert client.post("/raw", content=b"x" * MOST).json() == MOST
    assert client.post("/raw", content=chunks(MOST)).json() == MOST


@pytest.mark.parametrize("body", [b"x" * (MOST + 1), chunks(MOST + 1), chunks(1_000_000, of=MOST - 1)], ids=["claimed", "chunked", "long"])
def test_a_larger_one_is_refused_whether_or_not_it_says_so(client: TestClient, body: bytes | Iterator[bytes]) -> None:
    answer = client.post("/raw", content=body)
    assert answer.status_code == 413
    assert "larger than" in answer.text
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("headers", "reads"), [([], 11), ([(b"content-length", b"1001")], 0)], ids=["chunked", "claimed"])
def test_no_more_of_it_is_read_than_needed(headers: list[tuple[bytes, bytes]], reads: int) -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async def reader(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await receive()

    with pytest.raises(HTTPException, match="larger than"):
        asyncio.run(BodyLimit(reader, MOST)({"type": "http", "headers": headers}, receive, send))
    assert read == reads


@pytest.mark.parametrize("claimed", ["-1", "1e3", "9" * 30, "9" * 5000, ""])
def test_a_length_that_is_none_is_refused(client: TestClient, claimed: str) -> None:
    assert client.post("/raw", content=b"x", headers={"content-length": claimed}).status_code == 413


def test_a_length_that_is_a_lie_does_not_help(client: TestClient) -> None:
    assert client.post("/raw", content=b"x" * (MOST + 1), headers={"content-length": "1"}).status_code == 413


def test_forms_and_json_are_refused_like_any_body(client: TestClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/form", content=b"text=" + b"x" * 500, headers=form).json() == 500
    assert client.post("/form", content=iter([b"text=", b"x" * MOST]), headers=form).status_code == 413
    json = {"content-type": "application/json"}
    assert client.post("/json", content=b'{"text": "abc"}', headers=json).json() == 3
    assert client.post("/json", content=iter([b'{"text": "', b"x" * MOST, b'"}']), headers=json).status_code == 413


def test_a_key_may_fail_a_few_times_in_each_window(clock: Clock) -> None:
    attempts = Attempts(most=3, window=60)
    for _ in range(3):
        assert attempts.begin("ann") == 0
        clock.now += 10
    assert attempts.begin("ann") == 30  # the first failure was 30 seconds ago
    assert attempts.begin("ben") == 0
    clock.now += 30
    assert attempts.begin("ann") == 0
    assert attempts.begin("ann") == 10


def test_waiting_is_not_prolonged_by_trying_on(clock: Clock) -> None:
    attempts = Attempts(most=1, window=60)
    assert attempts.begin("ann") == 0
    for _ in range(5):
        clock.now += 10
        attempts.begin("ann")
    assert attempts.begin("ann") == 10


def test_successes_do_not_count(clock: Clock) -> None:
    attempts = Attempts(most=2)
    attempts.begin("ann")
    for _ in range(10):
        assert attempts.begin("ann") == 0
        attempts.succeeded("ann")
    assert attempts.begin("ann") == 0
    assert attempts.begin("ann") > 0


def test_of_many_tries_at_once_only_a_few_pass() -> None:
    attempts = Attempts(most=5)
    with ThreadPoolExecutor(8) as pool:
        assert sum(wait == 0 for wait in pool.map(attempts.begin, ["ann"] * 200)) == 5


def test_a_flood_of_names_is_forgotten_when_its_time_has_passed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_KEYS", 100)
    attempts = Attempts(most=1, window=60)
    for number in range(150):
        attempts.begin(f"name {number}")
    assert attempts.begin("name 0") > 0
    clock.now += 61
    attempts.begin("ann")
    assert len(attempts._failures) == 1
    assert attempts.begin("ann") > 0
