"""Projects' pages: who sees what, settings that two people change, and data that comes in whole or not at all."""

from __future__ import annotations

import gzip
import html
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heed.feedback.accounts import Role
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import ItemRow
from heed.feedback.store import FeedbackStore
from heed.feedback.waiting import WaitingPrompts
from heed.records import Prompt, Response
from heed.web import uploads
from tests.web.conftest import Person, text_of

Join = Callable[[str, Role], Person]
RANKING = {"prompt": "Why?", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}
PAIR = {"prompt": "Why?", "chosen": "a", "rejected": "b"}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def lead(person: Join) -> Person:
    return person("Lea", "lead")


def typed(page: str) -> dict[str, str]:
    """What the settings form of a page holds."""
    fields = dict(re.findall(r'<input type="(?:text|number|hidden)"[^>]*? ?name="(\w+)" value="([^"]*)"', page))
    fields |= {name: value for value, name in re.findall(r'<input type="(?:text|number)" value="([^"]*)" id="\w+" name="(\w+)"', page)}
    fields |= dict(re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>\n([^<]*)</textarea>', page))
    for name, options in re.findall(r'<select id="(\w+)"[^>]*>(.*?)</select>', page):
        fields[name] = re.findall(r'value="(\w+)" selected', options)[0]
    return {name: value for name, value in fields.items() if name != "csrf"}


def row_of(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(person: Person, project: Project, data: bytes, name: str = "data.jsonl", **fields: str):
    return person.submit(f"/projects/{project.id}/import", dict(fields), files={"file": (name, data)})


def items(database: Database) -> list[ItemRow]:
    with database.read() as session:
        return list(session.query(ItemRow).order_by(ItemRow.id))


def test_leads_see_all_projects_with_their_progress(lead: Person, project: Project, database: Database) -> None:
    Projects(database).create("Empty", ProjectSettings(), None)
    Projects(database).archive(Projects(database).create("Old", ProjectSettings(), None).id, None)
    told = text_of(lead.get("/").text)
    for words in ("Kind answers", "Answers: 0 of 5 · items: 5", "No items yet: import some", "Old archived", "Reopen"):
        assert words in told
    assert f'href="/projects/{project.id}/settings"' in lead.get("/").text


def test_viewers_see_projects_and_change_nothing(person: Join, project: Project) -> None:
    viewer = person("Vic", "viewer")
    page = viewer.get("/").text
    assert f'href="/projects/{project.id}"' in page
    for word in ("label", "settings", "import", "export", "archive", "/projects/new"):
        assert f"/{word}" not in page.partition("<main")[2]


def test_annotators_see_where_to_go_on_and_nothing_of_others(person: Join, project: Project, database: Database) -> None:
    Projects(database).archive(Projects(database).create("Old", ProjectSettings(), None).id, None)
    annotator = person("Ann", "annotator")
    page = annotator.get("/").text
    main = page.partition("<main")[2]
    assert re.findall(r'href="([^"]+)"', main) == [f"/projects/{project.id}/label"]
    assert "Old" not in main
    assert "progress" not in main


def test_pages_without_projects_say_what_to_do(person: Join) -> None:
    assert "Make the first project" in person("Lea", "lead").get("/").text
    assert "There are no projects yet" in person("Vic", "viewer").get("/").text
    assert "nothing to label yet" in person("Ann", "annotator").get("/").text


@pytest.mark.parametrize("role", ["annotator", "viewer"])
def test_only_leads_reach_the_pages_that_change_projects(person: Join, project: Project, database: Database, role: Role) -> None:
    other = person("Ann", role)
    for path in ("/projects/new", f"/projects/{project.id}/settings", f"/projects/{project.id}/import"):
        assert other.get(path).status_code == 403
        assert other.submit(path, {"pasted": json.dumps(PAIR)}).status_code == 403
    for path in ("/projects/preview", f"/projects/{project.id}/archive"):
        assert other.submit(path, {"archived": "yes", "guidelines": "x"}).status_code == 403
    assert Projects(database).all() == [project]
    assert len(items(database)) == 5


def test_strangers_are_sent_to_sign_in(person: Join, project: Project) -> None:
    stranger = person("Ann", "lead")
    stranger.cookies.clear()
    for path in ("/", "/projects/new", f"/projects/{project.id}/settings", f"/projects/{project.id}/guidelines"):
        found = stranger.get(path, follow_redirects=False)
        assert (found.status_code, found.headers["location"]) == (303, "/sign-in")


def test_a_form_of_another_session_changes_nothing(lead: Person, project: Project, database: Database) -> None:
    lead.csrf = "forged"
    for path in ("/projects/new", *(f"/projects/{project.id}/{page}" for page in ("settings", "import", "archive"))):
        assert lead.submit(path, {"name": "x", "archived": "yes"}).status_code == 403
    assert Projects(database).all() == [project]


def test_a_new_project_has_every_setting_that_was_typed(lead: Person, database: Database) -> None:
    fields = typed(lead.get("/projects/new").text)
    assert set(fields) == {"name", *(name for name in ProjectSettings.__slots__ if name != "ideal")}
    fields |= {
        "name": " Tone ",
        "criterion": "Which sounds\r\nlike us?",
        "guidelines": "# Our <b>tone</b>",
        "compare": "pairwise",
        "num_responses": "7",
        "ratings": "warm, , short ",
        "flags": "",
        "ideal": "yes",
        "overlap": "3",
        "gold_rate": "0.1",
        "again_rate": "5e-2",
        "strategy": "uncertain",
        "control_share": "0.5",
        "lease_minutes": "15",
    }
    found = lead.submit("/projects/new", dict(fields))
    (project,) = Projects(database).all()
    assert (found.status_code, found.headers["location"]) == (303, f"/projects/{project.id}/import")
    assert project.name == "Tone"
    assert project.settings == ProjectSettings(
        criterion="Which sounds\nlike us?",
        guidelines="# Our <b>tone</b>",
        compare="pairwise",
        num_responses=2,
        ratings=("warm", "short"),
        flags=(),
        ideal=True,
        overlap=3,
        gold_rate=0.1,
        again_rate=0.05,
        strategy="uncertain",
        control_share=0.5,
        lease_minutes=15,
    )


def test_the_settings_form_shows_what_stands_and_changes_nothing_by_itself(lead: Person, database: Database) -> None:
    settings = ProjectSettings(
        criterion="Is it like 1.0",
        ratings=("a", 'rude, "or" mean', '"quoted"'),
        flags=("x,", '5" long', '",', "1.0"),
        ideal=True,
        gold_rate=0.1234567891,
        again_rate=1e-7,
        control_share=1.0,
        guidelines="Line \"one\"\n\n<two> & 'three'",
    )
    project = Projects(database).create("P", settings, None)
    page = lead.get(f"/projects/{project.id}/settings").text
    assert 'name="ideal"' in page
    assert "checked" in page
    fields = {name: html.unescape(value) for name, value in typed(page).items()}
    assert (fields["overlap"], fields["control_share"]) == ("1", "1")
    found = lead.submit(f"/projects/{project.id}/settings", {**fields, "ideal": "yes"})
    assert (found.status_code, found.headers["location"]) == (303, f"/projects/{project.id}")
    assert Projects(database).get(project.id).settings == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "Name is &#39;&#39;; expected 1 to 80 characters"),
        ({"name": "a\u200bb"}, "Name is"),
        ({"name": "x" * 81}, "Name is"),
        ({"criterion": ""}, "Criterion is"),
        ({"criterion": "a\0b"}, "holds bytes that are no text"),
        ({"num_responses": "four"}, "Responses shown together is &#39;four&#39;; expected a whole number"),
        ({"num_responses": "1"}, "Responses shown together is 1; expected 2 or more"),
        ({"num_responses": "9" * 5000}, "Responses shown together is"),
        ({"overlap": "0"}, "Annotators for each item is 0"),
        ({"gold_rate": "nan"}, "Share of gold items is nan"),
        ({"gold_rate": "0.5", "again_rate": "0.5"}, "Share of gold items is 0.5; expected less than 1 together with Share of repetitions"),
        ({"compare": "guess"}, "Comparison is &#39;guess&#39;; expected one of rank, pairwise, none"),
        ({"compare": "none"}, "expected something to ask"),
        ({"ratings": "x" * 41}, "Ratings is"),
        ({"flags": "rude, rude"}, "Flags is"),
    ],
)
def test_settings_that_make_no_project_are_told_and_what_was_typed_stays(
    lead: Person, database: Database, change: dict[str, str], message: str
) -> None:
    fields = {**typed(lead.get("/projects/new").text), "name": "P", "guidelines": "Typed by hand", **change}
    found = lead.submit("/projects/new", dict(fields))
    assert found.status_code == 422
    assert message in found.text
    if "criterion" not in change:
        assert "Typed by hand" in found.text
    assert Projects(database).all() == []


