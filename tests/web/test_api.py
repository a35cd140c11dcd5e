"""The JSON API: what programs with a key may do, and what they are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from heed.feedback.accounts import Account, Accounts, Role
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import AccountRow
from heed.feedback.waiting import WaitingPrompts
from heed.web.app import create_app
from heed.web.site import Site
from tests.web.conftest import PASSWORD

API = "/api/v1"


class Program(TestClient):
    """A program that sends someone's key with every request."""

    account: Account


MakeProgram = Callable[[str, Role], Program]


@pytest.fixture
def site(database: Database) -> Site:
    return create_app(database).state.site


@pytest.fixture
def program(database: Database) -> MakeProgram:
    accounts = Accounts(database)
    app = create_app(database)

    def make(name: str, role: Role) -> Program:
        with database.write() as session:  # without a password, whose hashing takes its time
            row = AccountRow(name=name, role=role, password="a hash", avoid=[])
            session.add(row)
            session.flush()
            number = row.id
        account = accounts.get(number)
        made = Program(
            app, base_url=f"http://testserver{API}", headers={"Authorization": f"Bearer {accounts.new_token(account.id, 'test')}"}
        )
        made.account = account
        return made

    return make


def next_task(program: TestClient, project: Project) -> dict[str, Any]:
    response = program.post(f"/projects/{project.id}/tasks/next")
    assert response.status_code == 200, response.text
    return response.json()


def answer_one(program: TestClient, project: Project, **answer: Any) -> tuple[dict[str, Any], int]:
    task = next_task(program, project)
    response = program.post(f"/tasks/{task['lease_id']}/answer", json={"ranks": [1, 2, 3], **answer})
    assert response.status_code == 201, response.text
    return task, response.json()["id"]


