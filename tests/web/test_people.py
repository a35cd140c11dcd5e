"""Signing in and out, invitations, the team, one's own account, and the audit log, as browsers see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from heed.feedback import accounts as accounts_module
from heed.feedback.accounts import LOG_PAGE, SESSION_DAYS, Accounts, Role
from heed.feedback.database import Database
from heed.feedback.imported import add_rankings
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import AuditRow, utc_now
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt
from heed.records import Response as Text
from heed.web.app import create_app
from heed.web.limits import Attempts
from heed.web.site import COOKIE, Site
from tests.web.conftest import PASSWORD, Person, text_of

Make = Callable[[str, Role], Person]
SCRIPT = "<script>alert('x')</script>"


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "_hasher", PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)))


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return Accounts(database)


@pytest.fixture
def browser(database: Database) -> TestClient:
    """In which no one is signed in."""
    return TestClient(create_app(database), follow_redirects=False)


def try_to_sign_in(browser: TestClient, name: str, password: str = PASSWORD, **options: object):
    return browser.post("/sign-in", data={"name": name, "password": password}, **options)  # pyright: ignore[reportArgumentType]


def cookie(headers: Mapping[str, str]) -> str:
    """What an answer sets the session's cookie to."""
    (value,) = re.findall(rf'^{COOKIE}="?([^";]*)"?;', headers["set-cookie"])
    return value


def join(browser: TestClient, token: str, name: str, password: str = PASSWORD):
    return browser.post(f"/join/{token}", data={"name": name, "password": password})


# Signing in and out


def test_whoever_signs_in_is_known_on_every_page_until_signing_out(browser: TestClient, person: Make) -> None:
    person("Ann", "lead")
    answer = try_to_sign_in(browser, " ann ")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    page = browser.get("/account")
    assert "Ann" in text_of(page.text)
    assert browser.get("/sign-in").headers["location"] == "/"
    csrf = re.findall(r'name="csrf" value="([^"]+)"', page.text)[0]
    cookie = browser.cookies[COOKIE]
    assert browser.post("/sign-out", data={"csrf": csrf}).headers["location"] == "/sign-in"
    assert COOKIE not in browser.cookies
    browser.cookies.set(COOKIE, cookie)  # someone kept it
    assert browser.get("/account").headers["location"] == "/sign-in"


@pytest.mark.parametrize("secure", [False, True])
def test_the_cookie_is_kept_from_scripts_and_other_sites(database: Database, person: Make, secure: bool) -> None:
    person("Ann", "annotator")
    browser = TestClient(create_app(database, secure_cookies=secure), base_url="https://testserver", follow_redirects=False)
    entered = try_to_sign_in(browser, "Ann").headers["set-cookie"]
    name_and_value, *flags = entered.split("; ")
    assert name_and_value.startswith(f"{COOKIE}=")
    expected = {"HttpOnly", "SameSite=lax", "Path=/", f"Max-Age={SESSION_DAYS * 24 * 3600}"} | ({"Secure"} if secure else set())
    assert set(flags) == expected


def test_each_sign_in_begins_a_new_session_and_ends_that_of_the_browser(browser: TestClient, person: Make, accounts: Accounts) -> None:
    elsewhere = person("Ann", "annotator")
    first = cookie(try_to_sign_in(browser, "Ann", headers={"cookie": f"{COOKIE}=chosen-by-someone-else"}).headers)
    assert first != "chosen-by-someone-else"
    second = cookie(try_to_sign_in(browser, "Ann").headers)
    assert accounts.signed_in(first) is None
    assert accounts.signed_in(second) is not None
    assert elsewhere.get("/account").status_code == 200


def test_a_wrong_name_and_a_wrong_password_look_the_same(browser: TestClient, person: Make) -> None:
    person("Ann", "annotator")
    answers = [try_to_sign_in(browser, "Ann", "wrong password"), try_to_sign_in(browser, "Bob", "wrong password")]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].text.replace("Ann", "Bob") == answers[1].text
    assert "The name or the password is wrong." in answers[0].text
    assert "set-cookie" not in answers[0].headers
    assert "wrong password" not in answers[0].text