def test_a_name_that_is_taken_is_a_conflict(lead: Person, project: Project, database: Database) -> None:
    found = lead.submit("/projects/new", {**typed(lead.get("/projects/new").text), "name": project.name, "guidelines": "Typed by hand"})
    assert found.status_code == 409
    assert "there is a project &#39;Kind answers&#39; already" in found.text
    assert "Typed by hand" in found.text


def test_of_two_leads_the_second_is_told_and_keeps_what_was_typed(person: Join, project: Project, database: Database) -> None:
    path = f"/projects/{project.id}/settings"
    first, second = person("Lea", "lead"), person("Leo", "lead")
    forms = [typed(each.get(path).text) for each in (first, second)]
    assert first.submit(path, {**forms[0], "criterion": "Which is kinder?"}).status_code == 303
    told = second.submit(path, {**forms[1], "criterion": "Which is <truer>?"})
    assert told.status_code == 409
    assert "someone else has changed this project meanwhile" in told.text
    assert "Which is &lt;truer&gt;?</textarea>" in told.text
    assert "now</span> Which is kinder?" in told.text
    assert Projects(database).get(project.id).settings.criterion == "Which is kinder?"
    again = typed(told.text)
    assert again["revision"] == "2"
    assert second.submit(path, {**again, "criterion": "Which is truer?"}).status_code == 303
    assert Projects(database).get(project.id).settings.criterion == "Which is truer?"


