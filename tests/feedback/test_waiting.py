"""Prompts that wait for a policy: answered once each, whoever samples and whatever becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

import pytest
from sqlalchemy import select

from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.projects import Added, NotFound, Project
from heed.feedback.schema import AuditRow, ItemRow
from heed.feedback.store import FeedbackStore
from heed.feedback.waiting import TAKEN_MINUTES, AddedPrompts, Batch, WaitingPrompts
from heed.records import Message, Prompt, Response
from tests.feedback.team import Team

PROMPTS = [Prompt(f"{number}?", {"kind": "test"}) for number in range(10)]


@pytest.fixture
def team(database: Database) -> Team:
    return Team(database)


@pytest.fixture
def project(team: Team) -> Project:
    return team.project(items=0, responses=3)


@pytest.fixture
def waiting(team: Team, project: Project) -> WaitingPrompts:
    found = WaitingPrompts(team.database, team.clock)
    found.add(project.id, PROMPTS, None)
    return found


def take(waiting: WaitingPrompts, project: Project, most: int, ahead: int | None = None) -> Batch:
    batch = waiting.take(project.id, most, ahead)
    assert batch is not None
    return batch


def said(batch: Batch, letters: str = "abc", model: str = "m") -> list[list[Response]]:
    return [[Response(f"{prompt.text} {letter}", model=model) for letter in letters] for prompt in batch.prompts]


def items(team: Team) -> Sequence[ItemRow]:
    with team.database.read() as session:
        return session.scalars(select(ItemRow).order_by(ItemRow.id)).all()


def test_prompts_wait_once_each_and_that_is_in_the_log(team: Team, project: Project) -> None:
    waiting = WaitingPrompts(team.database, team.clock)
    assert waiting.add(project.id, [*PROMPTS[:3], PROMPTS[0]], None) == AddedPrompts(new=3, known=1)
    assert waiting.add(project.id, PROMPTS[2:5], None) == AddedPrompts(new=2, known=1)
    assert waiting.count(project.id) == 5
    with team.database.read() as session:
        logged = session.scalars(select(AuditRow.detail).where(AuditRow.action == "prompts.add").order_by(AuditRow.id)).all()
    assert logged == [{"project": project.id, "new": 3, "known": 1}, {"project": project.id, "new": 2, "known": 1}]


def test_projects_wait_apart(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    other = team.project("other", items=0)
    assert waiting.add(other.id, PROMPTS[:2], None) == AddedPrompts(new=2, known=0)
    waiting.answer(batch := take(waiting, other, 5), said(batch))
    assert (waiting.count(other.id), waiting.count(project.id)) == (0, 10)


def test_what_cannot_be_asked_is_refused_and_nothing_waits(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    conversation = Prompt((Message("user", "Hello"),))
    empty, items_alone = team.project("empty", items=0), team.project("items", items=1)
    for prompts, where, message in (
        ([conversation], project, "plain texts and conversations together"),
        ([conversation], items_alone, "plain texts and conversations together"),
        ([conversation, PROMPTS[0]], empty, "plain texts and conversations together"),
        ([PROMPTS[0], Prompt("a\0b")], empty, "NUL"),
        ([Prompt("a", {"kind": "\0"})], empty, "NUL"),
    ):
        with pytest.raises(UserError, match=message):
            waiting.add(where.id, prompts, None)
        assert waiting.count(where.id) == (10 if where is project else 0)
    with pytest.raises(NotFound):
        waiting.add(99, PROMPTS, None)
    waiting.add(empty.id, [conversation], None)
    with pytest.raises(UserError, match="plain texts and conversations together"):
        team.projects.add_items(empty.id, [(PROMPTS[0], [Response("a"), Response("b")])], None)


def test_a_batch_is_the_next_prompts_as_they_were_added(project: Project, waiting: WaitingPrompts) -> None:
    first, second = take(waiting, project, 4), take(waiting, project, 100)
    assert [*first.prompts, *second.prompts] == PROMPTS
    assert first.prompts[0].tags == {"kind": "test"}
    assert (first.num_responses, first.num_different) == (3, 2)
    assert waiting.take(project.id, 1) is None
    assert waiting.count(project.id) == 10


def test_responses_become_an_item_with_their_source(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 2)
    assert waiting.answer(batch, said(batch)) == Added(new=2, known=0, too_few=0, left_over=0)
    waiting.give_back(batch)
    assert waiting.count(project.id) == 8
    assert [item.prompt_id for item in items(team)] == [prompt.id for prompt in PROMPTS[:2]]
    assert FeedbackStore(team.database).responses(PROMPTS[1]) == [Response(f"1? {letter}", model="m") for letter in "abc"]
    assert waiting.add(project.id, PROMPTS[:2], None) == AddedPrompts(new=0, known=2)
    assert take(waiting, project, 100).prompts == tuple(PROMPTS[2:])


def test_a_prompt_with_one_response_again_and_again_waits_no_more(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 2)
    alike = [[Response("same")] * 3, [Response("a"), Response("b"), Response("a")]]
    assert waiting.answer(batch, alike) == Added(new=1, known=0, too_few=1, left_over=0)
    assert waiting.count(project.id) == 8


def test_no_more_is_taken_than_is_missing_until_enough_items_are_untouched(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 100, ahead=3)
    assert len(batch.prompts) == 3
    assert waiting.take(project.id, 100, ahead=3) is None  # another sampler is at them
    waiting.answer(batch, said(batch))
    assert waiting.take(project.id, 100, ahead=3) is None
    team.work(project.id, team.annotator("ann"), 1)
    team.take(project.id, team.annotator("ben"))
    assert len(take(waiting, project, 100, ahead=3).prompts) == 2


def test_an_annotator_who_is_alone_always_gets_more_though_items_wait_for_others(team: Team, waiting: WaitingPrompts) -> None:
    shared = team.project("shared", items=0, overlap=2)
    waiting.add(shared.id, PROMPTS, None)
    ann = team.annotator("ann")
    for _ in PROMPTS:
        batch = take(waiting, shared, 100, ahead=1)
        waiting.answer(batch, said(batch))
        team.work(shared.id, ann, 1)
    assert waiting.count(shared.id) == 0


def test_a_batch_that_is_given_back_or_abandoned_waits_again(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    waiting.give_back(take(waiting, project, 100))
    abandoned = take(waiting, project, 100)
    team.clock.advance(minutes=TAKEN_MINUTES - 1)
    assert waiting.take(project.id, 100) is None
    assert waiting.take(project.id, 100, ahead=10) is None
    team.clock.advance(minutes=2)
    assert take(waiting, project, 100, ahead=10).prompts == abandoned.prompts


def test_of_two_that_answer_a_prompt_only_the_first_counts(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    slow = take(waiting, project, 2)
    team.clock.advance(minutes=TAKEN_MINUTES + 1)
    quick = take(waiting, project, 1)
    waiting.give_back(slow)  # must not take from the other what is the other's
    assert take(waiting, project, 1).prompts == (PROMPTS[1],)
    assert waiting.answer(quick, said(quick, model="quick")).new == 1
    assert waiting.answer(slow, said(slow, "xyz", model="slow")).new == 1
    assert {r.model for r in FeedbackStore(team.database).responses(PROMPTS[0])} == {"quick"}
    assert {r.model for r in FeedbackStore(team.database).responses(PROMPTS[1])} == {"slow"}
    assert len(items(team)) == 2


def log(team: Team, action: str) -> list[tuple[int | None, dict]]:
    with team.database.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action == action).order_by(AuditRow.id))
        return [(row.account_id, row.detail) for row in rows]


def test_cleared_prompts_wait_no_more_and_others_are_as_they_were(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    other, lead = team.project("other", items=0), team.annotator("lea")
    waiting.add(other.id, PROMPTS, None)
    batch = take(waiting, project, 2)
    waiting.answer(batch, said(batch))
    assert waiting.clear(project.id, lead) == 8
    assert waiting.take(project.id, 100) is None
    assert (waiting.count(project.id), waiting.count(other.id), len(items(team))) == (0, 10, 2)
    assert waiting.clear(project.id, lead) == 0
    assert log(team, "prompts.clear") == [(lead, {"project": project.id, "cleared": count}) for count in (8, 0)]
    with pytest.raises(NotFound):
        waiting.clear(99, lead)


def test_cleared_prompts_may_be_added_again_and_answered_ones_not(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 2)
    waiting.answer(batch, said(batch))
    waiting.clear(project.id, None)
    assert waiting.add(project.id, PROMPTS[:4], None) == AddedPrompts(new=2, known=2)
    again = take(waiting, project, 100)
    assert again.prompts == tuple(PROMPTS[2:4])
    assert waiting.answer(again, said(again)).new == 2


def test_what_is_said_of_prompts_that_were_cleared_meanwhile_is_dropped(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 3)
    waiting.clear(project.id, None)
    waiting.add(project.id, PROMPTS[:1], None)  # this one waits again
    assert waiting.answer(batch, said(batch)) == Added(new=1, known=0, too_few=0, left_over=0)
    waiting.give_back(batch)
    assert [item.prompt_id for item in items(team)] == [PROMPTS[0].id]
    assert FeedbackStore(team.database).responses(PROMPTS[1]) == []
    assert waiting.count(project.id) == 0


def test_prompts_that_are_cleared_while_samplers_are_at_them_are_answered_or_cleared(team: Team, location: str) -> None:
    project, own, done = team.project("busy", items=0), WaitingPrompts(team.database), Event()

    def sample(name: str) -> int:
        waiting, made = WaitingPrompts(Database(location)), 0
        while not done.is_set():
            if (batch := waiting.take(project.id, 3)) is not None:
                made += waiting.answer(batch, said(batch, model=name)).new
                waiting.give_back(batch)
        waiting.database.close()
        return made

    with ThreadPoolExecutor(3) as pool:
        samplers = [pool.submit(sample, name) for name in "abc"]
        cleared = 0
        for number in range(10):
            own.add(project.id, [Prompt(f"many {number} {i}") for i in range(8)], None)
            while own.count(project.id) == 8:
                sleep(0.001)
            cleared += own.clear(project.id, None)
        done.set()
        made = sum(sampler.result() for sampler in samplers)
    assert made + cleared == 80
    assert made > 10
    assert len(items(team)) == made
    assert own.count(project.id) == 0


def test_a_prompt_that_the_policy_refuses_is_left_out_and_may_be_added_again(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 3)
    responses = said(batch)
    assert waiting.answer(batch, [responses[0], UserError("too long", expected="less"), responses[2]]).new == 2
    assert waiting.count(project.id) == 7
    assert [item.prompt_id for item in items(team)] == [PROMPTS[0].id, PROMPTS[2].id]
    assert log(team, "prompts.refuse") == [(None, {"project": project.id, "prompt": "1?", "why": "too long; expected less"})]
    assert waiting.add(project.id, PROMPTS[:3], None) == AddedPrompts(new=1, known=2)


def test_the_prompt_that_was_answered_last_is_known(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    other = team.project("other", items=0)
    assert waiting.last_answered(project.id) is None
    for prompt in PROMPTS[:2]:
        team.clock.advance(minutes=1)
        batch = take(waiting, project, 1)
        waiting.answer(batch, said(batch))
        assert waiting.last_answered(project.id) == prompt
    assert waiting.last_answered(other.id) is None


def test_an_answer_that_fails_changes_nothing(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    batch = take(waiting, project, 2)
    with pytest.raises(ValueError, match="zip"):
        waiting.answer(batch, said(batch)[:1])
    assert (waiting.count(project.id), len(items(team))) == (10, 0)


def test_an_archived_project_asks_for_nothing(team: Team, project: Project, waiting: WaitingPrompts) -> None:
    team.projects.archive(project.id, None)
    assert waiting.take(project.id, 100) is None
    team.projects.archive(project.id, None, archived=False)
    assert len(take(waiting, project, 100).prompts) == 10


def test_where_nothing_is_compared_one_response_is_enough(team: Team, waiting: WaitingPrompts) -> None:
    written = team.project("written", items=0, compare="none", num_responses=1, ideal=True)
    waiting.add(written.id, PROMPTS[:1], None)
    batch = take(waiting, written, 1)
    assert batch.num_different == 1
    assert waiting.answer(batch, [[Response("a")]]).new == 1


def test_samplers_at_once_answer_each_prompt_once(team: Team, project: Project, location: str) -> None:
    prompts = [Prompt(f"many {number}") for number in range(60)]
    WaitingPrompts(team.database).add(project.id, prompts, None)

    def sample(name: str) -> list[str]:
        own, done = WaitingPrompts(Database(location)), []
        while (batch := own.take(project.id, 3)) is not None:
            done += [prompt.id for prompt in batch.prompts]
            own.answer(batch, said(batch, model=name))
        own.database.close()
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [prompt_id for part in pool.map(sample, "abcd") for prompt_id in part]
    assert Counter(done) == Counter(prompt.id for prompt in prompts)
    assert Counter(item.prompt_id for item in items(team)) == Counter(done)
