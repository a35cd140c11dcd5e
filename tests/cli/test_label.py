"""`heed label` as a real process: the first start, later ones, and what is in its way."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from heed.cli.label import trusted_names
from heed.cli.main import main
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.store import FeedbackStore

PAIRS = [{"prompt": f"Why {i}?", "chosen": "a", "rejected": "b"} for i in range(3)]


@dataclass
class App:
    process: subprocess.Popen[str]
    told: list[str]
    """What it has printed until it served."""
    link: str


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[App]:
    """The command in a process of its own, until it is interrupted."""
    command = [sys.executable, "-m", "heed.cli.main", "label", "--port", "0", "--no-browser", *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told: list[str] = []
    try:
        for line in process.stdout:
            told.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                break
        found = [word for line in told for word in line.split() if "://" in word]
        assert found, (told, process.stderr and process.stderr.read())
        yield App(process, told, found[-1])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()  # nothing, where it has ended


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.v2.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return str(path)


def test_the_first_start_takes_the_data_and_prints_a_link_for_the_owner(tmp_path: Path, pairs: str) -> None:
    with serving(tmp_path, "--data", pairs) as app:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/join/\S+", app.link)
        with urllib.request.urlopen(app.link, timeout=60) as answer:
            assert answer.status == 200
            assert "server" not in {name.lower() for name in answer.headers}
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(app.link[:-3], timeout=60)
    out, err = app.process.communicate()
    assert app.process.returncode == 0
    assert out.strip() == "stopped; everything is in sqlite:///feedback.db"
    assert err == ""
    assert app.told[0] == "pairs: 3 new items of prompt + chosen + rejected (text)"
    database = Database(tmp_path / "feedback.db")
    (project,) = Projects(database).all()
    assert (project.name, project.settings.compare, project.settings.num_responses) == ("pairs", "pairwise", 2)


def test_later_starts_print_where_to_sign_in_and_take_data_once(tmp_path: Path, pairs: str) -> None:
    location = tmp_path / "kept" / "team.db"
    accounts = Accounts(Database(location))
    accounts.accept(accounts.invite("owner", None), "Olga", "a long enough password")
    Projects(accounts.database).create("Kindness", ProjectSettings(), None)
    for told in ("Kindness: 3 new items of", "Kindness: 0 new items of prompt + chosen + rejected (text), 3 known"):
        with serving(tmp_path, "--database", str(location), "--data", pairs, "--project", "Kindness") as app:
            assert app.link.endswith("/sign-in")
            assert app.told[0].startswith(told)


def test_behind_a_proxy_the_link_is_the_proxys_and_cookies_are_secure(tmp_path: Path, pairs: str) -> None:
    with serving(tmp_path, "--data", pairs, "--https", "--host", "0.0.0.0") as app:
        assert app.link.startswith("https://YOUR-HOST/join/")
        assert not any("warning" in line for line in app.told)


def sign_in(app: App, visitor: str, name: str) -> int:
    """The status of a sign-in with a wrong password that comes from a visitor, as a proxy on this machine puts it."""
    form = urllib.parse.urlencode({"name": name, "password": "no one's password"}).encode()
    request = urllib.request.Request(urllib.parse.urljoin(app.link, "/sign-in"), form, {"X-Forwarded-For": visitor})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def fail_often(app: App, visitor: Callable[[int], str]) -> set[int]:
    """What as many failed sign-ins are answered as an address may have, each with a name of its own."""
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda i: sign_in(app, visitor(i), f"guess {i}"), range(50)))


def test_behind_a_trusted_proxy_failures_count_for_the_visitor_alone(tmp_path: Path, pairs: str) -> None:
    with serving(tmp_path, "--data", pairs, "--trusted-proxy", "127.0.0.1") as app:
        assert fail_often(app, lambda i: "203.0.113.1") == {403}
        assert sign_in(app, "203.0.113.1", "Ann") == 429
        assert sign_in(app, "198.51.100.7, 203.0.113.1", "Ann") == 429, "what stands before the proxy's own entry is the visitor's word"
        assert sign_in(app, "203.0.113.2", "Ann") == 403
        told = [sign_in(app, f"203.0.113.{10 + i}", "Ann") for i in range(10)]
        assert told == [403] * 9 + [429], "a name has its own limit, wherever it is tried from"


def test_without_a_trusted_proxy_what_is_said_of_forwarding_is_ignored(tmp_path: Path, pairs: str) -> None:
    with serving(tmp_path, "--data", pairs) as app:
        assert fail_often(app, lambda i: f"203.0.113.{i}") == {403}
        assert sign_in(app, "203.0.113.99", "Ann") == 429


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("10.0.0.1", "203.0.113.1"),
        ("::ffff:10.0.0.1", "203.0.113.1"),  # as a socket for both kinds of address calls it
        ("10.0.0.2", "10.0.0.2"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_only_the_trusted_proxy_is_believed(peer: str, client: str) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    scope: Any = {
        "type": "http",
        "client": (peer, 1),
        "headers": [(b"x-forwarded-for", b"198.51.100.7"), (b"x-forwarded-for", b"203.0.113.1")],
    }
    middleware: Any = ProxyHeadersMiddleware(app, trusted_names("10.0.0.1"))
    asyncio.run(middleware(scope, None, None))
    assert seen == [client]


def test_an_open_address_without_https_is_warned_of(tmp_path: Path, pairs: str) -> None:
    with serving(tmp_path, "--data", pairs, "--host", "0.0.0.0") as app:
        assert app.link.startswith("http://127.0.0.1:")
        assert sum("unencrypted" in line for line in app.told) == 1


def test_the_first_start_without_data_serves_the_built_in_world(tmp_path: Path) -> None:
    with serving(tmp_path) as app:
        assert "/join/" in app.link
    database = Database(tmp_path / "feedback.db")
    (project,) = Projects(database).all()
    assert project.name == "testbed"
    assert Projects(database).progress()[project.id].items > 190
    assert len(FeedbackStore(database).responses(FeedbackStore(database).prompts()[0])) > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--project", "x"], "project is 'x'; expected --data FILE or --policy FOLDER beside it"),
        (["--policy", "testbed"], "policy is 'testbed'; expected --project NAME or --data FILE beside it"),
        (["--policy", "testbed", "--project", "x"], "there is no project 'x'"),
        (["--policy", ".", "--data", "absent.jsonl"], ".: neither config.json nor recipe.yaml is here"),
        (["--port", "70000"], "port is 70000; expected 0 to 65535"),
        (["--host", "no such host"], "host is 'no such host'"),
        (["--host", "203.0.113.7"], "cannot serve 203.0.113.7:0"),
        (["--trusted-proxy", "proxy.example"], "trusted_proxy is 'proxy.example'; expected the IP address of one proxy"),
        (["--trusted-proxy", "*"], "trusted_proxy is '*'; expected the IP address of one proxy"),
        (["--trusted-proxy", "10.0.0.0/8"], "trusted_proxy is '10.0.0.0/8'; expected the IP address of one proxy"),
        (["--data", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["--data", "bad.jsonl"], "bad.jsonl:1: "),
        (["--data", "alone.jsonl"], "alone.jsonl: rows of prompt + response (text), one response to each prompt; expected 2 responses or"),
        (["--database", "nosuch://x"], "nosuch://x is no database"),
    ],
)
def test_faults_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": ')
    (tmp_path / "alone.jsonl").write_text('{"prompt": "x", "response": "y"}\n')
    given = words if "--port" in words else ["--port", "0", *words]
    assert main(["label", "--no-browser", *given]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_port_in_use_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["label", "--no-browser", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"heed: port {port} is in use; stop what uses it, or choose another: --port {port + 1}\n"
    assert list(tmp_path.iterdir()) == []