def test_a_comparison_that_the_items_do_not_allow_is_told(lead: Person, project: Project) -> None:
    path = f"/projects/{project.id}/settings"
    found = lead.submit(path, {**typed(lead.get(path).text), "compare": "pairwise"})
    assert found.status_code == 422
    assert "make another" in found.text


def test_guidelines_and_their_preview_run_nothing(lead: Person, person: Join, database: Database) -> None:
    text = "# Be kind\n\n<script>alert(1)</script> [x](javascript:alert(1))"
    project = Projects(database).create("P", ProjectSettings(guidelines=text), None)
    pages = [person("Ann", "annotator").get(f"/projects/{project.id}/guidelines"), lead.submit("/projects/preview", {"guidelines": text})]
    for page in pages:
        assert page.status_code == 200
        assert "<h1>Be kind</h1>" in page.text
        assert "<script>alert" not in page.text
        assert 'href="javascript' not in page.text


def test_a_project_is_archived_and_reopened(lead: Person, project: Project, database: Database) -> None:
    for archived in ("yes", "no"):
        assert lead.submit(f"/projects/{project.id}/archive", {"archived": archived}).status_code == 303
        assert Projects(database).get(project.id).archived == (archived == "yes")


@pytest.mark.parametrize("path", ["settings", "import", "guidelines"])
@pytest.mark.parametrize(("number", "status"), [("999", 404), ("999999999999999999999", 422), ("x", 422)])
def test_projects_that_are_not_there(lead: Person, path: str, number: str, status: int) -> None:
    assert lead.get(f"/projects/{number}/{path}").status_code == status


