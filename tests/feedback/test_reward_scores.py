"""What reward models think of responses, what that makes of the order of work, and how far it agrees with people."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import combinations
from statistics import fmean, pstdev

import numpy as np
import pytest
from sqlalchemy import func, select

from heed.errors import UserError
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.projects import NotFound
from heed.feedback.quality import clustered_share
from heed.feedback.reward_agreement import LATEST, Preferences, agreement, agreements
from heed.feedback.reward_scores import (
    RewardModel,
    Scores,
    add_reward_model,
    priorities,
    prioritise,
    reward_models,
    score_responses,
    stored_scores,
)
from heed.feedback.schema import AuditRow, ItemRow, ResponseRow, RewardModelRow, RewardScoreRow
from heed.feedback.tasks import Answer
from heed.records import Prompt, Response
from tests.feedback.team import Team, alphabetical
from tests.feedback.test_quality import MORNING, answer, item, random_standing, stand

MODEL = RewardModel(1, 1, "model", "digest", MORNING)


@pytest.fixture
def team(database: Database) -> Team:
    return Team(database)


def length_score(items: Sequence[tuple[Prompt, str]]) -> list[float]:
    return [float(len(text)) for _, text in items]


def kept(team: Team) -> dict[tuple[int, int], float]:
    with team.database.read() as session:
        return {(row.reward_model_id, row.response_id): row.score for row in session.scalars(select(RewardScoreRow))}


def audited(team: Team, action: str) -> list[dict]:
    with team.database.read() as session:
        return [row.detail for row in session.scalars(select(AuditRow).where(AuditRow.action == action).order_by(AuditRow.id))]


# Scores


def test_every_response_of_the_project_is_scored_once_with_its_own_prompt(team: Team, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heed.feedback.reward_scores.CHUNK", 4)
    project, other = team.project(items=5, gold=1), team.project("other", items=2)
    model = add_reward_model(team.database, project.id, "runs/one", "d1")
    asked: list[tuple[str, str]] = []
    told: list[tuple[int, int]] = []

    def score(items: Sequence[tuple[Prompt, str]]) -> list[float]:
        asked.extend((str(prompt.text), text) for prompt, text in items)
        return [float(ord(text)) + int(str(prompt.text).split()[1][0]) for prompt, text in items]

    assert score_responses(team.database, model, score, lambda *done: told.append(done)) == 15
    assert sorted(asked) == sorted((f"project {i}?", text) for i in range(5) for text in "abc")
    assert told == [(4, 15), (8, 15), (12, 15), (15, 15)]
    with team.database.read() as session:
        prompts = {row.id: row.prompt_id for row in session.scalars(select(ResponseRow))}
        texts = {row.id: row.text for row in session.scalars(select(ResponseRow))}
    expected = {Prompt(f"project {i}?").id: i for i in range(5)}
    assert {i: score for (_, i), score in kept(team).items()} == {
        i: ord(texts[i]) + expected[prompt] for i, prompt in prompts.items() if prompt in expected
    }
    assert score_responses(team.database, model, score) == 0
    team.projects.add_items(project.id, [(Prompt("project 9?"), [Response(text) for text in "xyz"])], None)
    assert score_responses(team.database, model, score) == 3
    assert len(asked) == 18
    assert sum(detail["responses"] for detail in audited(team, "reward_model.score")) == 18
    assert not any(i in stored_scores(team.database, model.id).responses for i in prompts if prompts[i] not in expected)
    assert reward_models(team.database, other.id) == []


def test_a_stop_loses_one_chunk_at_most_and_the_same_call_goes_on(team: Team, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heed.feedback.reward_scores.CHUNK", 2)
    model = add_reward_model(team.database, team.project(items=2).id, "m", "d")

    def stopped(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_responses(team.database, model, length_score, stopped)
    assert len(kept(team)) == 4
    assert score_responses(team.database, model, length_score) == 2
    assert len(kept(team)) == 6


def test_two_who_score_the_same_at_once_keep_one_score_each(team: Team):
    project = team.project(items=3)
    model = add_reward_model(team.database, project.id, "m", "d")

    def score(items: Sequence[tuple[Prompt, str]]) -> list[float]:
        if not kept(team):
            score_responses(team.database, model, length_score)  # the other was faster
        return [-1.0] * len(items)

    score_responses(team.database, model, score)
    assert set(kept(team).values()) == {1.0}
    assert len(kept(team)) == 9


def test_a_model_is_known_by_its_weights_in_each_project(team: Team):
    one, two = team.project("one"), team.project("two")
    first = add_reward_model(team.database, one.id, "here", "d1")
    assert add_reward_model(team.database, one.id, "moved", "d1") == first
    assert add_reward_model(team.database, one.id, "here", "d2").id != first.id
    assert add_reward_model(team.database, two.id, "here", "d1").id != first.id
    assert [model.digest for model in reward_models(team.database, one.id)] == ["d1", "d2"]
    assert [detail["name"] for detail in audited(team, "reward_model.add")] == ["here", "here", "here"]
    with pytest.raises(NotFound):
        add_reward_model(team.database, 99, "x", "x")


def test_scores_come_back_as_they_were(team: Team):
    project = team.project(items=3, responses=2)
    model = add_reward_model(team.database, project.id, "m", "d")
    draws = np.random.default_rng(0).normal(size=6).astype(np.float32).astype(float).tolist()
    draws[:2] = [-1e-12, 123456.78125]
    score_responses(team.database, model, lambda items: draws)
    scores = stored_scores(team.database, model.id)
    assert scores.responses.tolist() == sorted(i for _, i in kept(team))
    assert scores.values == pytest.approx([kept(team)[model.id, i] for i in scores.responses], rel=1e-14)
    assert sorted(scores.values) == pytest.approx(sorted(draws), rel=1e-14)
    found = scores.of(np.array([[scores.responses[1], 0], [10**6, scores.responses[5]]]))
    assert found[0, 0] == scores.values[1]
    assert found[1, 1] == scores.values[5]
    assert np.isnan(found[0, 1])
    assert np.isnan(found[1, 0])
    assert np.isnan(stored_scores(team.database, 99).of(np.array([1, 2]))).all()


# Priorities


def naive_priority(models: Sequence[Sequence[float]]) -> float:
    """Of one item, from each model's scores of its responses."""

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    values = []
    for i, j in combinations(range(len(models[0])), 2):
        p = [sigma(scores[i] - scores[j]) for scores in models]
        values.append(4 * p[0] * (1 - p[0]) if len(p) == 1 else pstdev(p))
    return fmean(values)


