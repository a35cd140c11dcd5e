"""What holds for every page: headers, who may come in, where forms come from, how errors look, and colours that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from itertools import product

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from heed.feedback import accounts as accounts_module
from heed.feedback.accounts import SESSION_DAYS, Accounts, Role
from heed.feedback.database import Database
from heed.feedback.schema import utc_now
from heed.web import api
from heed.web.app import HEADERS, PARTS, create_app
from heed.web.site import COOKIE, HERE
from tests.web.conftest import Person, text_of

Make = Callable[[str, Role], Person]


@pytest.fixture
def stranger(database: Database) -> TestClient:
    return TestClient(create_app(database), raise_server_exceptions=False, follow_redirects=False)


def pages(method: str) -> set[str]:
    """Paths of all pages that take this method, with a number for each parameter, but those that are open to strangers."""
    found = [route for part in PARTS if part is not api for route in part.router.routes if isinstance(route, APIRoute)]
    return {re.sub(r"{[^}]*}", "1", route.path) for route in found if method in (route.methods or ())} - {"/sign-in", "/join/1"}


def check_headers(headers: object) -> None:
    assert {name: headers.get(name) for name in HEADERS} == HEADERS  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/sign-in", 200),
        ("/", 303),
        ("/nowhere", 404),
        ("/join/forged", 404),
        ("/static/app.css", 200),
        ("/static/nothing.css", 404),
        ("/static/..%2fapp.py", 404),
        ("/api/v1/nowhere", 404),
        ("/api/openapi.json", 200),
    ],
)
def test_every_answer_has_the_security_headers(stranger: TestClient, path: str, status: int) -> None:
    answer = stranger.get(path)
    assert answer.status_code == status
    check_headers(answer.headers)
    assert answer.headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")


def test_so_have_refusals_and_mistakes(stranger: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = stranger.post("/sign-in", data={"name": "Ann"}, headers={"content-length": str(2**40)})
    assert refused.status_code == 413
    check_headers(refused.headers)

    def broken(self: Accounts, token: str) -> None:
        raise RuntimeError("the secret of the database")

    monkeypatch.setattr(Accounts, "invited_role", broken)
    mistake = stranger.get("/join/any")
    assert mistake.status_code == 500
    assert "secret" not in mistake.text
    check_headers(mistake.headers)


def test_nothing_but_the_apps_own_files_may_run_or_load() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("base-uri") == "'none'"
    assert set(policy.values()) == {"'self'"}


def test_browsers_are_told_to_stay_with_https_where_it_is_served(database: Database) -> None:
    for secure in (False, True):
        answer = TestClient(create_app(database, secure_cookies=secure)).get("/sign-in")
        assert ("strict-transport-security" in answer.headers) == secure


def test_strangers_are_sent_to_sign_in_from_every_page(stranger: TestClient) -> None:
    assert {"/", "/people", "/account", "/account/export", "/audit"} <= pages("GET")
    for path in pages("GET"):
        answer = stranger.get(path)
        assert (path, answer.status_code, answer.headers.get("location")) == (path, 303, "/sign-in")


def test_no_form_is_taken_from_strangers(stranger: TestClient) -> None:
    assert {"/people/invite", "/account/delete", "/sign-out"} <= pages("POST")
    for path in pages("POST"):
        assert (path, stranger.post(path, data={"csrf": ""}).headers.get("location")) == (path, "/sign-in")


@pytest.mark.parametrize("token", ["none", "wrong", "other"])
def test_no_form_is_taken_without_the_token_of_its_session(person: Make, token: str) -> None:
    owner, other = person("Olivia", "owner"), person("Ben", "owner")
    fields = {"none": {}, "wrong": {"csrf": "wrong \u00e9"}, "other": {"csrf": other.csrf}}[token]
    for path in pages("POST"):
        answer = owner.post(path, data=fields, follow_redirects=False)
        assert (path, answer.status_code) == (path, 403)
        assert "does not come from your session" in answer.text
    assert owner.get("/account").status_code == 200  # neither signed out nor deleted


def test_a_token_may_also_come_in_a_header(person: Make) -> None:
    ann = person("Ann", "annotator")
    assert ann.post("/sign-out", headers={"x-csrf-token": ann.csrf}, follow_redirects=False).headers["location"] == "/sign-in"


def test_a_file_or_bytes_in_place_of_the_token_are_refused(person: Make) -> None:
    ann = person("Ann", "annotator")
    assert ann.post("/sign-out", files={"csrf": ("name", ann.csrf.encode())}).status_code == 403
    body = b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n+2AA-\r\n--x--\r\n'  # half a character in UTF-7
    answer = ann.post("/sign-out", content=body, headers={"content-type": "multipart/form-data; boundary=x; charset=utf-7"})
    assert answer.status_code == 403


@pytest.mark.parametrize("value", ["a\0b", "\0"])
def test_what_is_no_text_is_refused_in_every_field(person: Make, value: str) -> None:
    answer = person("Ann", "lead").submit("/account/tokens", {"label": value})
    assert answer.status_code == 422
    assert "bytes that are no text" in answer.text


@pytest.mark.parametrize(
    ("role", "allowed"), [("owner", {"/people", "/audit"}), ("lead", {"/people"}), ("annotator", set()), ("viewer", set())]
)
def test_pages_for_leads_and_owners_are_for_them_alone(person: Make, role: Role, allowed: set[str]) -> None:
    someone = person("Sam", role)
    for path in ("/people", "/audit"):
        answer = someone.get(path)
        assert answer.status_code == (200 if path in allowed else 403)
        assert f'href="{path}"' in answer.text if path in allowed else f"the role {role} may not do this" in answer.text.lower()
    assert someone.get("/account").status_code == 200


@pytest.mark.parametrize("role", ["annotator", "viewer"])
def test_whoever_is_no_lead_can_change_nothing_about_people(person: Make, database: Database, role: Role) -> None:
    owner, someone = person("Olivia", "owner"), person("Sam", role)
    account = owner.account.id
    forms: dict[str, dict[str, object]] = {
        "/people/invite": {"role": "annotator"},
        f"/people/{account}/role": {"role": "viewer"},
        f"/people/{account}/limits": {"daily_cap": "1"},
        f"/people/{account}/delete": {"name": "Olivia"},
    }
    for path, fields in forms.items():
        assert someone.submit(path, fields).status_code == 403
    assert Accounts(database).get(account) == owner.account


def test_a_session_that_has_expired_is_none(person: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = person("Ann", "annotator")
    monkeypatch.setattr(accounts_module, "utc_now", lambda: utc_now() + timedelta(days=SESSION_DAYS, seconds=1))
    assert ann.get("/account", follow_redirects=False).headers["location"] == "/sign-in"


def test_a_part_of_a_page_that_is_asked_for_after_the_session_has_ended_sends_the_whole_page_to_sign_in(stranger: TestClient) -> None:
    answer = stranger.get("/account", headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/sign-in")


@pytest.mark.parametrize("cookie", ["", "forged", "' OR 1=1 --", "x" * 5000])
def test_a_forged_cookie_is_none(stranger: TestClient, person: Make, cookie: str) -> None:
    person("Ann", "owner")
    assert stranger.get("/people", headers={"cookie": f"{COOKIE}={cookie}"}).headers["location"] == "/sign-in"


@pytest.mark.parametrize("path", ["//evil.example/people", "/\\evil.example", "/sign-in/?next=//evil.example", "//evil.example/sign-in/"])
def test_no_address_leads_elsewhere(stranger: TestClient, path: str) -> None:
    location = stranger.get(f"http://testserver{path}").headers.get("location", "/")
    assert location.startswith(("http://testserver/", "/"))
    assert not location.startswith(("//", "/\\"))


@pytest.mark.parametrize("number", ["-1", "0", "99", str(2**31), "9" * 40, "1e3", "x", "1;DROP TABLE accounts"])
def test_a_number_that_names_nothing_is_told(person: Make, number: str) -> None:
    owner = person("Olivia", "owner")
    answer = owner.submit(f"/people/{number}/role", {"role": "viewer"})
    assert answer.status_code in (404, 422)
    assert owner.get("/audit", params={"before": number}).status_code in (200, 422)


def test_errors_are_pages_to_people_and_json_to_programs(stranger: TestClient) -> None:
    page, answer = stranger.get("/<script>alert(1)</script>"), stranger.get("/api/v1/nowhere")
    assert page.status_code == answer.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    assert "Not Found" in text_of(page.text)
    assert answer.json() == {"error": "Not Found"}


def test_a_form_that_is_broken_or_has_too_many_fields_is_told(person: Make) -> None:
    ann = person("Ann", "annotator")
    for content in (b"no boundary at all", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"):
        assert ann.post("/sign-out", content=content, headers={"content-type": "multipart/form-data; boundary=x"}).status_code in (400, 403)
    many = "&".join(f"f{i}=1" for i in range(2000)).encode()
    assert ann.post("/sign-out", content=many, headers={"content-type": "application/x-www-form-urlencoded"}).status_code == 400
    assert ann.get("/account").status_code == 200


def test_the_files_of_the_style_name_no_other_host() -> None:
    for path in (HERE / "static").glob("*.css"):
        assert not re.search(r"url\(|@import|//[a-z]", path.read_text("utf-8")), path.name


def test_no_template_has_a_script_or_style_within_or_marks_text_as_safe() -> None:
    for path in (HERE / "templates").glob("*.j2"):
        found = re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:|\|\s*safe\b", path.read_text("utf-8"))
        assert found == [], path.name


def tokens(scheme: str) -> dict[str, str]:
    """The colours of the style in light or dark."""
    blocks = re.findall(r":root {(.*?)}", (HERE / "static/app.css").read_text("utf-8"), re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    return light if scheme == "light" else light | dark


def contrast(one: str, other: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_controls_stand_out_from_what_is_behind_them(scheme: str) -> None:
    colours = tokens(scheme)
    pairs = [*product(("ink", "soft", "accent"), ("paper", "card", "plain-bg")), *product(("bad", "good", "warn"), ("paper", "card"))]
    pairs += [
        ("accent", "accent-bg"),
        ("ink", "accent-bg"),
        ("on-accent", "accent"),
        ("good", "good-bg"),
        ("bad", "bad-bg"),
        ("warn", "warn-bg"),
    ]
    text = {f"{fore} on {back}": round(contrast(colours[fore], colours[back]), 2) for fore, back in pairs}
    edges = {
        f"{fore} on {back}": round(contrast(colours[fore], colours[back]), 2)
        for fore, back in product(("edge", "accent"), ("paper", "card"))
    }
    assert {pair: ratio for pair, ratio in text.items() if ratio < 4.5} == {}
    assert {pair: ratio for pair, ratio in edges.items() if ratio < 3} == {}


def test_the_openapi_schema_is_that_of_the_json_api_alone(stranger: TestClient) -> None:
    paths = json.loads(stranger.get("/api/openapi.json").text)["paths"]
    assert paths
    assert all(path.startswith("/api/") for path in paths)