CONVERSATION = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b"}
RESPONSES = [{"prompt": "Why?", "response": text} for text in "abcab"]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ([RANKING], [3]),
        ([PAIR], [2]),
        ([CONVERSATION], [2]),
        (RESPONSES, [3]),
        ([{**RANKING, "responses": list("abcde"), "ranks": [1, 2, 3, 4, 5]}], [3, 2]),
        ([{**RANKING, "responses": ["a", "b", "a"]}], [2]),
    ],
)
def test_rows_become_items_whose_judgement_is_not_taken_over(lead: Person, database: Database, rows: list[Any], sizes: list[int]) -> None:
    project = Projects(database).create("P", ProjectSettings(num_responses=3), None)
    found = upload(lead, project, row_of(rows))
    assert found.status_code == 200
    assert "New items, from rows of" in found.text
    with database.read() as session:
        counts = [len(FeedbackStore(database).responses(prompt)) for prompt in FeedbackStore(database).prompts()]
        assert session.query(ItemRow).count() == len(sizes)
    assert counts == [sum(sizes)]
    assert FeedbackStore(database).judgements() == []
    assert all(item.gold is None and item.remaining == 1 for item in items(database))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (json.dumps([PAIR]).encode(), "data.json"),
        (b"prompt,chosen,rejected\nWhy?,a,b\n", "DATA.CSV"),
        (gzip.compress(row_of([PAIR])), "data.jsonl.gz"),
        (b"\xef\xbb\xbf" + row_of([PAIR]), "../../etc/passwd\r\n.jsonl"),
    ],
    ids=["json", "csv", "gz", "odd name"],
)
def test_files_of_every_kind(lead: Person, project: Project, database: Database, data: bytes, name: str) -> None:
    assert upload(lead, project, data, name).status_code == 200
    assert len(items(database)) == 6


def test_parquet_too(lead: Person, project: Project, database: Database, tmp_path: Path) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist([RANKING]), tmp_path / "data.parquet")
    assert upload(lead, project, (tmp_path / "data.parquet").read_bytes(), "data.parquet").status_code == 200
    assert len(items(database)) == 6


def test_pasted_rows(lead: Person, project: Project, database: Database) -> None:
    found = lead.submit(f"/projects/{project.id}/import", {"pasted": row_of([PAIR, RANKING | {"prompt": "How?"}][:1]).decode()})
    assert found.status_code == 200
    assert len(items(database)) == 6


def test_as_many_rows_can_be_pasted_as_a_file_may_hold(lead: Person, project: Project, database: Database) -> None:
    rows = row_of([{**PAIR, "prompt": letter, "chosen": letter * 900_000} for letter in "xy"]).decode()
    multipart = {"file": ("", b"")}
    assert lead.submit(f"/projects/{project.id}/import", {"pasted": rows}, files=multipart).status_code == 200
    assert len(items(database)) == 7
    refused = lead.submit(f"/projects/{project.id}/import", {"pasted": f"{rows}no row"}, files=multipart)
    assert refused.status_code == 422
    assert "no row</textarea>" in refused.text


def test_gold_items_have_the_ranks_of_the_file(lead: Person, project: Project, database: Database) -> None:
    rows = [RANKING, {**RANKING, "prompt": "How?", "responses": ["a", "b", "a"], "ranks": [3, 1, 2]}]
    assert upload(lead, project, row_of(rows), gold="yes").status_code == 200
    assert [(item.gold, item.remaining) for item in items(database)[5:]] == [([2, 1, 3], 0), ([2, 1], 0)]
    upload(lead, project, row_of([{**PAIR, "prompt": "Who?"}, {**PAIR, "prompt": "When?", "label": 0.5}]), gold="yes")
    assert [item.gold for item in items(database)[7:]] == [[1, 2], [1, 1]]