@pytest.mark.parametrize("num_models", [1, 2, 3])
def test_priorities_by_loops(num_models: int):
    draw = random.Random(num_models)
    sizes = [2, 4, 3, 4, 2]
    items = [[[draw.gauss(0, 2) for _ in range(size)] for _ in range(num_models)] for size in sizes]
    scores = np.full((num_models, len(sizes), 4), np.nan)
    for row, models in enumerate(items):
        for m, values in enumerate(models):
            scores[m, row, : len(values)] = values
    found = priorities(scores, ~np.isnan(scores[0]))
    assert found == pytest.approx([naive_priority(models) for models in items], abs=1e-12)


def test_priorities_at_their_ends():
    present = np.ones((1, 2), dtype=bool)
    assert priorities(np.array([[[3.0, 3.0]]]), present) == 1
    assert priorities(np.array([[[0.0, 5000.0]]]), present) == 0
    assert priorities(np.array([[[0.0, 5000.0]], [[5000.0, 0.0]]]), present) == 0.5
    assert priorities(np.array([[[1.0, 2.0]], [[101.0, 102.0]]]), present) == pytest.approx(0)  # a shift says nothing
    assert np.isnan(priorities(np.array([[[1.0, np.nan]]]), present))
    assert np.isnan(priorities(np.array([[[1.0]]]), present[:, :1]))
    assert priorities(np.zeros((1, 0, 0)), np.zeros((0, 0), dtype=bool)).shape == (0,)