def test_a_name_is_shown_as_text_where_signing_in_failed(browser: TestClient) -> None:
    answer = try_to_sign_in(browser, f'"{SCRIPT}')
    assert SCRIPT not in answer.text
    assert "&#34;&lt;script&gt;" in answer.text


def test_after_ten_failures_a_name_must_wait_even_with_the_right_password(browser: TestClient, person: Make) -> None:
    for name in ("Ann", "Ben"):
        person(name, "annotator")
    for number in range(10):
        name = ["Ann", "ANN", " ann"][number % 3]
        assert try_to_sign_in(browser, name, "wrong password").status_code == 403
    answer = try_to_sign_in(browser, "Ann")
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 300
    assert "Too many tries" in answer.text
    assert "set-cookie" not in answer.headers
    assert try_to_sign_in(browser, "Ben").status_code == 303


def test_whoever_goes_through_names_must_wait_too(person: Make, database: Database) -> None:
    person("Ann", "annotator")
    app = create_app(database)
    app.state.site = site = Site(database, by_address=Attempts(most=3))
    browser = TestClient(app, follow_redirects=False)
    for number in range(3):
        assert try_to_sign_in(browser, f"guess {number}").status_code == 403
    assert try_to_sign_in(browser, "Ann").status_code == 429
    assert site.by_name.begin("ann") == 0  # which does not lock Ann out elsewhere


def test_signing_in_again_and_again_is_no_failure(browser: TestClient, person: Make) -> None:
    person("Ann", "annotator")
    assert [try_to_sign_in(browser, "Ann").status_code for _ in range(12)] == [303] * 12


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),
        ({"origin": "http://testserver"}, 303),
        ({"sec-fetch-site": "same-origin", "origin": "https://outside-name.example"}, 303),
        ({"sec-fetch-site": "none"}, 303),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://testserver"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_no_other_site_can_sign_a_browser_in(
    browser: TestClient, person: Make, accounts: Accounts, headers: dict[str, str], status: int
) -> None:
    person("Ann", "annotator")
    assert try_to_sign_in(browser, "Ann", headers=headers).status_code == status
    token = accounts.invite("annotator", None)
    assert browser.post(f"/join/{token}", data={"name": "Ben", "password": PASSWORD}, headers=headers).status_code == status


@pytest.mark.parametrize("fields", [{}, {"name": "Ann"}, {"password": PASSWORD}, {"name": "Ann\0", "password": PASSWORD}])
def test_a_form_with_something_missing_is_told(browser: TestClient, fields: dict[str, str]) -> None:
    assert browser.post("/sign-in", data=fields).status_code == 422


def test_strangers_may_send_little(browser: TestClient) -> None:
    assert try_to_sign_in(browser, "Ann", "x" * 100_000).status_code == 400
    files = {"name": ("name.txt", b"Ann")}
    assert browser.post("/sign-in", files=files, data={"password": PASSWORD}).status_code == 400


@pytest.mark.parametrize("place", ["next", "to", "return", "url"])
def test_nothing_in_the_address_decides_where_signing_in_leads(browser: TestClient, person: Make, place: str) -> None:
    person("Ann", "annotator")
    answer = browser.post(f"/sign-in?{place}=https://evil.example", data={"name": "Ann", "password": PASSWORD, place: "//evil.example"})
    assert answer.headers["location"] == "/"


# Invitations


def invite(lead: Person, role: str) -> str:
    """The link that a lead is shown."""
    page = lead.submit("/people/invite", {"role": role})
    assert page.status_code == 200
    (link,) = re.findall(r'value="(http[^"]+)"', page.text)
    return link


