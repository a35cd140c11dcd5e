"""Answers as training data: what each kind holds, what is left out, and that the readers of data take it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from heed.data.check import check
from heed.data.readers import read_demonstrations, read_preferences
from heed.data.writers import write_jsonl
from heed.errors import UserError
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.export import Export, Filters, Kind, annotators_of, label_weights, read_time
from heed.feedback.projects import NotFound
from heed.feedback.quality import reliabilities
from heed.feedback.schema import AccountRow
from heed.feedback.tasks import Answer, Task
from heed.records import Message, PreferencePair, Prompt, Ranking, Response
from tests.feedback.panel import CAREFUL, panel
from tests.feedback.team import Team

Rank = Callable[[str], int]
CREATED = datetime(2024, 5, 6, 9, 0)


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(Database(tmp_path / "feedback.db"))


def say(team: Team, project_id: int, name: str, ranks: dict[str, int] | None, **more: Any) -> Task:
    """The next task, answered with a rank for each response, by its text; flags and ratings are by text too."""
    with team.database.read() as session:
        account = session.query(AccountRow).filter_by(name=name).one_or_none()
    task = team.take(project_id, account.id if account else team.annotator(name))
    places = {text: place for place, text in enumerate(task.responses)}
    flags = {flag: [places[text] for text in texts] for flag, texts in more.pop("flags", {}).items()}
    ratings = {name: [values[text] for text in task.responses] for name, values in more.pop("ratings", {}).items()}
    ranked = None if ranks is None else tuple(ranks[text] for text in task.responses)
    with team.database.read() as session:
        account_id = session.query(AccountRow).filter_by(name=name).one().id
    team.tasks.answer(task.lease_id, account_id, Answer(ranks=ranked, flags=flags, ratings=ratings, **more))
    return task


def rows(team: Team, kind: Kind, **filters: Any) -> list[dict[str, Any]]:
    return list(Export(team.database, "project", kind, Filters(**filters)).rows())


def test_a_pair_is_one_row_of_what_all_annotators_said(team: Team) -> None:
    project = team.project(items=1, responses=2, overlap=4)
    for name, ranks in {"ann": (1, 2), "ben": (1, 2), "cy": (2, 1), "dee": (1, 1)}.items():
        say(team, project.id, name, dict(zip("ab", ranks, strict=True)))
    (row,) = rows(team, "pairs")
    assert row == {
        "prompt": "project 0?",
        "chosen": "a",
        "rejected": "b",
        "label": 2.5 / 4,
        "margin": 0.0,
        "weight": 4.0,
        "annotators": ["ann", "ben"],
        "num_annotators": 4,
        # Six couples: one agrees, two are opposed, and the tie half agrees with each of three.
        "agreement": pytest.approx((1 + 0 + 0 + 3 * 0.5) / 6),
    }


def test_the_majority_is_chosen_and_a_draw_is_half(team: Team) -> None:
    project = team.project(items=1, responses=3, overlap=2)
    say(team, project.id, "ann", {"a": 3, "b": 1, "c": 2})
    say(team, project.id, "ben", {"a": 2, "b": 1, "c": 3})
    found = {frozenset((row["chosen"], row["rejected"])): row for row in rows(team, "pairs")}
    assert {(r["chosen"], r["label"]) for key, r in found.items() if "b" in key} == {("b", 1.0)}
    draw = found[frozenset("ac")]
    assert (draw["label"], draw["annotators"], draw["agreement"]) == (0.5, [], 0.0)


def test_the_margin_is_the_mean_strength_for_the_better(team: Team) -> None:
    project = team.project(items=1, responses=2, compare="pairwise", overlap=3)
    say(team, project.id, "ann", {"a": 1, "b": 2}, strength=4)
    say(team, project.id, "ben", {"a": 1, "b": 2}, strength=3)
    say(team, project.id, "cy", {"a": 2, "b": 1}, strength=2)
    (row,) = rows(team, "pairs")
    assert row["chosen"] == "a"
    assert row["margin"] == pytest.approx((1 + 2 / 3 - 1 / 3) / 3)


def test_weights_of_annotators_decide(team: Team) -> None:
    project = team.project(items=1, responses=2, overlap=3)
    for name, ranks in {"ann": (1, 2), "ben": (2, 1), "cy": (2, 1)}.items():
        say(team, project.id, name, dict(zip("ab", ranks, strict=True)))
    (row,) = Export(team.database, "project", "pairs", weights={"ann": 0.9, "ben": 0.2, "cy": 0.1}).rows()
    assert (row["chosen"], row["label"], row["weight"]) == ("a", pytest.approx(0.75), pytest.approx(1.2))
    ranked = Export(team.database, "project", "rankings", weights={"ann": 0.9, "ben": 0.2, "cy": 0.0})
    assert [(row["annotator"], row["weight"]) for row in ranked.rows()] == [("ann", 0.9), ("ben", 0.2)]
    assert ranked.left_out == {"rankings of annotators without weight": 1}
    with pytest.raises(UserError, match="also ben, cy"):
        list(Export(team.database, "project", "pairs", weights={"ann": 1.0}).rows())


def test_labels_weigh_what_their_annotators_reliability_is(team: Team) -> None:
    pytest.importorskip("crowdkit")
    panel(team.database)
    standing = standing_answers(team.database, 1)
    weights = label_weights(standing)
    known = reliabilities(standing)
    assert {name: weights[name] for name in (*CAREFUL, "dan")} == {name: known[name] for name in (*CAREFUL, "dan")}
    assert min(weights[name] for name in CAREFUL) > 0.95
    assert weights["dan"] < 0.3
    export = Export(team.database, "panel", "rankings", weights=label_weights)
    found = {row["annotator"]: row["weight"] for row in export.rows()}
    assert found == {name: weight for name, weight in weights.items() if weight}
    card = export.card()
    assert f"| ann | 30 | {weights['ann']:.3f} |" in card
    assert "who compared fewer than 20 items that others compared too weighs as much as the others on average" in card


def test_who_shares_too_few_items_to_be_known_weighs_as_the_others_do_on_average(team: Team) -> None:
    pytest.importorskip("crowdkit")
    panel(team.database)
    weights = label_weights(standing_answers(team.database, 1))
    assert weights["eve"] == pytest.approx(sum(weights[name] for name in (*CAREFUL, "dan")) / 4)
    assert 0.7 < weights["eve"] < 0.9


def test_weights_need_answers_enough_and_labels_to_weigh(team: Team) -> None:
    pytest.importorskip("crowdkit")
    panel(team.database, items=19)
    with pytest.raises(UserError, match="nobody has compared 20 items"):
        list(Export(team.database, "panel", "pairs", weights=label_weights).rows())
    with pytest.raises(UserError, match="weights is 'given'; expected none for demonstrations"):
        Export(team.database, "panel", "demonstrations", weights=label_weights)


def test_a_card_without_weights_says_so(team: Team) -> None:
    panel(team.database, items=2 + 3)
    export = Export(team.database, "panel", "pairs")
    list(export.rows())
    assert "- weights: none" in export.card()
    assert "| ann | 5 |" in export.card().splitlines()


def test_a_ranking_is_a_row_for_each_annotator(team: Team) -> None:
    project = team.project(items=1, overlap=2)
    say(team, project.id, "ann", {"a": 1, "b": 2, "c": 2})
    say(team, project.id, "ben", {"a": 1, "b": 2, "c": 3})
    shared = {"prompt": "project 0?", "responses": ["a", "b", "c"], "weight": 1.0, "agreement": pytest.approx((1 + 1 + 0.5) / 3)}
    assert rows(team, "rankings") == [
        {**shared, "ranks": [1, 2, 2], "annotator": "ann"},
        {**shared, "ranks": [1, 2, 3], "annotator": "ben"},
    ]


def test_kto_labels_come_from_ranks_and_flags(team: Team) -> None:
    project = team.project(items=1, responses=4, overlap=2, flags=("rude",))
    say(team, project.id, "ann", {"a": 1, "b": 2, "c": 2, "d": 4}, flags={"rude": ["a"]})
    say(team, project.id, "ben", {"a": 4, "b": 1, "c": 3, "d": 2})
    found = {row["response"]: (row["label"], row["annotators"], row["agreement"]) for row in rows(team, "kto")}
    # b and c are in the middle to ann; d is bad to ann and good to ben.
    assert found == {"a": (False, ["ann", "ben"], 1.0), "b": (True, ["ben"], 0.5), "c": (False, ["ben"], 0.5)}


def test_kto_has_no_responses_that_say_nothing(team: Team, tmp_path: Path) -> None:
    project = team.project(items=0, num_responses=3)
    team.projects.add_items(project.id, [(Prompt("Q?"), [Response("good"), Response(" \n"), Response("")])], None)
    say(team, project.id, "ann", {"good": 1, " \n": 3, "": 2}, flags={"toxic": [""]})
    export = Export(team.database, "project", "kto")
    write_jsonl(tmp_path / "kto.jsonl", list(export.rows()))
    assert export.left_out == {"empty responses": 2}
    report = check(tmp_path / "kto.jsonl")
    assert (report.num_rows, report.ok) == (1, True)


def test_kto_labels_come_from_ratings_where_nothing_is_compared(team: Team) -> None:
    project = team.project(items=1, compare="none", ratings=("kind", "true"))
    values = {"kind": {"a": 7, "b": 4, "c": 5}, "true": {"a": 2, "b": 4, "c": 2}}
    say(team, project.id, "ann", None, ratings=values)
    assert {row["response"]: row["label"] for row in rows(team, "kto")} == {"a": True, "c": False}


def test_ideal_responses_are_demonstrations(team: Team, tmp_path: Path) -> None:
    project = team.project(items=2, overlap=2, ideal=True)
    ranks = {"a": 1, "b": 2, "c": 3}
    for name in ("ann", "ben"):
        for text in ("The same.", " "):
            say(team, project.id, name, ranks, ideal=text)
    found = rows(team, "demonstrations")
    assert all(row["response"] == "The same." for row in found)
    assert sum(len(row["annotators"]) for row in found) == 2
    write_jsonl(tmp_path / "d.jsonl", found)
    assert [d.response for d in read_demonstrations(tmp_path / "d.jsonl").records] == ["The same."] * len(found)


def test_the_readers_of_preferences_take_pairs_and_rankings(team: Team, tmp_path: Path) -> None:
    project = team.project(items=0, num_responses=3)
    prompt = Prompt((Message("system", "Be brief."), Message("user", "Hi \u2028 there")), {"kind": "hello"})
    team.projects.add_items(project.id, [(prompt, [Response(" "), Response("x\n"), Response("")])], None)
    say(team, project.id, "ann", {" ": 1, "x\n": 2, "": 3})
    export = Export(team.database, "project", "pairs")
    write_jsonl(tmp_path / "p.jsonl", export.rows())
    pairs = read_preferences(tmp_path / "p.jsonl")
    assert pairs.records == [PreferencePair(prompt, " ", "x\n")]
    assert isinstance(pairs.records[0], PreferencePair)
    assert pairs.records[0].prompt.tags == prompt.tags
    assert export.left_out == {"pairs with an empty response": 2}
    write_jsonl(tmp_path / "r.jsonl", rows(team, "rankings"))
    assert read_preferences(tmp_path / "r.jsonl").records == [Ranking(prompt, (" ", "x\n", ""), (1, 2, 3))]


def test_checks_are_no_training_data_unless_asked(team: Team) -> None:
    project = team.project(items=30, gold=2, gold_rate=0.3, again_rate=0.3)
    done = team.work(project.id, team.annotator("ann"), 30)
    reasons = Counter(team.lease(task.lease_id).reason for task in done)
    assert min(reasons["gold"], reasons["again"], reasons["random"]) > 0
    export = Export(team.database, "project", "rankings")
    assert len(list(export.rows())) == reasons["random"]
    assert export.left_out == {"answers to gold items and repetitions": reasons["gold"] + reasons["again"]}
    asked = Export(team.database, "project", "rankings", Filters(checks=True))
    assert len(list(asked.rows())) == reasons["random"] + reasons["gold"]
    assert asked.left_out == {"earlier answers of the same annotator": reasons["again"]}


def test_what_was_taken_back_or_skipped_is_no_data(team: Team) -> None:
    project = team.project(items=2)
    ann = team.annotator("ann")
    say(team, project.id, "ann", {"a": 1, "b": 2, "c": 3})
    task = team.tasks.undo(project.id, ann)
    assert task is not None
    team.tasks.skip(task.lease_id, ann, "no idea")
    export = Export(team.database, "project", "rankings")
    assert list(export.rows()) == []
    assert export.left_out == {"skipped items": 1}


def test_filters(team: Team) -> None:
    project = team.project(items=1, overlap=2, flags=("rude",))
    say(team, project.id, "ann", {"a": 1, "b": 2, "c": 3}, flags={"rude": ["a"]})
    team.clock.advance(days=1)
    say(team, project.id, "ben", {"a": 1, "b": 3, "c": 2})
    first, second = CREATED, datetime(2024, 5, 7, 9, 0)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["ann", "ben"]),
        ({"annotators": ("ben",)}, ["ben"]),
        ({"since": second}, ["ben"]),
        ({"until": second}, ["ann"]),
        ({"since": first, "until": read_time("2024-05-08")}, ["ann", "ben"]),
        ({"min_agreement": 0.7}, []),
        ({"min_agreement": 0.6}, ["ann", "ben"]),
        ({"min_agreement": 0.1, "annotators": ("ben",)}, []),
    ]
    for filters, names in cases:
        assert [row["annotator"] for row in rows(team, "rankings", **filters)] == names, filters
    assert {(r["chosen"], r["rejected"]) for r in rows(team, "pairs", min_agreement=1.0)} == {("a", "b"), ("a", "c")}
    flagged = Export(team.database, "project", "rankings", Filters(without_flags=("rude",)))
    assert [(row["responses"], row["ranks"]) for row in flagged.rows()] == [(["b", "c"], [1, 2]), (["b", "c"], [2, 1])]
    assert flagged.left_out == {"flagged responses": 1}
    assert [r["response"] for r in rows(team, "kto", without_flags=("rude",), annotators=("ben",))] == ["a", "b"]


def test_a_decision_settles_its_item_except_in_data_of_chosen_annotators(team: Team) -> None:
    project = team.project(items=1, overlap=2)
    task = say(team, project.id, "ann", {"a": 1, "b": 2, "c": 3})
    say(team, project.id, "ben", {"a": 3, "b": 2, "c": 1})
    lead = team.annotator("lead")
    team.tasks.decide(task.item_id, lead, [3, 2, 1])
    team.tasks.decide(task.item_id, lead, [1, 1, 3], "on second thought")
    assert [(row["ranks"], row["annotator"], row["decided"]) for row in rows(team, "rankings", min_agreement=1.0)] == [
        ([1, 1, 3], None, True)
    ]
    pairs = {(row["chosen"], row["rejected"]): row for row in rows(team, "pairs")}
    assert {key: row["label"] for key, row in pairs.items()} == {("a", "b"): 0.5, ("a", "c"): 1.0, ("b", "c"): 1.0}
    assert pairs["a", "c"] | {"annotators": ["ann"], "num_annotators": 2, "agreement": 0.0, "decided": True} == pairs["a", "c"]
    assert {row["response"]: row["label"] for row in rows(team, "kto")} == {"a": True, "b": True, "c": False}
    assert [row["ranks"] for row in rows(team, "rankings", annotators=("ben",))] == [[3, 2, 1]]
    assert [row["chosen"] for row in rows(team, "pairs", annotators=("ben",))] == ["b", "c", "c"]


@pytest.mark.parametrize(
    ("kind", "filters", "message"),
    [
        ("pairs", {"annotators": ("zoe",)}, "annotator is 'zoe'; expected one of ann"),
        ("pairs", {"without_flags": ("loud",)}, "without_flags is 'loud'; expected one of toxic"),
        ("pairs", {"min_agreement": 1.5}, "min_agreement is 1.5"),
        ("pairs", {"min_agreement": float("nan")}, "min_agreement is nan"),
        ("demonstrations", {"min_agreement": 0.5}, "none for demonstrations"),
        ("pairs", {"since": datetime(2025, 1, 1), "until": datetime(2024, 1, 1)}, "since is"),
        ("pears", {}, "kind is 'pears'; expected one of pairs, rankings, kto, demonstrations"),
    ],
)
def test_filters_that_make_no_sense_are_told(team: Team, kind: Any, filters: dict[str, Any], message: str) -> None:
    project = team.project(items=1)
    say(team, project.id, "ann", {"a": 1, "b": 2, "c": 3})
    with pytest.raises(UserError, match=message):
        rows(team, kind, **filters)


def test_an_unknown_project_is_told(team: Team) -> None:
    with pytest.raises(NotFound):
        Export(team.database, "nowhere", "pairs")


def test_the_card_tells_counts_agreement_and_what_was_left_out(team: Team) -> None:
    project = team.project(items=2, overlap=2)
    for name in ("ann", "ben"):
        for _ in range(2):
            say(team, project.id, name, {"a": 1, "b": 2, "c": 3})
    export = Export(team.database, "project", "pairs", Filters(until=datetime(2030, 1, 1)))
    assert len(list(export.rows())) == 6
    card = export.card()
    for line in (
        "# project: pairs",
        "- rows: 6",
        "- answers: 4 of 2 items",
        "- from: 2024-05-06 09:00 to 2024-05-06 09:00 UTC",
        "- pairwise agreement: 1.000",
        "- filters: until 2030-01-01 00:00:00",
        "| ann | 2 |",
        "Nothing.",
    ):
        assert line in card.splitlines(), card


def test_a_card_of_one_annotator_says_that_agreement_is_not_known(team: Team) -> None:
    project = team.project(items=1)
    say(team, project.id, "ann", {"a": 1, "b": 2, "c": 3})
    export = Export(team.database, "project", "pairs")
    list(export.rows())
    assert "- pairwise agreement: not known: no pair of responses was judged by two annotators" in export.card()


def test_annotators_are_those_who_answered_here(team: Team) -> None:
    here, there = team.project(items=1), team.project("other", items=2)
    say(team, here.id, "ann", {"a": 1, "b": 2, "c": 3})
    say(team, there.id, "ben", {"a": 1, "b": 2, "c": 3})
    assert (annotators_of(team.database, here.id), annotators_of(team.database, there.id)) == (["ann"], ["ben"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2026-01-31", datetime(2026, 1, 31)),
        ("2026-01-31T18:00", datetime(2026, 1, 31, 18)),
        ("2026-01-31T18:00+02:00", datetime(2026, 1, 31, 16)),
    ],
)
def test_times_are_utc(text: str, found: datetime) -> None:
    assert read_time(text) == found


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "0001-01-01T00:00+14:00", "\u0661"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(UserError, match="expected a date such as"):
        read_time(text)
