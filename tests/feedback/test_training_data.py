"""What of a store is learned from: what annotators said, and of a project what its export holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.export import Export
from heed.feedback.store import FeedbackStore
from heed.feedback.training_data import rankings
from heed.records import Message, Prompt, Ranking, Response
from tests.feedback.team import Team
from tests.feedback.test_store import PROMPT, TEXTS, judged


@settings(max_examples=30, deadline=None)
@given(ranks=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple).filter(lambda ranks: 1 in ranks))
def test_pairs_say_what_the_ranks_say(ranks: tuple[int, ...]):
    store = FeedbackStore("sqlite://")  # in memory
    store.add_responses(PROMPT, [Response(t) for t in TEXTS])
    store.add_judgement(judged(ranks))
    rank: dict[str, int] = dict(zip(TEXTS, ranks, strict=False))
    pairs = [pair for ranking in rankings(store) for pair in ranking.pairs()]
    assert {frozenset((p.chosen, p.rejected)) for p in pairs} == {frozenset(c) for c in combinations(rank, 2)}
    assert len(pairs) == len(ranks) * (len(ranks) - 1) / 2
    for pair in pairs:
        assert rank[pair.chosen] < rank[pair.rejected] if pair.label == 1 else rank[pair.chosen] == rank[pair.rejected]
        assert pair.label in (1, 0.5)


def test_annotators_weigh_as_told():
    store = FeedbackStore("sqlite://")
    store.add_responses(PROMPT, [Response(t) for t in TEXTS])
    store.add_judgements([judged((1, 2), annotator="ada"), judged((2, 1), annotator="bob")])
    assert [r.weight for r in rankings(store)] == [1, 1]
    assert [r.weight for r in rankings(store, {"bob": 0.25, "ada": 2.0})] == [2.0, 0.25]
    with pytest.raises(UserError, match="'bob' has no weight"):
        rankings(store, {"ada": 1.0})


def said(found: Sequence[Ranking]) -> list[tuple[object, ...]]:
    return [(r.prompt.text, r.prompt.tags, r.responses, r.ranks, r.weight) for r in found]


def exported(database: Database, project: str, weights: Mapping[str, float] | None = None) -> list[tuple[object, ...]]:
    rows = Export(database, project, "rankings", weights=weights).rows()
    return [(row["prompt"], row.get("tags", {}), tuple(row["responses"]), tuple(row["ranks"]), row["weight"]) for row in rows]


def test_of_a_project_what_its_export_holds_is_training_data(database: Database):
    team, store = Team(database), FeedbackStore(database)
    project = team.project(items=30, gold=6, overlap=2, gold_rate=0.3, again_rate=0.3)
    tasks = [team.work(project.id, team.annotator(name), 26) for name in ("ann", "ben")]
    decided = next(task.item_id for task in tasks[0] if team.item(task.item_id).gold is None)
    team.tasks.decide(decided, team.annotator("lea"), [3, 2, 1])
    found = rankings(store)
    assert said(found) == exported(database, "project")
    assert 0 < len(found) < len(store.judgements()) == 52
    assert [r.ranks for r in found].count((3, 2, 1)) == 1
    weights = {"ann": 0.5, "ben": 2.0}
    assert said(rankings(store, weights)) == exported(database, "project", weights)
    with pytest.raises(UserError, match="also ben"):
        rankings(store, {"ann": 1.0})
    assert all(len(ranking.pairs()) == 3 for ranking in found)


def test_a_project_of_gold_alone_is_no_training_data(database: Database):
    team = Team(database)
    team.work(team.project(items=2, gold=2).id, team.annotator("ann"), 2)
    store = FeedbackStore(database)
    assert (len(store.judgements()), rankings(store)) == (2, [])


def test_conversations_of_a_project_come_back_as_they_are(database: Database):
    team, prompt = Team(database), Prompt((Message("system", "Be brief."), Message("user", "Hi")), {"kind": "hello"})
    project = team.project(items=0)
    team.projects.add_items(project.id, [(prompt, [Response("a"), Response("b")])], None)
    team.work(project.id, team.annotator("ann"), 1)
    (ranking,) = rankings(FeedbackStore(database))
    assert (ranking, ranking.prompt.tags) == (Ranking(prompt, ("a", "b"), (1, 2)), prompt.tags)


def test_judgements_outside_of_projects_are_training_data_as_they_are(database: Database):
    team, store = Team(database), FeedbackStore(database)
    store.add_responses(PROMPT, [Response(t) for t in TEXTS])
    alone = [judged((1, 2, 3)), judged((3, 2, 1)), judged((1, 1, 2))]
    store.add_judgements(alone)
    project, ann = team.project(items=2), team.annotator("ann")
    assert rankings(store) == [j.ranking() for j in alone]
    team.work(project.id, ann, 2)
    assert said(rankings(store)[3:]) == exported(database, "project")
    for _ in range(2):
        team.tasks.undo(project.id, ann)
    assert rankings(store) == [j.ranking() for j in alone]


def test_of_several_projects_with_rankings_none_is_taken_for_the_others(database: Database):
    team, store = Team(database), FeedbackStore(database)
    first, second, ann = team.project("first"), team.project("second"), team.annotator("ann")
    team.work(first.id, ann, 2)
    assert said(rankings(store)) == exported(database, "first")
    team.work(second.id, ann, 1)
    with pytest.raises(UserError, match=r"rankings of 2 projects: 'first', 'second'; .*heed feedback export .*--project NAME"):
        rankings(store)