def unsure_of(numbers: Sequence[int]):
    """Equal scores for the responses to these prompts, the first most equal; far apart ones for the others."""

    def score(items: Sequence[tuple[Prompt, str]]) -> list[float]:
        found = []
        for prompt, text in items:
            number = int(str(prompt.text).split()[1].rstrip("?"))
            distance = 0.1 * numbers.index(number) if number in numbers else 10.0 + number
            found.append(distance * (ord(text) - ord("a")))
        return found

    return score


def test_annotators_get_what_the_model_is_least_sure_of_first_and_the_control_share_at_random(team: Team):
    project = team.project(items=200, responses=2, strategy="uncertain", control_share=0.25)
    ann = team.annotator("ann")
    model = add_reward_model(team.database, project.id, "m", "d")
    order = random.Random(0).sample(range(200), 200)
    score_responses(team.database, model, unsure_of(order))
    assert prioritise(team.database, [model]) == 200
    assert prioritise(team.database, [model]) == 0
    assert [detail["items"] for detail in audited(team, "items.prioritise")] == [200]
    tasks = team.work(project.id, ann, 100)
    numbers = [int(str(task.prompt.text).split()[1].rstrip("?")) for task in tasks]
    reasons = [team.lease(task.lease_id).reason for task in tasks]
    assert 12 <= reasons.count("random") <= 38  # 25 expected, 99.8 % interval
    taken: set[int] = set()
    for number, reason in zip(numbers, reasons, strict=True):
        if reason == "uncertain":
            assert number == next(n for n in order if n not in taken)
        taken.add(number)


def test_with_several_models_their_disagreement_decides(team: Team):
    project = team.project(items=3, responses=2, strategy="uncertain", control_share=0.0)
    models = [add_reward_model(team.database, project.id, name, name) for name in "ab"]
    # Both are unsure of 0 and sure of 1; of 2 they are sure of opposite things.
    for model, sign in zip(models, (1, -1), strict=True):
        margins = {"project 0?": 0.0, "project 1?": 8.0, "project 2?": 8.0 * sign}
        score_responses(team.database, model, lambda items, m=margins: [m[str(p.text)] * (t == "a") for p, t in items])
    assert prioritise(team.database, models) == 1
    assert team.take(project.id, team.annotator("ann")).prompt.text == "project 2?"
    prioritise(team.database, models[:1])
    assert team.take(project.id, team.annotator("ben")).prompt.text == "project 0?"


def test_only_waiting_items_with_all_scores_change(team: Team):
    project = team.project(items=4, gold=1, responses=2)
    team.work(project.id, team.annotator("ann"), 1)
    model = add_reward_model(team.database, project.id, "m", "d")
    score_responses(team.database, model, length_score)
    team.projects.add_items(project.id, [(Prompt("later"), [Response("a"), Response("b")])], None)
    assert prioritise(team.database, [model]) == 2
    with team.database.read() as session:
        rows = session.scalars(select(ItemRow).order_by(ItemRow.id)).all()
    assert [row.priority for row in rows] == [float(row.remaining > 0 and row.prompt_id != Prompt("later").id) for row in rows]
    with pytest.raises(UserError):
        prioritise(team.database, [])
    other = add_reward_model(team.database, team.project("other").id, "m", "d")
    with pytest.raises(UserError):
        prioritise(team.database, [model, other])


# Agreement with people