def test_what_comes_of_an_import_is_counted(lead: Person, database: Database) -> None:
    project = Projects(database).create("P", ProjectSettings(num_responses=2, compare="pairwise"), None)
    rows = [{"prompt": str(i), "response": text} for i, texts in enumerate(("ab", "abc", "a", "aa")) for text in texts]
    told = text_of(upload(lead, project, row_of(rows)).text)
    assert "New items, from rows of prompt + response (text): 2" in told
    assert "Prompts left out, with too few different responses to judge: 2" in told
    assert "alone after the others of their prompt were put together: 1" in told
    again = text_of(upload(lead, project, row_of([{**PAIR, "prompt": "0"}, {**PAIR, "prompt": "0", "chosen": "b"}])).text)
    assert "New items, from rows of prompt + chosen + rejected (text): 0" in again
    assert "had already, or that came twice: 1" in again
    assert "Rows skipped, for chosen and rejected are identical: 1" in again


def test_prompts_alone_wait_for_a_policy_and_the_page_says_how_to_start_one(lead: Person, project: Project, database: Database) -> None:
    rows = row_of([{"prompt": "Why?"}, {"prompt": "How?"}, {"prompt": "Why?"}])
    told = text_of(upload(lead, project, rows).text)
    assert "New prompts, from rows of prompt (text), which wait for a policy to answer them: 2" in told
    assert "2 prompts wait for a policy" in told
    assert "heed feedback sample --policy FOLDER DATABASE &#39;Kind answers&#39;" in told
    assert "were answered by a policy, or came twice: 2" in text_of(upload(lead, project, rows).text)
    assert len(items(database)) == 5
    assert WaitingPrompts(database).count(project.id) == 2
    for path in (f"/projects/{project.id}", f"/projects/{project.id}/live"):
        assert "2 prompts wait for a policy" in text_of(lead.get(path).text)


def test_the_command_of_a_project_whose_name_begins_with_a_dash_takes_it_for_no_option(lead: Person, database: Database) -> None:
    project = Projects(database).create("-x", ProjectSettings(), None)
    told = text_of(upload(lead, project, row_of([{"prompt": "Why?"}])).text)
    assert "heed feedback sample --policy FOLDER -- DATABASE -x" in told


def test_a_lead_clears_waiting_prompts_on_the_import_page(lead: Person, person: Join, project: Project, database: Database) -> None:
    page, clear = f"/projects/{project.id}/import", f"/projects/{project.id}/prompts/clear"
    assert clear not in lead.get(page).text
    upload(lead, project, row_of([{"prompt": "Why?"}, {"prompt": "How?"}]))
    assert f'action="{clear}"' in lead.get(page).text
    assert person("Ann", "annotator").submit(clear).status_code == 403
    assert lead.submit(clear, {"csrf": "forged"}).status_code == 403
    assert WaitingPrompts(database).count(project.id) == 2
    done = lead.submit(clear)
    assert (done.status_code, done.headers["location"]) == (303, page)
    assert WaitingPrompts(database).count(project.id) == 0
    assert clear not in lead.get(page).text
    assert len(items(database)) == 5
    assert lead.submit("/projects/99/prompts/clear").status_code == 404
    assert "which wait for a policy to answer them: 1" in text_of(upload(lead, project, row_of([{"prompt": "Why?"}])).text)


def test_of_a_file_that_is_refused_no_prompt_waits(lead: Person, project: Project, database: Database) -> None:
    conversation = {"messages": [{"role": "user", "content": "Hello"}]}
    for rows, fields in (([conversation], {}), ([{"prompt": "Why?"}], {"gold": "yes"}), ([{"prompt": "Why?"}, {"prompt": 3}], {})):
        assert upload(lead, project, row_of(rows), **fields).status_code == 422
    assert WaitingPrompts(database).count(project.id) == 0


