from __future__ import annotations

import pytest

from heed.feedback.accounts import Accounts
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.tasks import Answer
from heed.records import Message, Prompt, Response
from tests.feedback.team import Team, alphabetical


@pytest.fixture
def team(database: Database) -> Team:
    return Team(database)


def test_an_answer_stands_with_its_responses_in_the_items_order(team: Team):
    project = team.project(items=1, responses=3, ratings=("helpful",), flags=("toxic", "off-topic"), ideal=True, overlap=2)
    ann = team.annotator("Ann")
    task = team.take(project.id, ann)
    team.clock.advance(seconds=12.5)
    stars = {"a": 1, "b": 4, "c": 7}
    said = Answer(
        ranks=tuple({"a": 2, "b": 1, "c": 2}[text] for text in task.responses),
        ratings={"helpful": tuple(stars[text] for text in task.responses)},
        flags={"toxic": (task.responses.index("c"), task.responses.index("a")), "off-topic": ()},
        ideal="Better: ß",
        note="二番目",
    )
    number = team.tasks.answer(task.lease_id, ann, said)
    (found,) = standing_answers(team.database, project.id).answers
    assert (found.id, found.item.id, found.account_id, found.annotator) == (number, task.item_id, ann, "Ann")
    assert found.ranks == (2, 1, 2)
    assert found.ratings == {"helpful": (1, 4, 7)}
    assert found.flags == {"toxic": (0, 2)}
    assert [("a", "b", "c")[place] for place in found.order] == list(task.responses)
    assert (found.reason, found.ideal, found.note, found.seconds, found.strength) == ("random", "Better: ß", "二番目", 12.5, None)
    assert found.created_at == team.answers()[0].created_at


def test_what_was_undone_or_skipped_is_no_answer_and_other_projects_are_left_out(team: Team):
    project, other = team.project(items=4), team.project("other", items=1)
    ann, bob = team.annotator("Ann"), team.annotator("Bob")
    team.work(other.id, ann, 1)
    (kept,) = team.work(project.id, ann, 1)
    team.work(project.id, bob, 1)
    again = team.tasks.undo(project.id, bob)
    assert again is not None
    team.clock.advance(seconds=3)
    team.tasks.skip(again.lease_id, bob, "not my language", "Welsh?")
    standing = standing_answers(team.database, project.id)
    assert [(a.annotator, a.item.id) for a in standing.answers] == [("Ann", kept.item_id)]
    (skip,) = standing.skips
    assert (skip.item.id, skip.annotator, skip.why, skip.note, skip.seconds) == (again.item_id, "Bob", "not my language", "Welsh?", 3)
    assert len(standing.items) == 4


def test_items_tell_lengths_and_gold_and_their_texts_where_asked(team: Team):
    project = team.project(items=0)
    hello, greeting = Prompt((Message("user", "Hello"),)), Prompt((Message("user", "Wie geht's?"),), {"kind": "greeting"})
    texts = [[Response(text) for text in group] for group in (("a", "b", "c"), ("gut", "nicht schlecht", "schön"))]
    team.projects.add_items(project.id, list(zip((hello, greeting), texts, strict=True)), None, gold=[None, [2, 1, 2]])
    bare, full = (standing_answers(team.database, project.id, texts=texts).items for texts in (False, True))
    assert [item.lengths for item in bare] == [(1, 1, 1), (3, 14, 5)]
    assert [item.gold for item in bare] == [None, (2, 1, 2)]
    assert [(item.prompt, item.texts) for item in bare] == [(None, ()), (None, ())]
    assert [item.texts for item in full] == [("a", "b", "c"), ("gut", "nicht schlecht", "schön")]
    assert [item.prompt for item in full] == [hello, greeting]
    assert [item.prompt.tags for item in full if item.prompt] == [{}, {"kind": "greeting"}]
    assert [item.responses for item in full] == [item.responses for item in bare]
    assert len({response for item in full for response in item.responses}) == 6


def test_answers_say_why_the_item_came_and_repetitions_stand_beside_the_first(team: Team):
    project = team.project(items=30, gold=10, gold_rate=0.3, again_rate=0.4)
    ann = team.annotator("Ann")
    team.work(project.id, ann, 30)
    standing = standing_answers(team.database, project.id)
    assert {answer.reason for answer in standing.answers} == {"random", "gold", "again"}
    assert all((answer.reason == "gold") == (answer.item.gold is not None) for answer in standing.answers if answer.reason != "again")
    first = {answer.item.id: answer for answer in reversed(standing.answers)}
    repeated = [answer for answer in standing.answers if answer.reason == "again"]
    assert all(first[answer.item.id].id < answer.id and first[answer.item.id].order != answer.order for answer in repeated)
    assert [answer.id for answer in standing.answers] == sorted(answer.id for answer in standing.answers)


def test_a_ranking_of_more_than_ten_keeps_its_order(team: Team):
    project = team.project(items=1, responses=12)
    ann = team.annotator("Ann")
    task = team.take(project.id, ann)
    team.tasks.answer(task.lease_id, ann, alphabetical(task))
    (found,) = standing_answers(team.database, project.id).answers
    assert found.ranks == tuple(range(1, 13))
    assert len(found.item.responses) == len(set(found.item.responses)) == 12


def test_without_a_comparison_there_are_no_ranks_and_pairs_have_a_strength(team: Team):
    ann = team.annotator("Ann")
    rated = team.project("rated", items=1, compare="none", ratings=("helpful",))
    task = team.take(rated.id, ann)
    team.tasks.answer(task.lease_id, ann, Answer(ratings={"helpful": (1, 2, 3)}))
    (found,) = standing_answers(team.database, rated.id).answers
    assert found.ranks is None
    pairs = team.project("pairs", items=1, responses=2, compare="pairwise")
    task = team.take(pairs.id, ann)
    team.tasks.answer(task.lease_id, ann, alphabetical(task, strength=3))
    (found,) = standing_answers(team.database, pairs.id).answers
    assert (found.ranks, found.strength) == ((1, 2), 3)


def test_a_deleted_annotator_is_known_by_the_pseudonym(team: Team):
    project, ann = team.project(items=1), team.annotator("Ann")
    owner = team.annotator("Olga")
    team.set_account(owner, role="owner")
    team.work(project.id, ann, 1)
    pseudonym = Accounts(team.database).delete(ann, owner)
    assert [answer.annotator for answer in standing_answers(team.database, project.id).answers] == [pseudonym]


def test_an_empty_project_has_nothing(team: Team):
    assert standing_answers(team.database, team.projects.create("new", team.project().settings, None).id) == ((), (), ())