def test_a_link_makes_an_account_with_the_role_of_the_invitation_and_signs_it_in(person: Make, browser: TestClient) -> None:
    lead = person("Lea", "lead")
    link = invite(lead, "viewer")
    assert link.startswith("http://testserver/join/")
    assert "Join as a viewer" in text_of(browser.get(link).text)
    assert join(browser, link.rsplit("/", 1)[1], "Vic").headers["location"] == "/"
    assert "Viewer" in text_of(browser.get("/account").text)
    assert link not in lead.get("/people").text  # it was shown once


def test_behind_a_proxy_that_speaks_https_a_link_begins_so(database: Database, person: Make) -> None:
    lead = person("Lea", "lead")
    proxied = Person(create_app(database, secure_cookies=True), base_url="http://labels.example")
    proxied.cookies.set(COOKIE, lead.cookies[COOKIE])
    proxied.csrf = lead.csrf
    assert invite(proxied, "annotator").startswith("https://labels.example/join/")


def test_a_link_that_was_used_has_expired_or_was_forged_is_not_found(
    person: Make, browser: TestClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, late = accounts.invite("annotator", None), accounts.invite("annotator", None)
    join(browser, used, "Ann")
    monkeypatch.setattr(accounts_module, "utc_now", lambda: utc_now() + timedelta(days=8))
    for token in (used, late, "forged", "%00", "..%2f..", "x" * 3000):
        for answer in (browser.get(f"/join/{token}"), join(browser, token, "Eve")):
            assert answer.status_code == 404
            assert "set-cookie" not in answer.headers
            assert re.search("no longer good; ask for a new one|Not Found", text_of(answer.text))
    assert [account.name for account in accounts.all()] == ["Ann"]


@pytest.mark.parametrize(
    ("name", "password", "problem"),
    [
        ("ANN", PASSWORD, "taken"),
        ("", PASSWORD, "A name of 0 characters"),
        ("x" * 81, PASSWORD, "A name of 81 characters"),
        ("Eve", "short", "A password of 5 characters"),
        ("Eve-Maria-Anna", "eve-maria-anna", "A password that is your name"),
        (f'"{SCRIPT}', "short", "A password of 5 characters"),
    ],
)
def test_what_will_not_do_is_told_on_the_page_and_the_invitation_stays_good(
    person: Make, browser: TestClient, accounts: Accounts, name: str, password: str, problem: str
) -> None:
    person("Ann", "annotator")
    token = accounts.invite("annotator", None)
    answer = join(browser, token, name, password)
    assert answer.status_code == 422
    assert problem in text_of(answer.text)
    assert SCRIPT not in answer.text
    assert password not in answer.text.replace(name, "")
    assert join(browser, token, "Eve").status_code == 303


def test_open_invitations_are_listed_and_leads_withdraw_those_they_may_make(person: Make, browser: TestClient, accounts: Accounts) -> None:
    olga, lea = person("Olga", "owner"), person("Lea", "lead")
    tokens = {role: accounts.invite(role, olga.account.id) for role in ("annotator", "owner")}
    digests = {found.role: found.digest for found in accounts.invitations()}
    for who, buttons in ((lea, 1), (olga, 2)):
        page = who.get("/people").text
        assert "Open invitations 2" in text_of(page)
        assert re.search(r"annotator Olga \d+ \w+, \d\d:\d\d", text_of(page))
        assert page.count("/withdraw") == buttons
        assert tokens["annotator"] not in page
    assert lea.submit(f"/people/invitations/{digests['owner']}/withdraw").status_code == 403
    assert lea.submit(f"/people/invitations/{digests['annotator']}/withdraw").headers["location"] == "/people"
    assert lea.submit(f"/people/invitations/{digests['annotator']}/withdraw").status_code == 404
    assert lea.submit("/people/invitations/forged/withdraw").status_code == 404
    assert "Open invitations 1" in text_of(olga.get("/people").text)
    assert join(browser, tokens["annotator"], "Ann").status_code == 404
    assert join(browser, tokens["owner"], "Otto").status_code == 303
    assert "Open invitations" not in text_of(olga.get("/people").text)


@pytest.mark.parametrize("role", ["annotator", "viewer"])
def test_no_one_else_withdraws_an_invitation(person: Make, accounts: Accounts, role: Role) -> None:
    accounts.invite("annotator", None)
    (found,) = accounts.invitations()
    assert person("Sam", role).submit(f"/people/invitations/{found.digest}/withdraw").status_code == 403
    assert [each.digest for each in accounts.invitations()] == [found.digest]


def test_people_whom_a_file_brought_are_listed_and_deleted(person: Make, database: Database, project: Project, accounts: Accounts) -> None:
    olga, lea = person("Olga", "owner"), person("Lea", "lead")
    assert "From files" not in olga.get("/people").text
    add_rankings(database, project.id, [], "Paula Person", None)
    (paula,) = accounts.imported()
    for who, can_delete in ((olga, True), (lea, False)):
        page = who.get("/people").text
        assert "From files 1" in text_of(page)
        assert "Paula Person" in page
        assert (f'action="/people/{paula.id}/delete"' in page) == can_delete
        assert f"/people/{paula.id}/role" not in page
    assert lea.submit(f"/people/{paula.id}/delete", {"name": "Paula Person"}).status_code == 403
    assert olga.submit(f"/people/{paula.id}/role", {"role": "owner"}).status_code == 404
    assert olga.submit(f"/people/{paula.id}/delete", {"name": "Paula Person"}).headers["location"] == "/people"
    assert "Paula" not in olga.get("/people").text
    assert accounts.imported() == []


def test_the_first_owner_joins_by_a_link_too(browser: TestClient, accounts: Accounts) -> None:
    assert join(browser, accounts.invite("owner", None), "Olivia").status_code == 303
    assert browser.get("/audit").status_code == 200


@pytest.mark.parametrize("role", ["owner", "god", "", SCRIPT])
def test_a_lead_invites_no_owner_and_no_role_that_there_is_not(person: Make, role: str) -> None:
    lead = person("Lea", "lead")
    answer = lead.submit("/people/invite", {"role": role})
    assert answer.status_code == 403
    assert "The role lead may not invite" in answer.text
    assert SCRIPT not in answer.text
    assert "/join/" not in answer.text
    assert "<option>owner</option>" not in lead.get("/people").text


def test_an_owner_invites_owners(person: Make) -> None:
    assert "/join/" in invite(person("Olivia", "owner"), "owner")


# The team


def answer_once(database: Database, project: Project, who: Person) -> None:
    tasks = Tasks(database)
    task = tasks.next(project.id, who.account.id)
    assert task is not None
    tasks.answer(task.lease_id, who.account.id, Answer(ranks=(1, 2, 3)))


def test_leads_see_who_is_in_the_team_and_what_they_did_today(person: Make, database: Database, project: Project) -> None:
    lead, ann = person("Lea", "lead"), person("Ann", "annotator")
    ann.submit("/account/limits", {"daily_cap": "40", "avoid_also": "gore"})
    answer_once(database, project, ann)
    page = lead.get("/people").text
    (row,) = [row for row in page.split("<tr>") if ">Ann" in row]
    assert text_of(row).split()[:3] == ["Ann", "annotator", "1"]
    assert 'value="40"' in row
    assert "gore" in row
    assert "/delete" not in page
    assert "/role" not in page


def test_names_are_shown_as_text(person: Make) -> None:
    lead = person("Lea", "owner")
    for name in (SCRIPT, '" autofocus onfocus="alert(1)', "{{ 7 * 7 }}", "Robert'); DROP TABLE accounts;--", "张伟"):
        person(name, "annotator")
    page = lead.get("/people").text
    assert "<script" not in page
    assert 'onfocus="' not in page
    assert ">49<" not in page
    said = text_of(page)
    for name in ("&lt;script&gt;", "{{ 7 * 7 }}", "DROP TABLE", "张伟"):
        assert name in said


def test_leads_set_the_daily_cap_and_leave_what_people_avoid_to_them(person: Make, accounts: Accounts) -> None:
    lead, ann = person("Lea", "lead"), person("Ann", "annotator")
    ann.submit("/account/limits", {"daily_cap": "", "avoid_also": "gore, violence"})
    assert lead.submit(f"/people/{ann.account.id}/limits", {"daily_cap": "12", "avoid": "", "avoid_also": ""}).status_code == 303
    changed = accounts.get(ann.account.id)
    assert (changed.daily_cap, changed.avoid) == (12, ("gore", "violence"))
    lead.submit(f"/people/{ann.account.id}/limits", {"daily_cap": " "})
    assert accounts.get(ann.account.id).daily_cap is None


@pytest.mark.parametrize("cap", ["0", "-5", "1.5", "many", "9" * 30, "١٠٠٠٠٠٠"])
def test_a_cap_that_is_no_number_of_answers_is_told(person: Make, accounts: Accounts, cap: str) -> None:
    lead = person("Lea", "lead")
    assert lead.submit(f"/people/{lead.account.id}/limits", {"daily_cap": cap}).status_code == 422
    assert accounts.get(lead.account.id).daily_cap is None


def test_owners_change_roles_which_hold_at_once(person: Make) -> None:
    owner, ann = person("Olivia", "owner"), person("Ann", "annotator")
    assert ann.get("/people").status_code == 403
    assert owner.submit(f"/people/{ann.account.id}/role", {"role": "lead"}).headers["location"] == "/people"
    assert ann.get("/people").status_code == 200
    owner.submit(f"/people/{ann.account.id}/role", {"role": "viewer"})
    assert ann.get("/people").status_code == 403


@pytest.mark.parametrize("change", ["role", "delete"])
def test_a_lead_neither_changes_roles_nor_deletes(person: Make, accounts: Accounts, change: str) -> None:
    lead, ann = person("Lea", "lead"), person("Ann", "annotator")
    for someone in (lead, ann):
        assert lead.submit(f"/people/{someone.account.id}/{change}", {"role": "owner", "name": someone.account.name}).status_code == 403
    assert [account.role for account in accounts.all()] == ["lead", "annotator"]


def test_the_last_owner_can_neither_step_down_nor_leave(person: Make, accounts: Accounts) -> None:
    owner = person("Olivia", "owner")
    account = owner.account.id
    for path in (f"/people/{account}/role", f"/people/{account}/delete", "/account/delete"):
        answer = owner.submit(path, {"role": "lead", "name": "Olivia"})
        assert answer.status_code == 409
        assert "make someone else an owner first" in answer.text
    assert accounts.get(account).role == "owner"


def test_an_owner_who_steps_down_sees_the_pages_of_the_new_role(person: Make) -> None:
    person("Otto", "owner")
    owner = person("Olivia", "owner")
    assert owner.submit(f"/people/{owner.account.id}/role", {"role": "annotator"}).headers["location"] == "/"
    assert owner.get("/people").status_code == 403


def test_deletion_needs_the_name(person: Make, accounts: Accounts) -> None:
    owner, ann = person("Olivia", "owner"), person("Ann", "annotator")
    for typed in ("", "Olivia", "An"):
        assert owner.submit(f"/people/{ann.account.id}/delete", {"name": typed}).status_code == 422
        assert ann.submit("/account/delete", {"name": typed}).status_code == 422
    assert accounts.get(ann.account.id) == ann.account
    assert owner.submit(f"/people/{ann.account.id}/delete", {"name": "Ann"}).headers["location"] == "/people"
    assert ann.get("/account", follow_redirects=False).headers["location"] == "/sign-in"
    assert owner.submit(f"/people/{ann.account.id}/delete", {"name": "Ann"}).status_code == 404


# One's own account


def test_everyone_changes_their_password(person: Make, browser: TestClient) -> None:
    ann, before = person("Ann", "viewer"), person("Ben", "viewer")
    old_cookie = ann.cookies[COOKIE]
    answer = ann.submit("/account/password", {"old": PASSWORD, "new": "another long password"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    for value, status in ((old_cookie, 303), (cookie(answer.headers), 200)):
        assert browser.get("/account", headers={"cookie": f"{COOKIE}={value}"}).status_code == status
    assert before.get("/account").status_code == 200
    assert try_to_sign_in(browser, "Ann").status_code == 403
    assert try_to_sign_in(browser, "Ann", "another long password").status_code == 303


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [("wrong", "another long password", "The old password is wrong"), (PASSWORD, "short", "A password of 5 characters")],
)
def test_a_password_that_will_not_do_is_told_on_the_page(person: Make, old: str, new: str, problem: str) -> None:
    ann = person("Ann", "annotator")
    answer = ann.submit("/account/password", {"old": old, "new": new})
    assert answer.status_code == 422
    assert problem in text_of(answer.text)
    assert ann.get("/account", follow_redirects=False).status_code == 200


def test_whoever_finds_a_browser_open_cannot_guess_the_password_on(person: Make) -> None:
    ann = person("Ann", "annotator")
    for _ in range(10):
        assert ann.submit("/account/password", {"old": "a guess", "new": "another long password"}).status_code == 422
    answer = ann.submit("/account/password", {"old": PASSWORD, "new": "another long password"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_people_choose_among_the_categories_of_the_items_and_name_others(person: Make, accounts: Accounts) -> None:
    ann = person("Ann", "annotator")
    accounts.change(ann.account.id, ann.account.id, daily_cap=None, avoid=["gore", SCRIPT])
    page = ann.get("/account").text
    assert 'value="gore" checked' in page
    assert SCRIPT not in page
    fields = {"daily_cap": "5", "avoid": ["gore", "violence"], "avoid_also": " self-harm ,, spiders"}
    assert ann.submit("/account/limits", fields).headers["location"] == "/account"
    changed = accounts.get(ann.account.id)
    assert (changed.daily_cap, changed.avoid) == (5, ("gore", "self-harm", "spiders", "violence"))


def test_spellings_of_a_category_that_differ_in_capitals_are_one(person: Make, database: Database) -> None:
    projects = Projects(database)
    made = projects.create("P", ProjectSettings(num_responses=2), None)
    rows = [(Prompt(tag, {"categories": tag}), [Text("a"), Text("b")]) for tag in ("Gore", "GORE", "war")]
    projects.add_items(made.id, rows, None)
    ann = person("Ann", "annotator")
    ann.submit("/account/limits", {"daily_cap": "", "avoid": ["Gore"], "avoid_also": "gore"})
    page = ann.get("/account").text
    assert re.findall(r'name="avoid" value="(\w+)"( checked)?', page) == [("gore", " checked"), ("war", "")]
    task = Tasks(database).next(made.id, ann.account.id)
    assert task is not None
    assert task.prompt.text == "war"


def test_what_someone_avoids_is_not_given_to_them(person: Make, database: Database) -> None:
    projects = Projects(database)
    made = projects.create("P", ProjectSettings(num_responses=2), None)
    projects.add_items(made.id, [(Prompt("?", {"categories": "gore, war"}), [Text("a"), Text("b")])], None)
    ann = person("Ann", "annotator")
    assert 'value="gore"' in ann.get("/account").text
    ann.submit("/account/limits", {"daily_cap": "", "avoid": "gore"})
    assert Tasks(database).next(made.id, ann.account.id) is None


def test_a_key_is_shown_once_and_can_be_revoked(person: Make, accounts: Accounts) -> None:
    ann, ben = person("Ann", "annotator"), person("Ben", "annotator")
    page = ann.submit("/account/tokens", {"label": SCRIPT}).text
    (key,) = re.findall(r'value="(heed_[^"]+)"', page)
    assert accounts.of_token(key) == ann.account
    again = ann.get("/account").text
    assert key not in again
    assert SCRIPT not in again
    (revoke,) = re.findall(r'action="(/account/tokens/[^"]+/revoke)"', again)
    assert revoke not in ben.get("/account").text
    assert ben.submit(revoke).status_code == 404
    assert accounts.of_token(key) == ann.account
    assert ann.submit(revoke).headers["location"] == "/account"
    assert accounts.of_token(key) is None
    assert ann.submit(revoke).status_code == 404


def test_people_download_what_is_kept_about_them_and_nothing_of_others(person: Make, database: Database, project: Project) -> None:
    ann, ben = person("Ann", "annotator"), person("Benjamin", "annotator")
    for someone in (ann, ben):
        answer_once(database, project, someone)
    answer = ann.get("/account/export")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == 'attachment; filename="heed-account.json"'
    data = answer.json()
    assert data["account"]["name"] == "Ann"
    assert len(data["answers"]) == len(data["sign_ins"]) == 1
    assert {row["account_id"] for row in data["log"]} == {ann.account.id}
    assert "Benjamin" not in answer.text
    assert "model-" not in answer.text
    assert "password" not in answer.text


def test_people_delete_their_own_account_and_their_judgements_stay(person: Make, database: Database, project: Project) -> None:
    owner, ann = person("Olivia", "owner"), person("Ann", "annotator")
    answer_once(database, project, ann)
    answer = ann.submit("/account/delete", {"name": "ann "})
    assert answer.headers["location"] == "/sign-in"
    assert cookie(answer.headers) == ""
    assert try_to_sign_in(ann, "Ann").status_code == 403
    (judgement,) = FeedbackStore(database).judgements()
    assert re.fullmatch(r"annotator-[0-9a-f]{8}", judgement.annotator)
    for path in ("/people", "/audit"):
        assert not re.search(r"\bAnn\b", owner.get(path).text)


# The audit log


def entries(page: str) -> list[str]:
    return [text_of(row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)[1:]]


def test_owners_read_who_did_what_newest_first(person: Make) -> None:
    owner, ann = person("Olivia", "owner"), person(f"Ann {SCRIPT}", "annotator")
    owner.submit(f"/people/{ann.account.id}/role", {"role": "viewer"})
    page = owner.get("/audit").text
    found = entries(page)
    assert re.search(r"Olivia account\.role account Ann &lt;script&gt;.* before annotator after viewer$", found[0])
    assert SCRIPT not in page
    assert "account.create role owner" in found[-2]


def test_the_log_is_read_in_pages_and_by_action(person: Make, database: Database) -> None:
    owner = person("Olivia", "owner")
    with database.write() as session:
        session.add_all(AuditRow(action="tested.odd" if i % 2 else "tested.even", detail={"number": i}) for i in range(250))
    found, path, pages = [], "/audit?action=tested", 0
    while path:
        page = owner.get(path).text
        found += [int(entry.split()[-1]) for entry in entries(page)]
        path, pages = next((link.replace("&amp;", "&") for link in re.findall(r'href="([^"]+)" rel="next"', page)), ""), pages + 1
    assert found == list(range(249, -1, -1))
    assert pages == 3
    assert LOG_PAGE == 100
    assert len(entries(owner.get("/audit?action=tested.odd").text)) == 100
    for nothing in ("%", "teste_", SCRIPT):
        page = owner.get("/audit", params={"action": nothing}).text
        assert entries(page) == []
        assert SCRIPT not in page
        assert "No entries" in page


def test_details_of_any_shape_are_shown_as_text(person: Make, database: Database) -> None:
    owner = person("Olivia", "owner")
    detail = {"items": [1, {"deep": SCRIPT}], "none": None, "long": SCRIPT * 20, "account": "no number", "number": 2.5}
    with database.write() as session:
        session.add(AuditRow(action="tested", detail=detail))
    page = owner.get("/audit?action=tested").text
    assert "<script" not in page
    said = text_of(page)
    assert "none null" in said
    assert "number 2.5" in said
    assert "account no number" in said