def test_conversations_with_and_without_a_response_become_items_and_wait(lead: Person, database: Database) -> None:
    project = Projects(database).create("P", ProjectSettings(num_responses=2), None)
    hello = {"role": "user", "content": "Hello"}
    rows = [{"messages": [hello, {"role": "assistant", "content": text}]} for text in ("Hi", "Bye")]
    told = text_of(upload(lead, project, row_of([*rows, {"messages": [{"role": "user", "content": "Why?"}]}])).text)
    assert "New items, from rows of messages (conversations): 1" in told
    assert "New prompts, from rows of messages (conversations), which wait for a policy to answer them: 1" in told


def test_who_has_nothing_left_is_told_how_many_prompts_wait_and_when_more_is_there(person: Join, database: Database) -> None:
    project = Projects(database).create("P", ProjectSettings(num_responses=2), None)
    waiting, annotator = WaitingPrompts(database), person("Ann", "annotator")
    assert "All done" in annotator.get(f"/projects/{project.id}/label").text
    waiting.add(project.id, [Prompt("Why?")], None)
    page = annotator.get(f"/projects/{project.id}/label").text
    assert "In P, 1 prompt still waits for responses" in text_of(page)
    assert f'hx-get="/projects/{project.id}/more"' in page
    asked = annotator.get(f"/projects/{project.id}/more")
    assert (asked.status_code, "hx-refresh" in asked.headers) == (204, False)
    batch = waiting.take(project.id, 1)
    assert batch is not None
    waiting.answer(batch, [[Response("a"), Response("b")]])
    assert annotator.get(f"/projects/{project.id}/more").headers["hx-refresh"] == "true"
    assert "Why?" in annotator.get(f"/projects/{project.id}/label").text
    assert person("Vic", "viewer").get(f"/projects/{project.id}/more").status_code == 403


def test_the_page_of_who_has_nothing_left_is_loaded_again_when_no_prompt_waits_any_more(person: Join, database: Database) -> None:
    project = Projects(database).create("P", ProjectSettings(num_responses=2), None)
    waiting, annotator = WaitingPrompts(database), person("Ann", "annotator")
    waiting.add(project.id, [Prompt("Why?"), Prompt("How?")], None)
    assert "In P, 2 prompts still wait for responses" in text_of(annotator.get(f"/projects/{project.id}/label").text)
    waiting.clear(project.id, None)
    assert annotator.get(f"/projects/{project.id}/more").headers["hx-refresh"] == "true"
    page = annotator.get(f"/projects/{project.id}/label").text
    assert "All done" in page
    assert "hx-get" not in page  # or it would load itself again and again