def naive_agreement(standing, scores: dict[int, float]) -> tuple[float, int]:
    """Share of the preferred pairs that the scores order alike, equal scores half; and the number of pairs."""
    values = []
    for said in standing.answers:
        if said.ranks is None or said.reason not in ("random", "uncertain") or said.item.gold:
            continue
        for i, j in combinations(range(len(said.ranks)), 2):
            ids = said.item.responses[i], said.item.responses[j]
            if said.ranks[i] == said.ranks[j] or not scores.keys() >= set(ids):
                continue
            better, worse = ids if said.ranks[i] < said.ranks[j] else ids[::-1]
            values.append(0.5 if scores[better] == scores[worse] else float(scores[better] > scores[worse]))
    return fmean(values), len(values)


def scores_of(known: dict[int, float]) -> Scores:
    ids = sorted(known)
    return Scores(np.array(ids, dtype=int), np.array([known[i] for i in ids]))


@pytest.mark.parametrize("seed", range(4))
def test_agreement_by_loops_overall_in_slices_and_by_why_the_item_came(seed: int):
    draw = random.Random(seed)
    found = random_standing(seed)
    answers = []
    for number, said in enumerate(found.answers):
        of = said.item._replace(responses=tuple(100 * said.item.id + 1 + i for i in said.item.responses))
        reason = said.reason if said.reason == "again" else draw.choice(("random", "uncertain"))
        answers.append(said._replace(item=of, reason=reason, created_at=MORNING + timedelta(minutes=number)))
    standing = stand(answers)
    known = {i: float(draw.randint(0, 3)) for of in standing.items for i in of.responses if draw.random() < 0.9}
    half = MORNING + timedelta(minutes=len(answers) // 2)
    result = agreement(Preferences.of(standing), MODEL._replace(scored_at=half), scores_of(known))
    share, pairs = naive_agreement(standing, known)
    assert result.overall is not None
    assert result.overall.value == pytest.approx(share)
    assert result.overall.low < share < result.overall.high

    def only(condition) -> float:
        return naive_agreement(stand([a for a in answers if a.created_at >= half and condition(a)]), known)[0]

    for part, condition in (
        (result.since, lambda a: True),
        (result.control, lambda a: a.reason == "random"),
        (result.uncertain, lambda a: a.reason == "uncertain"),
    ):
        assert part is not None
        assert part.value == pytest.approx(only(condition))
    assert sum(part.answers for part in result.slices) == result.answers
    sizes = {part.answers for part in result.slices}
    assert max(sizes) - min(sizes) <= 1
    total = 0
    for part in result.slices:
        inside = stand([a for a in answers if part.first <= a.created_at <= part.last])
        share, number = naive_agreement(inside, known)
        assert part.share.value == pytest.approx(share)
        total += number
    assert total == pairs
    ends = [at for part in result.slices for at in (part.first, part.last)]
    assert ends == sorted(ends)


def test_ties_gold_items_and_repetitions_say_nothing_and_equal_scores_are_half_right():
    scores = scores_of({0: 1.0, 1: 0.0})
    of = item(1, 2)
    tie, gold = answer(of, "ada", (1, 1)), answer(item(2, 2, gold=(1, 2)), "ada", (2, 1), reason="gold")
    again = answer(of, "ada", (2, 1), reason="again")
    nothing = agreement(Preferences.of(stand([tie, gold, again])), MODEL, scores)
    assert (nothing.overall, nothing.since, nothing.answers, nothing.slices) == (None, None, 0, ())
    right = agreement(Preferences.of(stand([answer(of, "ada", (1, 2)), tie, gold, again])), MODEL, scores)
    assert right.overall is not None
    assert (right.overall.value, right.answers) == (1.0, 1)
    equal = agreement(Preferences.of(stand([answer(of, "ada", (1, 2))])), MODEL, scores_of({0: 1.0, 1: 1.0}))
    assert equal.overall is not None
    assert equal.overall.value == 0.5
    assert agreement(Preferences.of(stand([])), MODEL, scores).overall is None


def test_slices_are_as_many_as_answers_allow():
    for number, expected in ((1, 1), (39, 1), (40, 2), (239, 11), (240, 12), (5000, 12)):
        answers = [answer(item(i, 2), "ada", (1, 2), created_at=MORNING + timedelta(minutes=i)) for i in range(number)]
        assert len(agreement(Preferences.of(stand(answers)), MODEL, scores_of({0: 1.0, 1: 0.0})).slices) == expected


def test_a_clock_that_was_set_back_does_not_put_answers_into_the_wrong_slice():
    times = [MORNING + timedelta(minutes=m) for m in (*range(60, 90), *range(30))]
    answers = [answer(item(i, 2), "ada", (1, 2), created_at=at) for i, at in enumerate(times)]
    slices = agreement(Preferences.of(stand(answers)), MODEL, scores_of({0: 1.0, 1: 0.0})).slices
    assert [part.first for part in slices] == sorted(part.first for part in slices)
    assert slices[0].first == MORNING


def test_the_interval_holds_the_truth_as_often_as_it_says_though_pairs_of_an_item_go_together():
    draw = np.random.default_rng(0)
    held = [0, 0]
    for _ in range(400):
        # Six answers to each of 40 items, all right or all wrong together in half of the items.
        right = draw.random((40, 6)) < 0.8
        right[:20] = right[:20, :1]
        item_of = np.repeat(np.arange(40), 6)
        for kind, unit in enumerate((item_of, np.arange(240))):
            found = clustered_share(right.ravel().astype(float), np.ones(240), unit)
            assert found is not None
            held[kind] += found.low <= 0.8 <= found.high
    assert held[0] >= 0.92 * 400
    assert held[1] < 0.88 * 400  # what it would be if pairs were taken for independent


def test_an_interval_is_never_a_point_and_stays_within_0_and_1():
    for right, decided, items in (([1.0], [1], [0]), ([6.0, 6.0], [6, 6], [0, 1]), ([0.0] * 5, [1] * 5, [0, 0, 0, 1, 2])):
        found = clustered_share(np.array(right), np.array(decided), np.array(items))
        assert found is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.high - found.low > 0.3


def test_a_projects_latest_models_come_newest_first_with_what_the_database_holds(team: Team):
    project = team.project(items=30, responses=3)
    team.clock.now = datetime(2024, 5, 6)
    team.work(project.id, team.annotator("ann"), 20)
    alphabet = [add_reward_model(team.database, project.id, f"m{n}", f"d{n}") for n in range(LATEST + 1)]
    score_responses(team.database, alphabet[-2], lambda items: [-float(ord(text)) for _, text in items])
    score_responses(team.database, alphabet[-1], lambda items: [float(ord(text)) for _, text in items])
    ben = team.annotator("ben")
    with team.database.read() as session:
        newest = session.scalars(select(RewardModelRow).order_by(RewardModelRow.id.desc())).first()
        assert newest is not None
        team.clock.now = newest.created_at + timedelta(seconds=1)
    for _ in range(10):
        task = team.take(project.id, ben)
        ranks = alphabetical(task).ranks
        assert ranks is not None
        team.tasks.answer(task.lease_id, ben, Answer(ranks=tuple(4 - rank for rank in ranks)))
    found = agreements(team.database, project.id, standing_answers(team.database, project.id))
    assert [each.model.name for each in found] == [f"m{n}" for n in range(LATEST, 0, -1)]
    reverse, right, unscored = found[0], found[1], found[2]
    assert right.overall is not None
    assert right.overall.value == pytest.approx(2 / 3)
    assert right.since is not None
    assert right.since.value == 0
    assert (right.before, right.answers) == (20, 30)
    assert reverse.overall is not None
    assert reverse.overall.value == pytest.approx(1 / 3)
    assert unscored.overall is None
    with team.database.read() as session:
        assert session.scalar(select(func.count()).select_from(RewardScoreRow)) == 180
    assert agreements(team.database, team.project("empty").id, stand([])) == ()
