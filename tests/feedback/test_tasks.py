"""Leases, answers, skips and undoing, on both databases."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.ordering import AGAIN_AFTER
from heed.feedback.projects import Conflict, NotFound, Progress, ProjectSettings
from heed.feedback.schema import DecisionRow, ItemRow, JudgementRow, LeaseRow
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import MAX_TEXT, Answer, OwnProgress, Screen, check_answer
from heed.records import Prompt, Response
from tests.feedback.team import Team, alphabetical


@pytest.fixture
def team(database: Database) -> Team:
    return Team(database)


def test_an_open_task_is_shown_again_and_waits_longer(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    before = team.lease(task.lease_id).expires_at
    team.clock.advance(minutes=5)
    assert team.take(project.id, ann) == task
    assert team.lease(task.lease_id).expires_at > before


def test_each_item_goes_to_one_annotator_until_none_is_left(team: Team) -> None:
    project, ann, ben = team.project(items=2), team.annotator("ann"), team.annotator("ben")
    assert team.take(project.id, ann).item_id != team.take(project.id, ben).item_id
    assert team.tasks.next(project.id, team.annotator("cy")) is None


def test_with_overlap_an_item_goes_to_different_people(team: Team) -> None:
    project = team.project(items=3, overlap=2)
    people = [team.annotator(name) for name in ("ann", "ben", "cy")]
    given = [(person, task.item_id) for person in people[:2] for task in team.work(project.id, person, 3)]
    assert all(number == 2 for number in Counter(item for _, item in given).values())
    assert len(set(given)) == 6
    assert [team.tasks.next(project.id, person) for person in people] == [None] * 3
    assert team.drifted() == []


def test_annotators_go_through_the_items_in_orders_of_their_own(team: Team) -> None:
    project = team.project(items=8, overlap=3)
    orders = [[task.item_id for task in team.work(project.id, team.annotator(name), 8)] for name in ("ann", "ben", "cy")]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({order[0] for order in orders}) > 1


def test_an_abandoned_task_goes_to_someone_else_and_a_late_answer_is_told_so(team: Team) -> None:
    project, ann, ben = team.project(items=1), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    team.clock.advance(minutes=29)
    assert team.tasks.next(project.id, ben) is None
    team.clock.advance(minutes=2)
    assert team.take(project.id, ben).item_id == task.item_id
    with pytest.raises(Conflict, match="went to someone else"):
        team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert team.answers() == []
    assert team.drifted() == []


def test_a_late_answer_counts_where_no_one_else_has_the_item(team: Team) -> None:
    project, ann, ben = team.project(items=2), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    team.clock.advance(minutes=31)
    team.work(project.id, ben, 1)  # which also ends what has expired
    left = team.lease(task.lease_id).state
    if left == "expired":
        other = team.answers()[0].item_id
        if other == task.item_id:  # Ben took it
            task = team.take(project.id, ann)
    team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert len(FeedbackStore(team.database).judgements()) == 2
    assert team.drifted() == []


def test_an_item_that_comes_back_to_the_same_person_is_the_same_task(team: Team) -> None:
    project, ann = team.project(items=1, overlap=2), team.annotator("ann")
    first = team.take(project.id, ann)
    team.clock.advance(minutes=31)
    team.tasks.next(project.id, team.annotator("ben"))  # ends the lease
    assert team.lease(first.lease_id).state == "expired"
    assert team.take(project.id, ann) == first
    team.tasks.answer(first.lease_id, ann, alphabetical(first))
    assert team.tasks.next(project.id, ann) is None
    assert team.drifted() == []


def test_the_database_itself_refuses_a_slot_or_an_item_given_twice(team: Team) -> None:
    project, ann, ben = team.project(items=1, overlap=3), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    lease = {"item_id": task.item_id, "reason": "random", "order": [0, 1, 2], "expires_at": team.clock()}
    for account_id, slot in ((ben, 0), (ann, 1)):
        with pytest.raises(IntegrityError), team.database.write() as session:
            session.add(LeaseRow(account_id=account_id, slot=slot, **lease))


def test_ranks_are_kept_in_the_order_of_the_item_with_the_order_shown(team: Team) -> None:
    project, ann = team.project(items=8), team.annotator("ann")
    tasks = team.work(project.id, ann, 8)
    assert len({task.responses for task in tasks}) > 1
    judgements = FeedbackStore(team.database).judgements()
    for task, judgement in zip(tasks, judgements, strict=True):
        assert judgement.responses == ("a", "b", "c")
        assert judgement.ranks == (1, 2, 3)
        assert tuple(judgement.responses[i] for i in judgement.order_shown) == task.responses
        assert judgement.annotator == "ann"


def test_ratings_and_flags_are_kept_in_the_order_of_the_item(team: Team) -> None:
    project, ann = team.project(items=4, ratings=("helpful",)), team.annotator("ann")
    for _ in range(4):
        task = team.take(project.id, ann)
        ratings = {"helpful": tuple("abc".index(text) + 5 for text in task.responses)}
        flags = {"toxic": tuple(i for i, text in enumerate(task.responses) if text != "b"), "harmful": ()}
        answer = alphabetical(task, ratings=ratings, flags=flags, note="n")
        team.tasks.answer(task.lease_id, ann, answer)
        undone = team.tasks.undo(project.id, ann)
        assert undone is not None
        assert undone.answer == alphabetical(task, ratings=ratings, flags={"toxic": flags["toxic"]}, note="n")
        team.tasks.answer(task.lease_id, ann, answer)
    assert all((row.ratings, row.flags) == ({"helpful": [5, 6, 7]}, {"toxic": [0, 2]}) for row in team.answers())


def test_the_same_form_sent_twice_is_kept_once_and_another_is_refused(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    answer = alphabetical(task, flags={"toxic": [2, 0, 2], "harmful": []})
    assert team.tasks.answer(task.lease_id, ann, answer) == team.tasks.answer(task.lease_id, ann, answer)
    with pytest.raises(Conflict, match="answered already"):
        team.tasks.answer(task.lease_id, ann, alphabetical(task, note="on second thoughts"))
    assert len(team.answers()) == len(FeedbackStore(team.database).judgements()) == 1


@pytest.mark.parametrize("lease_id", [0, -1, 999, 2**31, 2**63, 10**30])
def test_a_forged_lease_is_nobodys(team: Team, lease_id: int) -> None:
    ann = team.annotator("ann")
    with pytest.raises(NotFound):
        team.tasks.answer(lease_id, ann, Answer(ranks=(1, 2, 3)))
    with pytest.raises(NotFound):
        team.tasks.skip(lease_id, ann, "no idea")
    with pytest.raises(NotFound):
        team.tasks.next(lease_id, ann)
    with pytest.raises(NotFound):
        team.tasks.decide(lease_id, ann, (1, 2, 3))


def test_the_lease_of_someone_else_is_refused(team: Team) -> None:
    project, ann, ben = team.project(), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    with pytest.raises(NotFound):
        team.tasks.answer(task.lease_id, ben, alphabetical(task))
    with pytest.raises(NotFound):
        team.tasks.skip(task.lease_id, ben, "not mine")
    assert team.lease(task.lease_id).state == "open"


def test_a_skipped_item_goes_to_others_and_never_to_the_same_person(team: Team) -> None:
    project, ann, ben = team.project(items=1), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    for _ in range(2):
        team.tasks.skip(task.lease_id, ann, " do not know ", "really")
    assert [(row.skipped, row.note) for row in team.answers()] == [("do not know", "really")]
    assert team.tasks.next(project.id, ann) is None
    with pytest.raises(Conflict, match="skipped"):
        team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert [t.item_id for t in team.work(project.id, ben, 1)] == [task.item_id]
    assert team.drifted() == []


def test_a_late_skip_is_kept_also_where_the_item_has_gone(team: Team) -> None:
    project, ann, ben = team.project(items=1), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    team.clock.advance(hours=1)
    team.work(project.id, ben, 1)
    team.tasks.skip(task.lease_id, ann, "too hard")
    assert team.lease(task.lease_id).state == "skipped"
    assert team.drifted() == []


def test_what_was_answered_cannot_be_skipped(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    (task,) = team.work(project.id, ann, 1)
    with pytest.raises(Conflict, match="answered already"):
        team.tasks.skip(task.lease_id, ann, "changed my mind")


@pytest.mark.parametrize("reason", ["", "  \n", "x" * (MAX_TEXT + 1), "a\0b", "\ud800"])
def test_a_skip_needs_a_reason_that_can_be_kept(team: Team, reason: str) -> None:
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    with pytest.raises(UserError):
        team.tasks.skip(task.lease_id, ann, reason)
    assert team.lease(task.lease_id).state == "open"


def test_an_undone_answer_is_withdrawn_kept_and_shown_to_be_answered_anew(team: Team) -> None:
    project, ann, ben = team.project(items=1), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    answer = alphabetical(task, note="first")
    first = team.tasks.answer(task.lease_id, ann, answer)
    undone = team.tasks.undo(project.id, ann)
    assert undone is not None
    assert (undone.lease_id, undone.responses, undone.answer) == (task.lease_id, task.responses, answer)
    assert FeedbackStore(team.database).judgements() == []
    assert team.tasks.next(project.id, ben) is None  # the slot is still Ann's
    second = team.tasks.answer(task.lease_id, ann, alphabetical(task, note="second"))
    assert second != first
    assert [(row.note, row.undone_at is None) for row in team.answers()] == [("first", False), ("second", True)]
    assert [judgement.note for judgement in FeedbackStore(team.database).judgements()] == ["second"]
    with team.database.read() as session:
        assert session.scalar(select(func.count(JudgementRow.id))) == 2
    assert team.drifted() == []


def test_undoing_gives_the_open_task_back_and_goes_one_answer_back_at_a_time(team: Team) -> None:
    project, ann = team.project(items=3), team.annotator("ann")
    first, second = team.work(project.id, ann, 2)
    third = team.take(project.id, ann)
    assert [task and task.item_id for task in (team.tasks.undo(project.id, ann), team.tasks.undo(project.id, ann))] == [
        second.item_id,
        first.item_id,
    ]
    assert team.tasks.undo(project.id, ann) is None
    assert [team.lease(task.lease_id).state for task in (first, second, third)] == ["open", "expired", "expired"]
    assert team.drifted() == []
    assert len(team.work(project.id, ann, 3)) == 3


def test_an_undone_task_that_is_left_to_expire_goes_to_others(team: Team) -> None:
    project, ann, ben = team.project(items=1), team.annotator("ann"), team.annotator("ben")
    team.work(project.id, ann, 1)
    team.tasks.undo(project.id, ann)
    team.clock.advance(hours=1)
    assert len(team.work(project.id, ben, 1)) == 1
    assert [judgement.annotator for judgement in FeedbackStore(team.database).judgements()] == ["ben"]


def test_undoing_touches_no_other_project_or_person(team: Team) -> None:
    project, other, ann, ben = team.project(), team.project("other"), team.annotator("ann"), team.annotator("ben")
    team.work(project.id, ann, 1)
    assert team.tasks.undo(other.id, ann) is None
    assert team.tasks.undo(project.id, ben) is None


def test_fewer_or_more_annotators_per_item_change_what_waits_and_nothing_drifts(team: Team) -> None:
    project = team.project(items=1, overlap=3)
    people = [team.annotator(name) for name in ("ann", "ben", "cy", "di")]
    tasks = [team.take(project.id, person) for person in people[:3]]
    team.change(project.id, overlap=1)
    assert team.drifted() == []
    team.tasks.skip(tasks[0].lease_id, people[0], "no")
    team.clock.advance(hours=1)
    team.tasks.answer(tasks[1].lease_id, people[1], alphabetical(tasks[1]))
    assert team.tasks.next(project.id, people[3]) is None  # and the third task is over
    assert team.drifted() == []
    team.change(project.id, overlap=2)
    assert team.drifted() == []
    team.tasks.answer(tasks[2].lease_id, people[2], alphabetical(tasks[2]))
    assert team.tasks.next(project.id, people[3]) is None
    assert team.drifted() == []


def test_an_archived_project_gives_out_nothing_but_keeps_what_is_answered(team: Team) -> None:
    project, ann, ben = team.project(), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    team.projects.archive(project.id, None)
    assert team.tasks.next(project.id, ben) is None
    team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert team.tasks.next(project.id, ann) is None
    team.projects.archive(project.id, None, archived=False)
    assert team.tasks.next(project.id, ben) is not None


def test_the_daily_cap_counts_answers_and_skips_until_midnight_and_not_what_was_undone(team: Team) -> None:
    project, ann = team.project(items=9), team.annotator("ann", daily_cap=3)
    team.work(project.id, ann, 2)
    team.tasks.skip(team.take(project.id, ann).lease_id, ann, "no")
    assert team.tasks.next(project.id, ann) is None
    team.tasks.undo(project.id, ann)
    assert len(team.work(project.id, ann, 1)) == 1
    assert team.tasks.next(project.id, ann) is None
    team.clock.now = team.clock.now.replace(hour=23, minute=59)
    assert team.tasks.next(project.id, ann) is None
    team.clock.advance(minutes=2)
    assert len(team.work(project.id, ann, 3)) == 3
    assert team.tasks.next(project.id, ann) is None


def test_no_one_is_shown_what_they_asked_not_to_see(team: Team) -> None:
    project = team.project(items=0, overlap=2, gold_rate=0.4, again_rate=0.3)
    tags = ["violence", "sex, violence", "", "sex", 'a "quoted" ünïcode', ""]
    rows = [
        (Prompt(f"{i}?", {"categories": tag} if tag else {}), [Response("a"), Response("b"), Response("c")]) for i, tag in enumerate(tags)
    ]
    team.projects.add_items(project.id, rows[:4], None)
    team.projects.add_items(project.id, rows[4:], None, gold=[[1, 2, 3], [1, 2, 3]])
    ann = team.annotator("ann", avoid=["Violence", 'a "QUOTED" ÜNÏCODE'])
    seen = set()
    while (task := team.tasks.next(project.id, ann)) is not None:
        seen.add(task.prompt.text)
        team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert {"2?", "3?"} <= seen <= {"2?", "3?", "5?"}
    ben = team.annotator("ben")
    while (task := team.tasks.next(project.id, ben)) is not None:
        if "sex" in task.prompt.tags.get("categories", ""):
            team.set_account(ben, avoid=["Sex"])
            following = team.tasks.next(project.id, ben)
            assert following is None or following.item_id != task.item_id
            assert team.lease(task.lease_id).state == "expired"
            break
        team.tasks.answer(task.lease_id, ben, alphabetical(task))
    else:
        pytest.fail("the item was never given")
    assert team.drifted() == []


def test_progress_counts_what_may_still_come(team: Team) -> None:
    project = team.project(items=4, gold=1, overlap=2, again_rate=0.3)
    rows = [(Prompt(f"{tag} {i}", {"categories": tag}), [Response("a"), Response("b")]) for i, tag in enumerate(["Gore", "gore", "sex"])]
    team.projects.add_items(project.id, rows, None)
    ann, ben = team.annotator("ann", avoid=["GORE"]), team.annotator("ben")

    def left(account: int) -> int:
        return team.tasks.progress(project.id, account).left

    assert (left(ann), left(ben)) == (4, 6)
    count = 0
    while (task := team.tasks.next(project.id, ann)) is not None:
        again = team.lease(task.lease_id).reason == "again"
        fresh = team.item(task.item_id).gold is None and not again
        count += fresh
        assert left(ann) == 4 - count
        team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert (count, left(ann), left(ben)) == (4, 0, 6)
    team.tasks.undo(project.id, ann)
    assert left(ann) == 0
    assert team.tasks.progress(project.id, ann).today == sum(row.undone_at is None for row in team.answers())


def test_a_task_on_a_screen_is_no_answer_yet(team: Team) -> None:
    project, ann = team.project(items=3, overlap=2), team.annotator("ann")
    for done in range(3):
        task = team.take(project.id, ann)
        assert team.projects.progress()[project.id] == Progress(items=3, gold=0, wanted=6, waiting=6 - done)
        team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert team.projects.progress()[project.id].waiting == 3


def test_the_screen_shows_the_open_task_its_project_and_how_far_the_annotator_is(team: Team) -> None:
    project, ann = team.project(items=2, responses=3), team.annotator("ann")
    for done in range(2):
        screen = team.tasks.screen(project.id, ann)
        assert screen.task is not None
        assert screen.task == team.tasks.next(project.id, ann)
        assert (screen.project, screen.progress) == (project, OwnProgress(today=done, left=1 - done))
        assert screen.progress == team.tasks.progress(project.id, ann)
        team.tasks.answer(screen.task.lease_id, ann, alphabetical(screen.task))
    assert team.tasks.screen(project.id, ann) == Screen(project, None, OwnProgress(today=2, left=0))


def test_a_task_is_known_to_whoever_has_it_alone(team: Team) -> None:
    project = team.project(responses=3)
    ann, ben = team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    assert team.tasks.of_lease(task.lease_id, ann) == (project, 3)
    for lease_id, account in ((task.lease_id, ben), (0, ann), (-1, ann), (2**80, ann)):
        with pytest.raises(NotFound, match="of yours"):
            team.tasks.of_lease(lease_id, account)


def test_gold_items_are_mixed_in_at_the_rate_and_fill_no_slot(team: Team) -> None:
    project, ann = team.project(items=120, gold=60, gold_rate=0.3), team.annotator("ann")
    gold = {row.id for row in map(team.item, range(1, 121)) if row.gold}
    given = [task.item_id in gold for task in team.work(project.id, ann, 60)]
    assert abs(sum(given) / 60 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 60)
    rest = []
    while team.tasks.next(project.id, ann) is not None:
        rest += team.work(project.id, ann, 1)
    assert len(given) - sum(given) + sum(task.item_id not in gold for task in rest) == 60
    assert len({row.item_id for row in team.answers()}) == len(team.answers())
    assert team.drifted() == []


def test_gold_can_be_skipped_undone_and_left(team: Team) -> None:
    project, ann = team.project(items=4, gold=4), team.annotator("ann")
    team.tasks.skip(team.take(project.id, ann).lease_id, ann, "no")
    (task,) = team.work(project.id, ann, 1)
    undone = team.tasks.undo(project.id, ann)
    assert undone is not None
    assert undone.item_id == task.item_id
    team.clock.advance(hours=1)
    team.tasks.answer(task.lease_id, ann, alphabetical(task))
    left = team.take(project.id, ann)
    team.clock.advance(hours=1)
    team.tasks.next(project.id, team.annotator("ben"))
    assert team.lease(left.lease_id).state == "expired"
    assert len(team.work(project.id, ann, 2)) == 2
    assert team.tasks.next(project.id, ann) is None
    assert team.drifted() == []


def again(team: Team) -> list[LeaseRow]:
    with team.database.read() as session:
        return list(session.scalars(select(LeaseRow).where(LeaseRow.reason == "again").order_by(LeaseRow.id)))


def test_items_are_asked_again_once_later_and_in_another_order(team: Team) -> None:
    project, ann = team.project(items=60, responses=2, again_rate=0.4), team.annotator("ann")
    done = []
    while team.tasks.next(project.id, ann) is not None:
        done += team.work(project.id, ann, 1)
    repeated = again(team)
    assert len(repeated) >= 10
    assert len({lease.item_id for lease in repeated}) == len(repeated)
    items = [task.item_id for task in done]
    for lease in repeated:
        first = items.index(lease.item_id)
        assert items.index(lease.item_id, first + 1) - first > AGAIN_AFTER
        assert done[first].responses == tuple(reversed(done[items.index(lease.item_id, first + 1)].responses))
    assert sorted(set(items)) == sorted(row.id for row in map(team.item, range(1, 61)))
    assert team.drifted() == []


def test_an_item_of_one_response_is_asked_again_too(team: Team) -> None:
    project = team.project(items=40, responses=1, compare="none", ratings=("helpful",), again_rate=0.8)
    ann, number = team.annotator("ann"), 0
    while (task := team.tasks.next(project.id, ann)) is not None:
        team.tasks.answer(task.lease_id, ann, Answer(ratings={"helpful": (4,)}))
        number += 1
    assert number == 40 + len(again(team))
    assert again(team)


def test_a_repetition_can_be_undone_or_left_and_comes_again(team: Team) -> None:
    project, ann, ben = team.project(items=60, again_rate=0.8, overlap=2), team.annotator("ann"), team.annotator("ben")
    while not again(team):
        team.work(project.id, ann, 1)
    (lease,) = again(team)
    undone = team.tasks.undo(project.id, ann)
    assert undone is not None
    assert undone.lease_id == lease.id
    team.clock.advance(hours=1)
    team.tasks.next(project.id, ben)
    assert team.lease(lease.id).state == "expired"
    while team.lease(lease.id).state == "expired":
        team.work(project.id, ann, 1)
    assert [other.item_id for other in again(team)].count(lease.item_id) == 1
    assert team.drifted() == []


def test_the_most_uncertain_comes_first_but_for_the_control_share(team: Team) -> None:
    project, ann = team.project(items=80, strategy="uncertain", control_share=0.25), team.annotator("ann")
    with team.database.write() as session:
        session.execute(update(ItemRow).values(priority=ItemRow.id))
    tasks = team.work(project.id, ann, 60)
    reasons = [team.lease(task.lease_id).reason for task in tasks]
    urgent = [task.item_id for task, reason in zip(tasks, reasons, strict=True) if reason == "uncertain"]
    assert urgent == sorted(urgent, reverse=True)
    assert set(reasons) == {"uncertain", "random"}
    assert abs(reasons.count("random") / 60 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 60)


def test_a_clock_that_goes_back_ends_no_lease_and_gives_no_negative_time(team: Team) -> None:
    project, ann, ben = team.project(items=1), team.annotator("ann"), team.annotator("ben")
    task = team.take(project.id, ann)
    team.clock.advance(days=-2)
    assert team.tasks.next(project.id, ben) is None
    team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert [row.seconds for row in team.answers()] == [0.0]
    assert team.tasks.undo(project.id, ann) is not None
    team.clock.advance(days=-2)
    assert team.take(project.id, ann).lease_id == task.lease_id


def test_the_time_taken_is_that_since_the_task_was_shown(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    team.clock.advance(seconds=42.5)
    team.tasks.answer(task.lease_id, ann, alphabetical(task))
    assert [row.seconds for row in team.answers()] == [42.5]


def test_a_deleted_account_gets_and_gives_nothing(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    team.set_account(ann, deleted_at=team.clock())
    with pytest.raises(NotFound):
        team.tasks.next(project.id, ann)
    with pytest.raises(NotFound):
        team.tasks.answer(task.lease_id, ann, alphabetical(task))
    with pytest.raises(NotFound):
        team.tasks.undo(project.id, ann)


def test_an_answer_that_does_not_fit_changes_nothing(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    for wrong in (Answer(ranks=(1, 2)), alphabetical(task, note="\0"), alphabetical(task, ratings={"helpful": (1, 2, 3)})):
        with pytest.raises(UserError):
            team.tasks.answer(task.lease_id, ann, wrong)
    assert (team.answers(), team.lease(task.lease_id).state) == ([], "open")


def test_decisions_stand_beside_the_answers(team: Team) -> None:
    project, ann = team.project(), team.annotator("ann")
    (task,) = team.work(project.id, ann, 1)
    for ranks in ((3, 2, 1), (1, 1, 1)):
        team.tasks.decide(task.item_id, ann, ranks, "because")
    with team.database.read() as session:
        assert [row.ranks for row in session.scalars(select(DecisionRow).order_by(DecisionRow.id))] == [[3, 2, 1], [1, 1, 1]]
    assert [judgement.ranks for judgement in FeedbackStore(team.database).judgements()] == [(1, 2, 3)]
    for wrong in ((1, 2), (0, 1, 2), (True, 2, 3), (2, 2, 2)):
        with pytest.raises(UserError):
            team.tasks.decide(task.item_id, ann, wrong)


RANKS = (1, 2, 3)
RATED = ProjectSettings(num_responses=3, ratings=("helpful", "honest"))
PAIRS = ProjectSettings(compare="pairwise", num_responses=2)
WRITE = ProjectSettings(compare="none", ideal=True)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (ProjectSettings(), {"ranks": None}),
        (ProjectSettings(), {"ranks": ()}),
        (ProjectSettings(), {"ranks": (1, 2)}),
        (ProjectSettings(), {"ranks": (1, 2, 4)}),
        (ProjectSettings(), {"ranks": (0, 1, 2)}),
        (ProjectSettings(), {"ranks": (2, 2, 2)}),
        (ProjectSettings(), {"ranks": (True, 2, 3)}),
        (ProjectSettings(), {"ranks": (1.0, 2, 3)}),
        (ProjectSettings(), {"ranks": ("1", "2", "3")}),
        (ProjectSettings(), {"ranks": (1, None, 2)}),
        (ProjectSettings(), {"ranks": (1, 2, 10**30)}),
        (ProjectSettings(), {"ranks": "123"}),
        (ProjectSettings(), {"ranks": 1}),
        (ProjectSettings(), {"ranks": RANKS, "strength": 1}),
        (ProjectSettings(), {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3)}}),
        (ProjectSettings(), {"ranks": RANKS, "flags": {"rude": (0,)}}),
        (ProjectSettings(), {"ranks": RANKS, "flags": {"toxic": (3,)}}),
        (ProjectSettings(), {"ranks": RANKS, "flags": {"toxic": (-1,)}}),
        (ProjectSettings(), {"ranks": RANKS, "flags": {"toxic": (True,)}}),
        (ProjectSettings(), {"ranks": RANKS, "flags": {"toxic": 0}}),
        (ProjectSettings(), {"ranks": RANKS, "ideal": "better"}),
        (ProjectSettings(), {"ranks": RANKS, "note": "x" * (MAX_TEXT + 1)}),
        (ProjectSettings(), {"ranks": RANKS, "note": "a\0b"}),
        (ProjectSettings(), {"ranks": RANKS, "note": "\udc80"}),
        (ProjectSettings(), {"ranks": RANKS, "note": None}),
        (RATED, {"ranks": RANKS}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3)}}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3), "honest": (1, 2)}}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3), "honest": (1, 2, None)}}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3), "honest": (1, 2, 8)}}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3), "honest": (0, 2, 7)}}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3), "honest": (True, 2, 7)}}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 2, 3), "honest": 4}}),
        (PAIRS, {"ranks": (1, 2)}),
        (PAIRS, {"ranks": (1, 2), "strength": 0}),
        (PAIRS, {"ranks": (1, 1), "strength": 2}),
        (PAIRS, {"ranks": (1, 2), "strength": 5}),
        (PAIRS, {"ranks": (1, 2), "strength": True}),
        (PAIRS, {"ranks": (1, 1), "strength": False}),
        (PAIRS, {"ranks": (1, 2), "strength": 1.0}),
        (PAIRS, {"ranks": (1, 2), "strength": "1"}),
        (WRITE, {"ranks": RANKS, "ideal": "better"}),
        (WRITE, {"ideal": "  "}),
        (WRITE, {"ideal": 3}),
    ],
)
def test_answers_that_are_not_what_was_asked_are_refused(settings: ProjectSettings, answer: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        check_answer(Answer(**answer), settings, 2 if settings.compare == "pairwise" else 3)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (ProjectSettings(), {"ranks": (1, 1, 1)}),
        (ProjectSettings(), {"ranks": [3, 1, 1], "flags": {"toxic": [0, 0, 2]}, "note": "é" * MAX_TEXT}),
        (RATED, {"ranks": RANKS, "ratings": {"helpful": (1, 7, 3), "honest": [1, 2, 4]}}),
        (PAIRS, {"ranks": (2, 1), "strength": 4}),
        (PAIRS, {"ranks": (1, 1), "strength": 0}),
        (WRITE, {"ideal": "better"}),
    ],
)
def test_answers_that_are_what_was_asked_are_taken(settings: ProjectSettings, answer: dict[str, Any]) -> None:
    check_answer(Answer(**answer), settings, 2 if settings.compare == "pairwise" else 3)