# Keys


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer heed_wrong"}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}]
)
def test_without_a_right_key_nothing_is_told(database: Database, project: Project, headers: dict[str, str]):
    response = TestClient(create_app(database)).get(f"{API}/projects/{project.id}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert list(response.json()) == ["error"]


def test_being_signed_in_is_no_key(person, project: Project):
    assert person("Ann", "owner").get(f"{API}/me").status_code == 401


def test_a_revoked_key_opens_nothing(program: MakeProgram, database: Database):
    ann, accounts = program("Ann", "annotator"), Accounts(database)
    assert ann.get("/me").status_code == 200
    accounts.revoke_token(ann.account.id, accounts.tokens(ann.account.id)[0][0])
    assert ann.get("/me").status_code == 401


def test_many_wrong_keys_are_slowed_down_and_right_ones_go_on_working(program: MakeProgram):
    ann = program("Ann", "annotator")
    wrong = [ann.get("/me", headers={"Authorization": f"Bearer heed_{i}"}) for i in range(11)]
    assert [response.status_code for response in wrong] == [401] * 10 + [429]
    assert int(wrong[-1].headers["retry-after"]) > 0
    assert ann.get("/me").status_code == 200


# Rights


def test_me_is_the_owner_of_the_key(program: MakeProgram):
    me = program("Ann", "viewer").get("/me").json()
    assert (me["name"], me["role"], me["created_at"][-1]) == ("Ann", "viewer", "Z")


LEADS = [
    ("POST", "/projects"),
    ("PUT", "/projects/1"),
    ("POST", "/projects/1/archive"),
    ("POST", "/projects/1/reopen"),
    ("POST", "/projects/1/items"),
    ("GET", "/projects/1/items"),
    ("POST", "/projects/1/prompts"),
    ("DELETE", "/projects/1/prompts"),
    ("POST", "/items/1/decisions"),
    ("GET", "/projects/1/disputes"),
    ("GET", "/projects/1/export/pairs"),
    ("GET", "/projects/1/export/full"),
    ("GET", "/people"),
    ("POST", "/invitations"),
    ("GET", "/invitations"),
    ("DELETE", f"/invitations/{'0' * 64}"),
    ("PUT", "/people/1/daily-cap"),
]
OWNERS = [("PUT", "/people/1/role"), ("DELETE", "/people/1"), ("GET", "/audit")]
LABELLERS = [
    ("POST", "/projects/1/tasks/next"),
    ("POST", "/projects/1/undo"),
    ("POST", "/tasks/1/answer"),
    ("POST", "/tasks/1/skip"),
]
BODIES = {
    "/projects": {"name": "Another"},
    "/projects/1": {"settings": {}, "revision": 1},
    "/projects/1/items": {"items": [{"prompt": "p", "responses": [{"text": "a"}]}]},
    "/projects/1/prompts": {"prompts": [{"prompt": "p"}]},
    "/items/1/decisions": {"ranks": [1, 2, 3]},
    "/invitations": {"role": "annotator"},
    "/people/1/daily-cap": {"daily_cap": 3},
    "/people/1/role": {"role": "owner"},
    "/tasks/1/answer": {"ranks": [1, 2, 3]},
    "/tasks/1/skip": {"reason": "no idea"},
}


@pytest.mark.parametrize(
    ("role", "closed"),
    [("annotator", LEADS + OWNERS), ("viewer", LEADS + OWNERS + LABELLERS), ("lead", OWNERS)],
)
def test_what_a_role_does_not_allow_is_forbidden(program: MakeProgram, project: Project, database: Database, role: Role, closed: Any):
    mallory = program("Mallory", role)
    before = Projects(database).get(project.id)
    for method, path in closed:
        assert mallory.request(method, path, json=BODIES.get(path)).status_code == 403, (method, path)
    assert Projects(database).get(project.id) == before
    assert Accounts(database).get(mallory.account.id).role == role


def test_a_lead_cannot_make_an_owner_by_inviting_one(program: MakeProgram):
    assert program("Lea", "lead").post("/invitations", json={"role": "owner"}).status_code == 403
    assert program("Olga", "owner").post("/invitations", json={"role": "owner"}).status_code == 201


def test_open_invitations_are_told_without_their_links_and_withdrawn(program: MakeProgram):
    olga, lea = program("Olga", "owner"), program("Lea", "lead")
    links = [olga.post("/invitations", json={"role": role}).json()["path"] for role in ("owner", "annotator")]
    owners, annotators = lea.get("/invitations").json()
    assert [(each["role"], each["invited_by"]) for each in (owners, annotators)] == [("owner", "Olga"), ("annotator", "Olga")]
    assert not any(link.rpartition("/")[2] in lea.get("/invitations").text for link in links)
    assert lea.delete(f"/invitations/{owners['digest']}").status_code == 403
    assert lea.delete(f"/invitations/{annotators['digest']}").status_code == 204
    assert lea.delete(f"/invitations/{annotators['digest']}").status_code == 404
    assert [each["role"] for each in olga.get("/invitations").json()] == ["owner"]


# Projects and items


def test_a_project_is_made_changed_and_archived(program: MakeProgram):
    lea = program("Lea", "lead")
    made = lea.post("/projects", json={"name": "Kind", "settings": {"num_responses": 2, "ratings": ["warm"]}})
    assert made.status_code == 201
    project = made.json()
    assert project["settings"] == {**project["settings"], "num_responses": 2, "ratings": ["warm"], "compare": "rank"}
    path = f"/projects/{project['id']}"
    changed = {"settings": {**project["settings"], "overlap": 3}, "revision": project["revision"]}
    assert lea.put(path, json=changed).json()["settings"]["overlap"] == 3
    assert lea.put(path, json=changed).status_code == 409, "the second of two who change the same revision"
    assert lea.post(f"{path}/archive").json()["archived"] is True
    assert lea.post(f"{path}/reopen").json()["archived"] is False
    assert [p["name"] for p in lea.get("/projects").json()] == ["Kind"]
    assert lea.post("/projects", json={"name": "Kind"}).status_code == 409


def test_items_are_added_once_and_read_page_by_page(program: MakeProgram):
    lea = program("Lea", "lead")
    path = f"/projects/{lea.post('/projects', json={'name': 'Kind', 'settings': {'num_responses': 2}}).json()['id']}"
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    written = [{"text": "Hi", "model": "m", "sampling": {"temperature": 0.5}, "run": "r"}, {"text": "No"}]
    items = [
        {"prompt": chat, "responses": written, "gold": [1, 2], "tags": {"categories": "violence"}},
        *({"prompt": [*chat, {"role": "user", "content": str(i)}], "responses": [{"text": "a"}, {"text": "b"}]} for i in range(4)),
        {"prompt": chat[1:], "responses": [{"text": "a"}, {"text": "a"}]},
    ]
    assert lea.post(f"{path}/items", json={"items": items}).json() == {"new": 5, "known": 0, "too_few": 1, "left_over": 0}
    assert lea.post(f"{path}/items", json={"items": items}).json() == {"new": 0, "known": 5, "too_few": 1, "left_over": 0}
    first = lea.get(f"{path}/items", params={"limit": 3}).json()
    rest = lea.get(f"{path}/items", params={"limit": 3, "after": first["next"]}).json()
    assert (len(first["entries"]), len(rest["entries"]), rest["next"]) == (3, 2, None)
    item = first["entries"][0]
    assert item["prompt"] == chat
    assert item["gold"] == [1, 2]
    assert item["responses"][0] == {"text": "Hi", "sources": [{"model": "m", "sampling": {"temperature": 0.5}, "run": "r"}]}
    counts = lea.get(path).json()["counts"]
    assert counts == {"items": 5, "gold": 1, "waiting": 4, "waiting_prompts": 0, "open": 0, "answers": 0, "skips": 0}


@pytest.mark.parametrize("gold", [[1], [1, 2, 3], [2, 2], [0, 1], [1, 3]])
def test_gold_that_does_not_fit_is_refused_and_nothing_added(program: MakeProgram, project: Project, gold: list[int]):
    lea = program("Lea", "lead")
    item = {"prompt": "New", "responses": [{"text": "a"}, {"text": "b"}], "gold": gold}
    assert lea.post(f"/projects/{project.id}/items", json={"items": [item]}).status_code == 422
    assert lea.get(f"/projects/{project.id}").json()["counts"]["items"] == 5


@pytest.mark.parametrize("prompt", ["", "  ", [], [{"role": "robot", "content": "x"}], [{"role": "assistant", "content": "x"}], 5, None])
def test_a_prompt_that_asks_nothing_is_refused(program: MakeProgram, project: Project, prompt: Any):
    item = {"prompt": prompt, "responses": [{"text": "a"}, {"text": "b"}]}
    assert program("Lea", "lead").post(f"/projects/{project.id}/items", json={"items": [item]}).status_code == 422


# Tasks and answers


def test_tasks_are_worked_through_until_nothing_is_left(program: MakeProgram, project: Project):
    ann = program("Ann", "annotator")
    seen = {answer_one(ann, project)[0]["item_id"] for _ in range(5)}
    assert len(seen) == 5
    assert ann.post(f"/projects/{project.id}/tasks/next").status_code == 204


def test_ranks_mean_the_responses_in_the_order_shown(program: MakeProgram, project: Project, site: Site):
    ann = program("Ann", "annotator")
    for _ in range(5):
        task = next_task(ann, project)
        ranks = [1 + sorted(task["responses"]).index(text) for text in task["responses"]]
        ann.post(f"/tasks/{task['lease_id']}/answer", json={"ranks": ranks})
    judgements = site.store.judgements()
    assert len(judgements) == 5
    assert all(j.ranks[j.responses.index(text)] == 1 + "abc".index(text[-1]) for j in judgements for text in j.responses)
    assert len({j.order_shown for j in judgements}) > 1


def test_an_annotator_is_never_told_who_wrote_a_response(program: MakeProgram, project: Project):
    ann = program("Ann", "annotator")
    answer_one(ann, project)
    paths = ["/me/data", "/projects", f"/projects/{project.id}", f"/projects/{project.id}/answers"]
    told = [ann.get(path).text for path in paths] + [ann.post(f"/projects/{project.id}/tasks/next").text]
    assert "Answer" in told[-1]
    assert not any("model-" in text for text in told)


def test_an_annotator_reads_their_own_answers_as_shown_and_a_lead_everything(program: MakeProgram, project: Project):
    ann, bob, lea = program("Ann", "annotator"), program("Bob", "annotator"), program("Lea", "lead")
    task, answer_id = answer_one(ann, project, flags={"toxic": [2]}, note="hm")
    answer_one(bob, project)
    path = f"/projects/{project.id}/answers"
    (own,) = ann.get(path).json()["entries"]
    assert (own["id"], own["annotator"], own["responses"]) == (answer_id, "Ann", task["responses"])
    assert own["answer"] == {"ranks": [1, 2, 3], "strength": None, "ratings": {}, "flags": {"toxic": [2]}, "ideal": "", "note": "hm"}
    assert (own["order"], own["reason"]) == (None, None), "these tell which model comes first, and which items are gold"
    everything = lea.get(path).json()["entries"]
    assert [entry["annotator"] for entry in everything] == ["Ann", "Bob"]
    item = next(i for i in lea.get(f"/projects/{project.id}/items").json()["entries"] if i["id"] == task["item_id"])
    assert [item["responses"][i]["text"] for i in everything[0]["order"]] == task["responses"]
    assert everything[0]["reason"] == "random"
    assert program("Vic", "viewer").get(path).json()["entries"] == []


def test_answers_come_in_pages(program: MakeProgram, project: Project):
    ann = program("Ann", "annotator")
    ids = [answer_one(ann, project)[1] for _ in range(5)]
    found, after = [], 0
    while after is not None:
        page = ann.get(f"/projects/{project.id}/answers", params={"after": after, "limit": 2}).json()
        found += [entry["id"] for entry in page["entries"]]
        after = page["next"]
    assert found == ids


def test_undone_answers_come_back_to_be_changed(program: MakeProgram, project: Project):
    ann = program("Ann", "annotator")
    task, _ = answer_one(ann, project, ranks=[2, 1, 2])
    again = ann.post(f"/projects/{project.id}/undo").json()
    assert (again["lease_id"], again["answer"]["ranks"]) == (task["lease_id"], [2, 1, 2])
    (undone,) = ann.get(f"/projects/{project.id}/answers").json()["entries"]
    assert undone["undone_at"].endswith("Z")
    assert ann.post(f"/projects/{project.id}/undo").status_code == 204


def test_a_skipped_task_goes_to_someone_else(program: MakeProgram, project: Project):
    ann, bob = program("Ann", "annotator"), program("Bob", "annotator")
    task = next_task(ann, project)
    assert ann.post(f"/tasks/{task['lease_id']}/skip", json={"reason": "no idea"}).status_code == 204
    assert task["item_id"] in {answer_one(bob, project)[0]["item_id"] for _ in range(5)}
    assert ann.get(f"/projects/{project.id}/answers").json()["entries"][0]["skipped"] == "no idea"


def test_a_task_of_someone_else_cannot_be_answered(program: MakeProgram, project: Project):
    task = next_task(program("Ann", "annotator"), project)
    mallory = program("Mallory", "owner")
    assert mallory.post(f"/tasks/{task['lease_id']}/answer", json={"ranks": [1, 2, 3]}).status_code == 404
    assert mallory.post(f"/tasks/{task['lease_id']}/skip", json={"reason": "x"}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "1",
        {"ranks": [1, 2]},
        {"ranks": [1, 2, "3"]},
        {"ranks": [True, 2, 3]},
        {"ranks": [1, 2, 3], "stars": 5},
        {"ranks": [1.5, 2, 3]},
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_nothing_kept(program: MakeProgram, project: Project, site: Site, body: Any):
    ann = program("Ann", "annotator")
    response = ann.post(f"/tasks/{next_task(ann, project)['lease_id']}/answer", json=body)
    assert response.status_code == 422
    assert list(response.json()) == ["error"]
    assert site.store.judgements() == []


def test_pairs_ratings_and_an_ideal_response_are_kept(program: MakeProgram, site: Site):
    settings = ProjectSettings(compare="pairwise", num_responses=2, ratings=("kind",), ideal=True)
    project = site.projects.create("All of it", settings, None)
    lea = program("Lea", "lead")
    item = {"prompt": "Hello?", "responses": [{"text": "Hi"}, {"text": "No"}]}
    lea.post(f"/projects/{project.id}/items", json={"items": [item]})
    task = next_task(lea, project)
    said = {"ranks": [2, 1], "strength": 3, "ratings": {"kind": [1, 7]}, "flags": {}, "ideal": "Hi there", "note": ""}
    assert lea.post(f"/tasks/{task['lease_id']}/answer", json=said).status_code == 201
    (entry,) = lea.get(f"/projects/{project.id}/answers").json()["entries"]
    assert (entry["answer"], entry["responses"]) == (said, task["responses"])


def test_a_decision_stands_beside_the_answers(program: MakeProgram, project: Project):
    ann, lea = program("Ann", "annotator"), program("Lea", "lead")
    item_id = answer_one(ann, project)[0]["item_id"]
    assert lea.post(f"/items/{item_id}/decisions", json={"ranks": [3, 2, 1], "note": "no"}).status_code == 201
    items = lea.get(f"/projects/{project.id}/items").json()["entries"]
    (decision,) = next(item for item in items if item["id"] == item_id)["decisions"]
    assert (decision["by"], decision["ranks"], decision["note"]) == ("Lea", [3, 2, 1], "no")
    assert ann.get(f"/projects/{project.id}/answers").json()["entries"][0]["answer"]["ranks"] == [1, 2, 3]


def test_what_is_disputed_agreed_on_and_learnt_can_be_read(program: MakeProgram, site: Site):
    project = site.projects.create("Disputed", ProjectSettings(num_responses=2, overlap=2), None)
    lea, ann, bob = program("Lea", "lead"), program("Ann", "annotator"), program("Bob", "annotator")
    items = [{"prompt": f"Question {i}", "responses": [{"text": "a"}, {"text": "b"}]} for i in range(3)]
    lea.post(f"/projects/{project.id}/items", json={"items": items})
    for who, best in ((ann, "a"), (bob, "b")):
        for _ in items:
            task = next_task(who, project)
            swapped = best == "b" and task["prompt"] == "Question 1"
            ranks = [1 if (text == "a") != swapped else 2 for text in task["responses"]]
            who.post(f"/tasks/{task['lease_id']}/answer", json={"ranks": ranks})
    disputed = lea.get(f"/projects/{project.id}/disputes").json()
    assert [d["disagreement"] for d in disputed] == [1.0, 0.0, 0.0]
    quality = program("Vic", "viewer").get(f"/projects/{project.id}/quality").json()
    assert (quality["progress"]["done"], quality["num_shared"]) == (6, 3)
    assert [a["name"] for a in quality["annotators"]] == ["Ann", "Bob"]
    lines = lea.get(f"/projects/{project.id}/export/pairs", params={"annotator": "Bob"}).text.splitlines()
    assert [json.loads(line)["chosen"] for line in lines] == ["a", "b", "a"]
    whole = lea.get(f"/projects/{project.id}/export/full").text.splitlines()
    assert json.loads(whole[-1])["record"] == "end"
    assert "Disputed" in lea.get(f"/projects/{project.id}/export/pairs/card").text
    assert lea.get(f"/projects/{project.id}/export/pairs", params={"weights": True}).status_code == 422, "too few answers to weigh by"
    exports = program("Olga", "owner").get("/audit", params={"action": "project.export"}).json()["entries"]
    assert [(e["by"], e["detail"]["kind"]) for e in exports] == [("Lea", "full"), ("Lea", "pairs")], "data that leaves is remembered"


@pytest.mark.parametrize(
    "query",
    ["annotator=Nobody", "since=yesterday", "without_flag=ugly", "min_agreement=nan", "min_agreement=2", "since=0001-01-01T00:00%2B23:00"],
)
def test_filters_that_make_no_sense_are_refused(program: MakeProgram, project: Project, query: str):
    assert program("Lea", "lead").get(f"/projects/{project.id}/export/pairs?{query}").status_code == 422


# People


def test_people_are_invited_given_roles_limited_and_forgotten(program: MakeProgram, database: Database):
    olga = program("Olga", "owner")
    path = olga.post("/invitations", json={"role": "annotator"}).json()["path"]
    bob = Accounts(database).accept(path.removeprefix("/join/"), "Bob", PASSWORD)
    assert [p["name"] for p in olga.get("/people").json()] == ["Olga", "Bob"]
    assert olga.put(f"/people/{bob.id}/role", json={"role": "lead"}).json()["role"] == "lead"
    assert olga.put(f"/people/{bob.id}/daily-cap", json={"daily_cap": 7}).json()["daily_cap"] == 7
    assert "Bob" not in olga.delete(f"/people/{bob.id}").json()["pseudonym"]
    assert olga.delete(f"/people/{bob.id}").status_code == 404
    assert olga.delete(f"/people/{olga.account.id}").status_code == 409, "no owner would be left"


def test_what_someone_avoids_is_theirs_to_say(program: MakeProgram):
    lea, ann = program("Lea", "lead"), program("Ann", "annotator")
    assert ann.put("/me/limits", json={"daily_cap": None, "avoid": ["violence"]}).json()["avoid"] == ["violence"]
    capped = lea.put(f"/people/{ann.account.id}/daily-cap", json={"daily_cap": 2}).json()
    assert (capped["daily_cap"], capped["avoid"]) == (2, ["violence"])
    assert ann.get("/me/data").json()["account"]["daily_cap"] == 2


def test_a_cap_that_a_lead_sets_leaves_what_someone_comes_to_avoid_meanwhile(program: MakeProgram, monkeypatch: pytest.MonkeyPatch):
    lea, ann = program("Lea", "lead"), program("Ann", "annotator")
    change = Accounts.change

    def just_after_ann(accounts: Accounts, account_id: int, by: int, **limits: Any) -> Account:
        change(accounts, account_id, account_id, daily_cap=None, avoid=["violence"])
        return change(accounts, account_id, by, **limits)

    monkeypatch.setattr(Accounts, "change", just_after_ann)
    capped = lea.put(f"/people/{ann.account.id}/daily-cap", json={"daily_cap": 2}).json()
    assert (capped["daily_cap"], capped["avoid"]) == (2, ["violence"])


def test_the_audit_log_comes_newest_first_in_pages(program: MakeProgram, site: Site):
    olga = program("Olga", "owner")
    for i in range(120):
        site.projects.create(f"Project {i}", ProjectSettings(), olga.account.id)
    first = olga.get("/audit", params={"action": "project."}).json()
    rest = olga.get("/audit", params={"action": "project.", "before": first["next"]}).json()
    assert [e["detail"]["project"] for e in first["entries"] + rest["entries"]] == list(range(120, 0, -1))
    assert {e["by"] for e in first["entries"]} == {"Olga"}
    assert rest["next"] is None


# What no database can keep


@pytest.mark.parametrize(
    "raw",
    [
        '{"name": "a\\u0000b"}',
        '{"name": "a\\ud800"}',
        '{"name": "a", "settings": {"criterion": "\\udfff"}}',
        '{"name": "a", "settings": {"overlap": 99999999999999999999}}',
        '{"name": "a", "settings": {"gold_rate": NaN}}',
        '{"name": "a", "settings": {"gold_rate": 1e999}}',
        '{"name": "a", "a\\u0000": 1}',
        "[" * 5_000 + "]" * 5_000,
        "[" * 200_000,
        "1" * 5_000,
        '{"name": ',
        "",
        "null",
    ],
)
def test_what_no_database_can_keep_is_refused(program: MakeProgram, raw: str):
    lea = program("Lea", "lead")
    response = lea.post("/projects", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert len(response.json()["error"]) < 500
    assert lea.get("/projects").json() == []


def test_bytes_that_are_no_text_are_refused(program: MakeProgram):
    response = program("Lea", "lead").post("/projects", content=b'{"name": "\xff"}', headers={"Content-Type": "application/json"})
    assert response.status_code == 422


@pytest.mark.parametrize("sampling", [{"seed": 2**63}, {"x": float("inf")}, {"x": "\0"}, {"\ud800": 1}])
def test_provenance_that_no_database_can_keep_is_refused(program: MakeProgram, project: Project, sampling: dict[str, Any]):
    item = {"prompt": "New", "responses": [{"text": "a", "sampling": sampling}, {"text": "b"}]}
    raw = json.dumps({"items": [item]})
    response = program("Lea", "lead").post(f"/projects/{project.id}/items", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


@pytest.mark.parametrize("number", ["0", "-1", "2147483648", "9223372036854775808", "1" * 5_000, "%00", "x", "%ED%A0%80", "1.5"])
def test_numbers_in_a_path_that_no_row_can_have_are_refused(program: MakeProgram, number: str):
    olga = program("Olga", "owner")
    for path in ("/projects/{}", "/projects/{}/items", "/projects/{}/answers"):
        assert olga.get(path.format(number)).status_code == 422
    assert olga.delete(f"/people/{number}").status_code == 422


def test_a_request_that_is_too_large_is_refused_however_it_comes(program: MakeProgram):
    lea = program("Lea", "lead")
    large = b" " * (17 * 2**20)
    for content in (large, iter([large])):  # told in a header, and in chunks
        response = lea.post("/projects", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert list(response.json()) == ["error"]


def test_the_schema_tells_of_every_way_and_problem(database: Database):
    schema = TestClient(create_app(database)).get("/api/openapi.json").json()
    assert all(path.startswith(API) for path in schema["paths"])
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert len(operations) > 20
    for operation in operations:
        assert operation["description"]
        assert {"401", "403", "404", "409", "413", "422", "429"} <= set(operation["responses"])
        assert operation["security"] == [{"key": []}]
    for name, model in schema["components"]["schemas"].items():
        assert model.get("description") or model.get("prefixItems") or name.startswith(("Page", "JsonValue")), name


def test_prompts_wait_for_a_policy(program: MakeProgram, project: Project, database: Database):
    lea, path = program("Lea", "lead"), f"/projects/{project.id}/prompts"
    body = {"prompts": [{"prompt": "Why?", "tags": {"categories": "war"}}, {"prompt": "How?"}, {"prompt": "Why?"}]}
    response = lea.post(path, json=body)
    assert (response.status_code, response.json()) == (200, {"new": 2, "known": 1, "waiting": 2})
    assert lea.post(path, json=body).json() == {"new": 0, "known": 3, "waiting": 2}
    batch = WaitingPrompts(database).take(project.id, 1)
    assert batch is not None
    assert (batch.prompts[0].text, batch.prompts[0].tags) == ("Why?", {"categories": "war"})
    for prompt in ([{"role": "user", "content": "Hello"}], " ", "a\0b", None):
        assert lea.post(path, json={"prompts": [{"prompt": prompt}]}).status_code == 422
    assert lea.post("/projects/99/prompts", json=body).status_code == 404
    assert lea.post(path, json={"prompts": []}).status_code == 422


def test_waiting_prompts_are_counted_cleared_and_wait_again_when_they_are_added_again(program: MakeProgram, project: Project):
    lea, path = program("Lea", "lead"), f"/projects/{project.id}"
    body = {"prompts": [{"prompt": "Why?"}, {"prompt": "How?"}]}
    lea.post(f"{path}/prompts", json=body)
    assert lea.get(path).json()["counts"]["waiting_prompts"] == 2
    cleared = lea.delete(f"{path}/prompts")
    assert (cleared.status_code, cleared.json()) == (200, {"cleared": 2})
    counts = lea.get(path).json()["counts"]
    assert (counts["waiting_prompts"], counts["items"]) == (0, 5)
    assert lea.delete(f"{path}/prompts").json() == {"cleared": 0}
    assert lea.post(f"{path}/prompts", json=body).json() == {"new": 2, "known": 0, "waiting": 2}
    assert lea.delete("/projects/99/prompts").status_code == 404
    newest = program("Olga", "owner").get("/audit", params={"action": "prompts.clear"}).json()["entries"]
    assert [(entry["by"], entry["detail"]["cleared"]) for entry in newest] == [("Lea", 0), ("Lea", 2)]