HALF = row_of([RANKING])[:-10]


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (row_of([PAIR]) + b"\xff\n", "d.jsonl", "d.jsonl:2: byte 0xff is not UTF-8"),
        (row_of([PAIR]) + HALF, "d.jsonl", "d.jsonl:2: "),
        (b"[" + row_of([PAIR]), "d.json", "d.json:2: no comma or closing bracket"),
        (b"[" * 100_000, "d.json", "d.json:1: "),
        (row_of([PAIR, {**PAIR, "rejected": None}]), "d.jsonl", "d.jsonl:2: `rejected` is missing"),
        (row_of([PAIR, {**PAIR, "prompt": "a\0b"}]), "d.jsonl", "d.jsonl:2: a text with a NUL character"),
        (row_of([{**PAIR, "prompt": "\ud800"}]), "d.jsonl", "d.jsonl:1: `prompt` holds half a character"),
        (row_of([PAIR, CONVERSATION]), "d.jsonl", "d.jsonl:2: a row of prompt + chosen + rejected (conversations)"),
        (row_of([CONVERSATION]), "d.jsonl", "plain texts and conversations together"),
        (row_of([{**RANKING, "ranks": [1, 2]}]), "d.jsonl", "d.jsonl:1: 2 `ranks` for 3 `responses`"),
        (row_of([{**RANKING, "responses": ["a"], "ranks": [1]}]), "d.jsonl", "d.jsonl:1: `responses` is a list of 1"),
        (b"", "d.jsonl", "d.jsonl: there are no rows"),
        (b"prompt,chosen\na,b,c\n", "d.csv", "d.csv:2: 3 cells"),
        (b"PAR1 nonsense", "d.parquet", "d.parquet: broken parquet data"),
        (b"no gzip", "d.jsonl.gz", "d.jsonl.gz: broken gzip data"),
        (gzip.compress(row_of([PAIR] * 100))[:-12], "d.jsonl.gz", "d.jsonl.gz: the gzip stream breaks off"),
        (gzip.compress(b" " * 300_000), "d.jsonl.gz", "d.jsonl.gz: more than 0 MB of data"),
        (row_of([PAIR]), "d.exe", "&#39;d.exe&#39; is no kind of data heed reads; expected a file ending in .jsonl"),
        (row_of([PAIR]), "allenai/real-toxicity-prompts", "is no kind of data heed reads"),
        (row_of([PAIR]), "<script>.txt", "&#39;&lt;script&gt;.txt&#39; is no kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_a_bad_file_is_told_by_its_place_and_nothing_of_it_is_kept(
    lead: Person, project: Project, database: Database, monkeypatch: pytest.MonkeyPatch, data: bytes, name: str, message: str
) -> None:
    monkeypatch.setattr(uploads, "MAX_UNPACKED", 200_000)
    before = FeedbackStore(database).counts()
    found = upload(lead, project, data, name)
    assert found.status_code == 422
    assert message in found.text, text_of(found.text)
    assert "Nothing was imported" in found.text
    assert "heed-upload" not in found.text
    assert (len(items(database)), FeedbackStore(database).counts()) == (5, before)


def test_a_small_parquet_file_does_not_unpack_to_much(
    lead: Person, project: Project, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [{"prompt": "x" * 10_000, "chosen": "a", "rejected": "b"}] * 1000
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "bomb.parquet")
    data = (tmp_path / "bomb.parquet").read_bytes()
    assert len(data) < 10_000
    monkeypatch.setattr(uploads, "MAX_UNPACKED", 2**20)
    found = upload(lead, project, data, "bomb.parquet")
    assert found.status_code == 422
    assert "bomb.parquet: more than 1 MB of data" in found.text


@pytest.mark.parametrize(
    ("fields", "file", "message"),
    [
        ({}, None, "neither a file nor pasted rows"),
        ({"pasted": json.dumps(PAIR)}, row_of([PAIR]), "both a file and pasted rows"),
        ({"gold": "yes"}, row_of(RESPONSES), "rows of prompt + response (text) have no right answer"),
        (
            {"gold": "yes"},
            row_of([RANKING, {**RANKING, "prompt": "x", "responses": list("abcd"), "ranks": [1, 2, 3, 4]}]),
            "data.jsonl:2: 4 responses with one right answer; expected at most 3",
        ),
        ({"pasted": '{"prompt": "<b>'}, None, "pasted.jsonl:1: "),
    ],
)
def test_imports_that_make_no_sense(
    lead: Person, project: Project, database: Database, fields: dict[str, str], file: bytes | None, message: str
) -> None:
    path = f"/projects/{project.id}/import"
    found = upload(lead, project, file, **fields) if file else lead.submit(path, dict(fields))
    assert found.status_code == 422
    assert message in found.text, text_of(found.text)
    assert "<b>" not in found.text
    assert len(items(database)) == 5


def test_a_request_that_is_too_large_is_refused(lead: Person, project: Project) -> None:
    found = upload(lead, project, b"x" * (64 * 2**20 + 1))
    assert found.status_code == 413
