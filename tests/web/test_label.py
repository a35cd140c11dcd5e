"""The annotator's page, without a script: what it shows, and what becomes of its forms."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from heed.errors import UserError
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import AnswerRow, JudgementRow, LeaseRow
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Answer, Tasks, check_answer
from heed.records import Message, Prompt, Response
from heed.web.label import fields_of, letter, read_answer
from tests.web.conftest import Person, text_of

Make = Callable[..., Person]
RANKED: dict[str, object] = {"rank_0": "2", "rank_1": "1", "rank_2": "2", "ideal": "", "note": ""}


def lease_on(page: str) -> str:
    found = re.search(r'action="/tasks/(\d+)/answer"', page)
    assert found is not None
    return found[1]


def undo_on(person: Person, page: str):
    """Press Undo on a page, without following where that leads."""
    found = re.search(r'action="(/projects/\d+/undo)".*?name="answer" value="(\d+)"', page, re.DOTALL)
    assert found is not None
    return person.submit(found[1], {"answer": found[2]})


def make(database: Database, *, prompts: list[Prompt] | None = None, **settings: object) -> Project:
    projects = Projects(database)
    made = projects.create("P", ProjectSettings(**settings), None)  # pyright: ignore[reportArgumentType]
    texts = ["one", "two", "three", "four"][: made.settings.num_responses]
    items = [(prompt, [Response(text, model="gpt-secret") for text in texts]) for prompt in prompts or [Prompt("Q?")]]
    projects.add_items(made.id, items, None)
    return made


def test_a_task_shows_what_is_asked_and_never_who_wrote_it(person: Make, database: Database) -> None:
    project = make(database, ratings=("helpful",), ideal=True, guidelines="Be **kind**.", criterion="Which is kinder?")
    page = person("Ann", "annotator").get(f"/projects/{project.id}/label")
    for part in ("Which is kinder?", "Q?", "one", "two", "three", "four", "Be kind", "helpful", "toxic", "0 today", "Ideal response"):
        assert part in text_of(page.text)
    assert "secret" not in page.text


def test_responses_keep_their_order_however_often_the_page_is_loaded(person: Make, database: Database) -> None:
    project = make(database)
    ann = person("Ann", "annotator")
    pages = [text_of(ann.get(f"/projects/{project.id}/label").text) for _ in range(5)]
    orders = [sorted(("one", "two", "three", "four"), key=page.index) for page in pages]
    assert orders == [orders[0]] * 5


def test_a_ranking_is_stored_as_it_was_shown(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    task = Tasks(database).next(project.id, ann.account.id)
    assert task is not None
    done = ann.submit(f"/tasks/{task.lease_id}/answer", {**RANKED, "note": "a\r\nb"})
    assert (done.status_code, done.headers["location"]) == (303, f"/projects/{project.id}/label")
    (judgement,) = FeedbackStore(database).judgements()
    assert dict(zip(judgement.responses, judgement.ranks, strict=True)) == dict(zip(task.responses, (2, 1, 2), strict=True))
    assert (judgement.annotator, judgement.note) == ("Ann", "a\nb")
    assert "1 today" in text_of(ann.get(f"/projects/{project.id}/label").text)


def test_a_preference_of_two_has_a_side_and_a_strength(person: Make, database: Database) -> None:
    project = make(database, compare="pairwise", num_responses=2, prompts=[Prompt(str(i)) for i in range(3)])
    ann = person("Ann", "annotator")
    for strength, ranks in (("-3", (1, 2)), ("0", (1, 1)), ("4", (2, 1))):
        task = Tasks(database).next(project.id, ann.account.id)
        assert task is not None
        assert ann.submit(f"/tasks/{task.lease_id}/answer", {"strength": strength, "note": ""}).status_code == 303
        judgement = FeedbackStore(database).judgements()[-1]
        assert dict(zip(judgement.responses, judgement.ranks, strict=True)) == dict(zip(task.responses, ranks, strict=True))
    with database.read() as session:
        assert list(session.scalars(select(AnswerRow.strength).order_by(AnswerRow.id))) == [3, 0, 4]


def test_ratings_flags_and_the_ideal_response_are_kept_in_one_answer(person: Make, database: Database) -> None:
    project = make(database, num_responses=2, ratings=("helpful", "honest"), ideal=True)
    ann = person("Ann", "annotator")
    task = Tasks(database).next(project.id, ann.account.id)
    assert task is not None
    rated = {"rating_helpful_0": "7", "rating_helpful_1": "1", "rating_honest_0": "4", "rating_honest_1": "5"}
    flagged = {"flag_toxic_1": "on", "flag_made%20up_0": "on"}
    fields: dict[str, object] = {"rank_0": "1", "rank_1": "2", **rated, **flagged, "ideal": "best", "note": ""}
    assert ann.submit(f"/tasks/{task.lease_id}/answer", fields).status_code == 303
    shown = Tasks(database).undo(project.id, ann.account.id)
    assert shown is not None
    assert shown.responses == task.responses
    assert shown.answer == Answer(
        ranks=(1, 2), ratings={"helpful": (7, 1), "honest": (4, 5)}, flags={"toxic": (1,), "made up": (0,)}, ideal="best"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank_2": None},
        {"rank_1": ""},
        {"rank_1": "0"},
        {"rank_1": "4"},
        {"rank_1": "one"},
        {"rank_1": "1.0"},
        {"rank_1": "9" * 5000},
        {"rank_0": "2", "rank_1": "2", "rank_2": "3"},
        {"rank_3": "1"},
        {"strength": "1"},
        {"rating_helpful_0": "1"},
        {"flag_rude_0": "on"},
        {"ideal": "not asked for"},
        {"note": "x" * 20_001},
    ],
)
def test_a_form_that_will_not_do_comes_back_as_it_was(
    person: Make, project: Project, database: Database, wrong: dict[str, str | None]
) -> None:
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    fields = {name: value for name, value in {**RANKED, "note": "my <note>", "flag_harmful_1": "on", **wrong}.items() if value is not None}
    back = ann.submit(f"/tasks/{lease}/answer", fields)
    assert back.status_code == 422
    assert "Not saved" in text_of(back.text)
    assert lease_on(back.text) == lease
    assert re.search(r'name="flag_harmful_1" checked', back.text)
    if "note" not in wrong:
        assert "my &lt;note&gt;</textarea>" in back.text
    kept = {name: value for name, value in fields.items() if name.startswith("rank_") and value in ("1", "2", "3") and name != "rank_3"}
    for name, value in kept.items():
        assert re.search(rf'name="{name}" value="{value}" required checked', back.text)
    with database.read() as session:
        assert session.scalars(select(JudgementRow)).all() == []


ODD = ("5\" & 'tall'", "a_0", "50%_0", "é, <b>")
"""Names of attributes that a form must not mix up."""


def fill_in(page: str, **values: str) -> dict[str, object]:
    """What a browser sends of a page: its ratings and flags as told by what stands beside them, and the rest as it is."""
    fields: dict[str, object] = {"rank_0": "1", "rank_1": "2", "ideal": "", "note": ""}
    fields |= dict(re.findall(r'name="(revision)" value="(\d+)"', page))
    for legend, name in re.findall(r'<fieldset class="choices rating">\s*<legend>([^<]*)</legend>.*?name="([^"]*)"', page, re.DOTALL):
        fields[html.unescape(name)] = values[html.unescape(legend)]
    for name, label in re.findall(r'name="(flag_[^"]*_0)".*?</kbd>([^<]*)</span>', page):
        fields |= {html.unescape(name): "on"} if html.unescape(label) in values else {}
    return fields


def test_an_answer_is_stored_by_the_names_that_were_shown_whatever_their_order_now(person: Make, database: Database) -> None:
    project = make(database, num_responses=2, ratings=ODD, flags=ODD)
    ann = person("Ann", "annotator")
    page = ann.get(f"/projects/{project.id}/label").text
    said = fill_in(page, **{name: str(i + 1) for i, name in enumerate(ODD)})
    del said["flag_50%25_0_0"]
    Projects(database).change(project.id, replace(project.settings, ratings=ODD[::-1], flags=("new", *ODD[::-1])), 1, None)
    assert ann.submit(f"/tasks/{lease_on(page)}/answer", said).status_code == 303
    shown = Tasks(database).undo(project.id, ann.account.id)
    assert shown is not None
    assert shown.answer is not None
    assert shown.answer.ratings == {name: (i + 1, i + 1) for i, name in enumerate(ODD)}
    assert shown.answer.flags == dict.fromkeys((ODD[0], ODD[1], ODD[3]), (0,))


@pytest.mark.parametrize(
    "change",
    [
        {"ratings": ("kind",)},
        {"ratings": ("kind", "true", "short")},
        {"ratings": ("kind", "honest")},
        {"flags": ("harmful",)},
        {"compare": "pairwise"},
        {"ideal": False},
    ],
)
def test_an_answer_that_no_longer_fits_what_is_asked_is_shown_again(person: Make, database: Database, change: dict[str, object]) -> None:
    project = make(database, num_responses=2, ratings=("kind", "true"), flags=("toxic", "harmful"), ideal=True)
    ann = person("Ann", "annotator")
    page = ann.get(f"/projects/{project.id}/label").text
    said = fill_in(page, kind="3", true="4", toxic="") | {"ideal": "A better one", "note": "mine"}
    Projects(database).change(project.id, replace(project.settings, **change), 1, None)  # pyright: ignore[reportArgumentType]
    back = ann.submit(f"/tasks/{lease_on(page)}/answer", said)
    assert back.status_code == 409
    assert "Not saved: what is asked was changed while this page was open; look through it again, then save" in text_of(back.text)
    assert lease_on(back.text) == lease_on(page)
    assert FeedbackStore(database).judgements() == []
    assert 'name="rating_kind_1" value="3" required checked' in back.text
    assert "mine</textarea>" in back.text
    assert "A better one" in back.text
    asked = {"kind": "3", "true": "4", "short": "1", "honest": "2", "toxic": "", "strength": "-1"}
    again = fill_in(back.text, **asked) | {"strength": "-1"}
    again = {name: value for name, value in again.items() if name == "revision" or f'name="{name}"' in back.text}
    assert ann.submit(f"/tasks/{lease_on(back.text)}/answer", again).status_code == 303


def test_an_ideal_response_may_be_as_long_as_a_response(person: Make, database: Database) -> None:
    project = make(database, num_responses=3, ideal=True)
    ann = person("Ann", "annotator")
    page = ann.get(f"/projects/{project.id}/label").text
    assert '<textarea id="ideal" name="ideal" rows="8" maxlength="1000000"' in page
    assert ann.submit(f"/tasks/{lease_on(page)}/answer", {**RANKED, "ideal": "é" * 1_000_001}).status_code == 422
    assert ann.submit(f"/tasks/{lease_on(page)}/answer", {**RANKED, "ideal": "é" * 1_000_000}).status_code == 303


def test_a_form_sent_twice_is_kept_once(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    for _ in range(3):
        assert ann.submit(f"/tasks/{lease}/answer", RANKED).headers["location"] == f"/projects/{project.id}/label"
    assert len(FeedbackStore(database).judgements()) == 1


def test_an_answer_that_comes_too_late_is_told_on_the_next_page(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    assert ann.submit(f"/tasks/{lease}/skip", {"reason": "I do not know enough to judge", "words": ""}).status_code == 303
    late = ann.post(f"/tasks/{lease}/answer", data={"csrf": ann.csrf, **RANKED})
    assert late.status_code == 409
    assert "Not saved: this task was skipped; go on with the next one" in text_of(late.text)
    assert lease_on(late.text) != lease
    assert FeedbackStore(database).judgements() == []


def test_what_was_written_and_came_too_late_can_be_read_on_the_next_page(person: Make, database: Database) -> None:
    project = make(database, ideal=True, num_responses=3)
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    ann.submit(f"/tasks/{lease}/answer", RANKED)
    late = ann.submit(f"/tasks/{lease}/answer", {**RANKED, "ideal": "A long & good answer", "note": "mine"})
    assert late.status_code == 409
    assert "All done" in text_of(late.text)
    assert "Not saved: this task was answered already; undo that answer first" in text_of(late.text)
    assert "A long &amp; good answer\n\nmine</p>" in late.text
    assert [j.note for j in FeedbackStore(database).judgements()] == [""]


def test_a_lease_of_someone_else_is_not_found(person: Make, project: Project, database: Database) -> None:
    ann, bob = person("Ann", "annotator"), person("Bob", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    for forged in (lease, "0", "-1", "999", str(2**40), str(2**80)):
        assert bob.submit(f"/tasks/{forged}/answer", RANKED).status_code == 404
        assert bob.submit(f"/tasks/{forged}/skip", {"reason": "x"}).status_code == 404
    assert bob.submit("/tasks/one/answer", RANKED).status_code == 422
    assert FeedbackStore(database).judgements() == []


def test_forms_without_the_token_of_the_session_change_nothing(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    for path in (f"/tasks/{lease}/answer", f"/tasks/{lease}/skip", f"/projects/{project.id}/undo"):
        assert ann.post(path, data={**RANKED, "reason": "x", "csrf": "guess"}).status_code == 403
    assert FeedbackStore(database).judgements() == []


def test_a_viewer_may_not_label(person: Make, project: Project) -> None:
    assert person("Vic", "viewer").get(f"/projects/{project.id}/label").status_code == 403


def test_a_skip_says_why_and_brings_the_next_task(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    first = lease_on(ann.get(f"/projects/{project.id}/label").text)
    ann.submit(f"/tasks/{first}/skip", {"reason": "I would rather not read this", "words": "too sad"})
    second = lease_on(ann.get(f"/projects/{project.id}/label").text)
    ann.submit(f"/tasks/{second}/skip", {"words": "it is empty"})
    with database.read() as session:
        said = [(row.skipped, row.note) for row in session.scalars(select(AnswerRow).order_by(AnswerRow.id))]
    assert said == [("I would rather not read this", "too sad"), ("it is empty", "")]
    third = lease_on(ann.get(f"/projects/{project.id}/label").text)
    said = {**RANKED, "note": "my note", "flag_harmful_1": "on"}
    refused = ann.submit(f"/tasks/{third}/skip", {"words": "  ", **said})
    assert refused.status_code == 422
    assert lease_on(refused.text) == third
    for control in ('name="rank_0" value="2" required checked', 'name="flag_harmful_1" checked', "my note</textarea>"):
        assert control in refused.text
    too_long = ann.submit(f"/tasks/{third}/skip", {"words": "x" * 20_001, "reason": "", **said})
    assert too_long.status_code == 422
    assert f'value="{"x" * 20_001}"' in too_long.text


def test_undo_shows_the_last_task_with_its_answer(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    ann.submit(f"/tasks/{lease}/answer", {**RANKED, "note": "hm", "flag_toxic_2": "on"})
    path = f"/projects/{project.id}/label"
    assert undo_on(ann, ann.get(path).text).headers["location"] == path
    page = ann.get(path).text
    assert lease_on(page) == lease
    for control in (
        'name="rank_0" value="2" required checked',
        'name="rank_1" value="1" required checked',
        'name="flag_toxic_2" checked',
        "hm</textarea>",
    ):
        assert control in page
    assert FeedbackStore(database).judgements() == []
    assert "no answer of yours" in text_of(undo_on(ann, page).text)


def test_undo_takes_back_the_answer_that_its_page_names_and_no_other(person: Make, project: Project, database: Database) -> None:
    ann, path = person("Ann", "annotator"), f"/projects/{project.id}/label"
    pages = [ann.get(path).text]
    for _ in range(3):
        ann.submit(f"/tasks/{lease_on(pages[-1])}/answer", RANKED)
        pages.append(ann.get(path).text)
    for _ in range(2):
        assert undo_on(ann, pages[3]).headers["location"] == path
    assert len(FeedbackStore(database).judgements()) == 2
    assert "you have given another answer since" in text_of(undo_on(ann, pages[1]).text)
    assert "you have given another answer since" in text_of(undo_on(ann, pages[0]).text)
    assert len(FeedbackStore(database).judgements()) == 2
    assert lease_on(ann.get(path).text) == lease_on(pages[2])


def test_of_undos_at_the_same_time_one_counts(person: Make, project: Project, database: Database) -> None:
    ann, path = person("Ann", "annotator"), f"/projects/{project.id}/label"
    for _ in range(4):
        ann.submit(f"/tasks/{lease_on(ann.get(path).text)}/answer", RANKED)
    page = ann.get(path).text
    with ThreadPoolExecutor(4) as pool:
        assert {found.result().status_code for found in [pool.submit(undo_on, ann, page) for _ in range(4)]} == {303}
    assert len(FeedbackStore(database).judgements()) == 3


def test_the_page_after_the_last_task_says_so_and_lets_it_be_undone(person: Make, database: Database) -> None:
    project = make(database, num_responses=3)
    ann = person("Ann", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    page = ann.post(f"/tasks/{lease}/answer", data={"csrf": ann.csrf, **RANKED}).text
    assert "All done" in text_of(page)
    assert f'action="/projects/{project.id}/undo"' in page
    assert undo_on(ann, page).status_code == 303
    assert lease_on(ann.get(f"/projects/{project.id}/label").text) == lease


def test_the_daily_cap_ends_the_day(person: Make, project: Project, database: Database) -> None:
    ann = person("Ann", "annotator")
    Accounts(database).change(ann.account.id, ann.account.id, daily_cap=1, avoid=[])
    page = ann.get(f"/projects/{project.id}/label").text
    assert "0 of 1 today" in text_of(page)
    assert "Enough for today" in text_of(ann.post(f"/tasks/{lease_on(page)}/answer", data={"csrf": ann.csrf, **RANKED}).text)


def test_a_closed_project_says_so(person: Make, project: Project, database: Database) -> None:
    Projects(database).archive(project.id, None)
    assert "closed" in text_of(person("Ann", "annotator").get(f"/projects/{project.id}/label").text)


def test_what_is_left_counts_down_for_each_annotator(person: Make, database: Database) -> None:
    project = make(database, num_responses=3, overlap=2, prompts=[Prompt(str(i)) for i in range(3)])
    ann, bob = person("Ann", "annotator"), person("Bob", "annotator")
    path = f"/projects/{project.id}/label"
    seen = []
    for _ in range(3):
        page = ann.get(path).text
        seen.append(re.findall(r"(\d+) left", page))
        ann.submit(f"/tasks/{lease_on(page)}/answer", RANKED)
    assert seen == [["2"], ["1"], []]
    assert "2 left" in text_of(bob.get(path).text)


def test_what_is_left_leaves_out_what_the_annotator_avoids_however_it_is_written(person: Make, database: Database) -> None:
    prompts = [Prompt("a"), Prompt("b"), Prompt("c", {"categories": "VIOLENCE, gore"}), Prompt("d", {"categories": "Straße"})]
    project = make(database, num_responses=3, prompts=prompts)
    ann, bob = person("Ann", "annotator"), person("Bob", "annotator")
    Accounts(database).change(ann.account.id, ann.account.id, daily_cap=None, avoid=["violence", "STRASSE"])
    assert "1 left" in text_of(ann.get(f"/projects/{project.id}/label").text)
    assert "2 left" in text_of(bob.get(f"/projects/{project.id}/label").text)


def test_content_with_a_harm_tag_is_covered_and_named(person: Make, database: Database) -> None:
    project = make(database, prompts=[Prompt("Gore?", {"categories": "violence, <b>"})])
    page = person("Ann", "annotator").get(f"/projects/{project.id}/label").text
    assert 'id="reveal"' in page
    assert "violence, <b>" not in page
    assert "violence, &lt;b&gt;" in page


def test_content_without_a_tag_is_not_covered(person: Make, project: Project) -> None:
    assert 'id="reveal"' not in person("Ann", "annotator").get(f"/projects/{project.id}/label").text


def test_nothing_in_a_task_gets_out_of_its_place(person: Make, database: Database) -> None:
    evil = '"></textarea><script>alert(1)</script><img src=x onerror=alert(1)>'
    settings = ProjectSettings(num_responses=2, criterion=evil, guidelines=evil, ratings=("<b>r",), flags=("<b>f",), ideal=True)
    project = Projects(database).create(evil[:70], settings, None)
    prompt = Prompt((Message("<script>", evil), Message("user", evil)), {"categories": evil})
    Projects(database).add_items(project.id, [(prompt, [Response(evil), Response(evil * 2)])], None)
    ann = person("Ann", "annotator")
    page = ann.get(f"/projects/{project.id}/label?notice={evil}")
    back = ann.submit(f"/tasks/{lease_on(page.text)}/answer", {"ideal": evil, "note": evil})
    for shown in (page.text, back.text):
        assert re.findall(r"<script[^>]*>", shown) == ['<script src="/static/label.js">']
        assert "<img" not in shown
        assert not re.search(r"\son\w+=[^&]*>", re.sub(r"\"[^\"]*\"", '""', re.sub(r">[^<]*<", "><", shown)))
        assert 'style="' not in shown


def test_every_control_has_a_name_for_those_who_do_not_see_it(person: Make, database: Database) -> None:
    project = make(database, ratings=("helpful",), ideal=True)
    page = person("Ann", "annotator").get(f"/projects/{project.id}/label").text
    for control in re.findall(r'<textarea id="(\w+)"', page):
        assert f'<label for="{control}">' in page
    assert page.count("<fieldset") == page.count("<legend")


@given(st.data())
def test_a_form_and_its_answer_are_one(data: st.DataObject) -> None:
    compare: Literal["rank", "pairwise", "none"] = data.draw(st.sampled_from(["rank", "pairwise", "none"]))
    count = 2 if compare == "pairwise" else data.draw(st.integers(2, 5))
    settings = ProjectSettings(compare=compare, num_responses=count, ratings=("helpful", "kind"), ideal=True)
    ranks = strength = None
    if compare == "rank":
        ranks = tuple(data.draw(st.lists(st.integers(1, count), min_size=count, max_size=count).filter(lambda found: 1 in found)))
    elif compare == "pairwise":
        strength = data.draw(st.integers(0, 4))
        ranks = (1, 1) if strength == 0 else data.draw(st.sampled_from([(1, 2), (2, 1)]))
    answer = Answer(
        ranks=ranks,
        strength=strength,
        ratings={name: tuple(data.draw(st.lists(st.integers(1, 7), min_size=count, max_size=count))) for name in settings.ratings},
        flags={"toxic": tuple(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))},
        ideal=data.draw(st.text(max_size=5)),
        note=data.draw(st.text(max_size=5)),
    )
    assert read_answer(fields_of(answer, settings), settings, count) == answer


@given(
    st.dictionaries(
        st.sampled_from(["rank_0", "rank_1", "strength", "rating_kind_0", "rating_kind_1", "flag_toxic_0", "x"]), st.text(max_size=3)
    )
)
def test_any_form_is_read_or_refused(fields: dict[str, str]) -> None:
    comparisons: tuple[Literal["rank", "pairwise"], ...] = ("rank", "pairwise")
    for compare in comparisons:
        settings = ProjectSettings(compare=compare, num_responses=2, ratings=("kind",))
        complete = {"rank_0", "rank_1"} if compare == "rank" else {"strength"}
        try:
            check_answer(read_answer(fields, settings, 2), settings, 2)
        except UserError:
            continue
        assert set(fields) - {"flag_toxic_0"} == complete | {"rating_kind_0", "rating_kind_1"}


def test_responses_are_called_by_letters_and_past_z_by_numbers() -> None:
    assert [letter(0), letter(3), letter(25), letter(26)] == ["A", "D", "Z", "27"]


@pytest.mark.parametrize("taken", [False, True])
def test_an_answer_after_the_lease_expired_counts_unless_someone_else_has_the_task(person: Make, database: Database, taken: bool) -> None:
    project = make(database, num_responses=3)
    ann, bob = person("Ann", "annotator"), person("Bob", "annotator")
    lease = lease_on(ann.get(f"/projects/{project.id}/label").text)
    with database.write() as session:
        row = session.get_one(LeaseRow, int(lease))
        row.expires_at = row.created_at
    if taken:
        assert lease_on(bob.get(f"/projects/{project.id}/label").text) != lease
    told = ann.post(f"/tasks/{lease}/answer", data={"csrf": ann.csrf, **RANKED}).text
    assert ("Not saved: this task took so long that it went to someone else" in text_of(told)) == taken
    assert len(FeedbackStore(database).judgements()) == (not taken)
