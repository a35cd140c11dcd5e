from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from heed.errors import UserError
from heed.feedback import SimulatedAnnotator, krippendorff_alpha, noise_ceiling, pairwise_agreement
from heed.feedback.answers import GivenAnswer, Item, Skip, Standing, standing_answers
from heed.feedback.database import Database
from heed.feedback.quality import Pace, Quality, pace, progress, quality, rating_agreements, reliabilities
from heed.feedback.tasks import Answer
from heed.records import Judgement, Prompt, Response
from tests.feedback.team import Team

MORNING = datetime(2024, 5, 6, 9, 0)


def item(number: int, count: int = 3, *, lengths: Sequence[int] = (), gold: tuple[int, ...] | None = None) -> Item:
    return Item(number, f"p{number}", tuple(range(count)), tuple(lengths or range(10, 10 + count)), gold)


def answer(of: Item, name: str, ranks: Sequence[int] | None, **more) -> GivenAnswer:
    shown = tuple(range(len(of.responses)))
    ranked = None if ranks is None else tuple(ranks)
    return GivenAnswer(0, of, ord(name[0]), name, "random", shown, ranked, None, {}, {}, "", "", 10.0, MORNING)._replace(**more)


def stand(answers: Sequence[GivenAnswer], skips: Sequence[Skip] = ()) -> Standing:
    return Standing(tuple({a.item.id: a.item for a in answers}.values()), tuple(answers), tuple(skips))


def random_standing(seed: int, *, sizes: Sequence[int] = (2, 3, 4), ties: bool = True) -> Standing:
    """Four annotators who each answer most of 30 items, some of them twice."""
    draw = random.Random(seed)
    answers = []
    for number in range(30):
        of = item(number, draw.choice(sizes), gold=None)
        of = of._replace(lengths=tuple(draw.randint(1, 5) for _ in of.responses))
        if number % 3 == 0:
            of = of._replace(gold=tuple(random_ranks(draw, len(of.responses), ties)))
        for name in ("ada", "Bob", "eve", "zoe"):
            for reason in ("random", "again"):
                if draw.random() < (0.7 if reason == "random" else 0.3):
                    order = tuple(draw.sample(range(len(of.responses)), len(of.responses)))
                    ranks = random_ranks(draw, len(of.responses), ties)
                    answers.append(answer(of, name, ranks, reason=reason, order=order, seconds=draw.random() * 9))
    return stand(answers)


def random_ranks(draw: random.Random, count: int, ties: bool) -> list[int]:
    if not ties:
        return draw.sample(range(1, count + 1), count)
    ranks = [draw.randint(1, count) for _ in range(count)]
    return [rank - min(ranks) + 1 for rank in ranks]


def judgements(standing: Standing) -> list[Judgement]:
    return [
        Judgement(Prompt(a.item.prompt_id), tuple(f"text {i:02}" for i in a.item.responses), a.ranks, a.annotator)
        for a in standing.answers
        if a.ranks is not None
    ]


def outcome(ranks: Sequence[int], i: int, j: int) -> int:
    return (ranks[j] > ranks[i]) - (ranks[j] < ranks[i])


def same(a: Sequence[int], b: Sequence[int]) -> list[float]:
    """Of each pair, how far two rankings say the same."""
    return [1 - abs(outcome(a, i, j) - outcome(b, i, j)) / 2 for i, j in combinations(range(len(a)), 2)]


def last_answers(standing: Standing) -> list[GivenAnswer]:
    return list({(a.item.id, a.annotator): a for a in standing.answers}.values())


def of(found: Quality, name: str):
    return next(annotator for annotator in found.annotators if annotator.name == name)


# Agreement, against slow references


@pytest.mark.parametrize("seed", range(4))
def test_alpha_agreement_and_ceiling_are_those_of_the_judgements(seed: int):
    standing = random_standing(seed)
    found = quality(standing, 4)
    assert found.alpha is not None
    assert found.agreement is not None
    assert found.ceiling is not None
    assert found.alpha.value == pytest.approx(krippendorff_alpha(judgements(standing)), abs=1e-12)
    assert found.agreement.value == pytest.approx(pairwise_agreement(judgements(standing)), abs=1e-12)
    assert found.ceiling.value == pytest.approx(noise_ceiling(pairwise_agreement(judgements(standing))))
    shared = [{a.annotator for a in standing.answers if a.item == of} for of in standing.items]
    assert found.num_shared == sum(len(names) > 1 for names in shared)


def test_the_interval_is_that_of_items_drawn_again_and_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        answers = []
        for number in range(80):
            truth = draw.permutation(3) + 1
            for name in ("ada", "bob"):
                ranks = truth if draw.random() < 0.6 else draw.permutation(truth)
                answers.append(answer(item(number), name, ranks.tolist()))
        found = quality(stand(answers), 2)
        assert found.agreement is not None
        # Both look (0.36): all three pairs alike; otherwise any of 6 rankings, half of the pairs alike.
        held += found.agreement.low <= 0.36 + 0.64 / 2 <= found.agreement.high
        if trial == 0:
            items = [stand([a for a in answers if a.item.id == number]) for number in range(80)]
            resampled = []
            for _ in range(300):
                drawn = [j for new, i in enumerate(draw.integers(80, size=80)) for j in renamed(judgements(items[i]), new)]
                resampled.append((krippendorff_alpha(drawn), pairwise_agreement(drawn)))
            assert found.alpha is not None
            for estimate, values in zip((found.alpha, found.agreement), zip(*resampled, strict=True), strict=True):
                assert [estimate.low, estimate.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.04)
    assert held >= 52


@pytest.mark.parametrize("ranks", [[(1, 2), (1, 2)], [(1, 2), (2, 1)], [(1, 1), (1, 2)]])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_items_that_all_say_the_same_are_no_certainty(ranks: list[tuple[int, ...]], count: int):
    def of(count: int) -> Quality:
        return quality(stand([answer(item(n, 2), name, said) for n in range(count) for name, said in zip("ab", ranks, strict=True)]), 2)

    few, many = of(count), of(10 * count)
    stats = pytest.importorskip("scipy.stats")
    wilson = stats.binomtest(count, count).proportion_ci(method="wilson")
    for found, more in ((few.agreement, many.agreement), (few.alpha, many.alpha)):
        assert found is not None
        assert more is not None
        assert found.low <= found.value <= found.high
        assert 0 < more.high - more.low < found.high - found.low
        assert found.low >= -1
        assert found.high <= 1
    if ranks[0] == ranks[1]:
        assert few.agreement == pytest.approx((1.0, wilson.low, 1.0), abs=1e-6)
        assert few.ceiling is not None
        assert few.ceiling.low == pytest.approx(noise_ceiling(wilson.low))
        assert few.alpha is not None
        # By chance a value differs from 2n of the 4n - 1 others: about half.
        assert few.alpha[:2] == pytest.approx((1.0, max(-1, 1 - (1 - wilson.low) / (2 * count / (4 * count - 1)))), abs=1e-6)


def renamed(found: list[Judgement], number: int) -> list[Judgement]:
    return [Judgement(Prompt(f"draw {number}"), j.responses, j.ranks, j.annotator) for j in found]


@pytest.mark.parametrize("seed", range(3))
def test_each_annotators_agreement_gold_and_consistency_by_double_loops(seed: int):
    standing = random_standing(seed)
    found = quality(standing, 4)
    last = last_answers(standing)
    for name in ("ada", "Bob", "eve", "zoe"):
        mine = [a for a in last if a.annotator == name]
        others = [s for a in mine for b in last if b.item == a.item and b is not a for s in same(a.ranks or (), b.ranks or ())]
        gold = [s for a in mine if a.item.gold for s in same(a.ranks or (), a.item.gold)]
        twice = [(a, b) for a, b in combinations([a for a in standing.answers if a.annotator == name], 2) if a.item == b.item]
        again = [s for a, b in twice for s in same(a.ranks or (), b.ranks or ())]
        annotator = of(found, name)
        assert annotator.agreement == pytest.approx(mean(others))
        assert annotator.gold == pytest.approx(mean(gold))
        assert annotator.consistency == pytest.approx(mean(again))
        assert annotator.num_gold == sum(a.item.gold is not None for a in mine)
        assert annotator.num_again == len(twice)
        assert annotator.seconds == np.median([a.seconds for a in standing.answers if a.annotator == name])
        assert annotator.answers == sum(a.annotator == name for a in standing.answers)
        first = [a for a in standing.answers if a.annotator == name and a.reason != "again"]
        won = [mean((1 + outcome(a.ranks or (), a.order[0], i)) / 2 for i in a.order[1:]) for a in first]
        assert annotator.first_preferred == pytest.approx(mean(won))
    assert [annotator.name for annotator in found.annotators] == ["ada", "Bob", "eve", "zoe"]


def test_length_bias_is_the_share_of_decided_pairs_in_which_the_longer_is_preferred():
    standing = random_standing(5)
    wins = []
    for a in last_answers(standing):
        for i, j in combinations(range(len(a.item.responses)), 2):
            longer, said = np.sign(a.item.lengths[i] - a.item.lengths[j]), outcome(a.ranks or (), i, j)
            if longer * said:
                wins.append(float(longer == said))
    found = quality(standing, 4).length_bias
    assert found is not None
    assert found.value == pytest.approx(mean(wins))
    assert 0 < found.low < found.value < found.high < 1


def test_the_interval_of_length_bias_is_wilsons_where_each_item_has_one_pair_and_wider_where_pairs_repeat_each_other():
    pairs = [answer(item(n, 2, lengths=(9, 5)), "ada", (1, 2) if n < 60 else (2, 1)) for n in range(80)]
    found = quality(stand(pairs), 1).length_bias
    stats = pytest.importorskip("scipy.stats")
    assert found is not None
    assert found[1:] == pytest.approx(tuple(stats.binomtest(60, 80).proportion_ci(method="wilson")), abs=1e-6)
    copies = [a._replace(annotator=name) for a in pairs for name in ("ada", "bob", "eve", "zoe")]
    assert quality(stand(copies), 1).length_bias == pytest.approx(found)
    always = quality(stand(pairs[:20]), 1).length_bias
    assert always is not None
    assert (always.value, always.high) == (1, 1)
    assert always.low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="wilson").low, abs=1e-6)


def test_rating_agreement_is_the_librarys_interval_alpha_and_the_mean_difference():
    krippendorff = pytest.importorskip("krippendorff")
    draw = random.Random(0)
    answers = [
        answer(item(n), name, None, ratings={"helpful": tuple(draw.randint(1, 4) + n % 3 for _ in range(3)), "honest": (4, 4, 4)})
        for n in range(20)
        for name in ("ada", "bob", "eve")
        if draw.random() < 0.8
    ]
    table = np.full((3, 60), np.nan)
    for a in answers:
        table[["ada", "bob", "eve"].index(a.annotator), 3 * a.item.id : 3 * a.item.id + 3] = a.ratings["helpful"]
    apart = [abs(x - y) for unit in table.T for x, y in combinations(unit[~np.isnan(unit)], 2)]
    found = rating_agreements(stand(answers))
    assert found["helpful"] is not None
    assert found["helpful"].alpha == pytest.approx(krippendorff.alpha(table, level_of_measurement="interval"))
    assert found["helpful"].difference == pytest.approx(mean(apart))
    assert found["honest"] is None  # all ratings are the same: alpha is undefined
    assert rating_agreements(stand(answers[:1])) == {"helpful": None, "honest": None}


def test_nothing_is_claimed_where_nothing_is_known():
    nothing = quality(Standing((), (), ()), 3)
    assert (nothing.alpha, nothing.agreement, nothing.ceiling, nothing.length_bias) == (None, None, None, None)
    assert nothing.annotators == ()
    alone = quality(stand([answer(item(0), "ada", (1, 2, 3)), answer(item(1), "bob", (1, 1, 1))]), 1)
    assert (alone.alpha, alone.agreement, alone.num_shared) == (None, None, 0)
    assert [(a.agreement, a.gold, a.consistency) for a in alone.annotators] == [(None, None, None)] * 2
    ties = quality(stand([answer(item(0), name, (1, 1, 1)) for name in ("ada", "bob")]), 2)
    assert ties.alpha is None
    assert ties.agreement is not None
    assert ties.agreement.value == 1
    rated = quality(stand([answer(item(0), "ada", None, ratings={"helpful": (1, 2, 3)}), answer(item(1, 1), "bob", (1,))]), 1)
    assert [(a.name, a.answers, a.first_preferred) for a in rated.annotators] == [("ada", 1, None), ("bob", 1, None)]


# Progress and pace


def test_progress_counts_what_is_wanted_and_not_what_is_given_beyond():
    right = item(9, gold=(1, 2, 3))
    answers = [answer(item(0), name, (1, 2, 3)) for name in ("ada", "bob", "eve")]
    answers += [answer(item(1), "ada", (1, 2, 3), reason="uncertain", flags={"toxic": (0, 2), "made up": (1,)})]
    answers += [answer(item(0), "ada", (1, 3, 2), reason="again", flags={"toxic": (1,)}), answer(right, "ada", (1, 2, 3), reason="gold")]
    skips = [Skip(item(2), 1, "bob", why, "", 1.0, MORNING) for why in ("unclear", "too long", "unclear")]
    standing = Standing((item(0), item(1), item(2), right), tuple(answers), tuple(skips))
    found = progress(standing, 2)
    assert found.gold_items == 1
    assert (found.items, found.wanted, found.done, found.answers, found.gold, found.again) == (3, 6, 3, 6, 1, 1)
    assert found.skips == (("unclear", 2), ("too long", 1))
    assert found.flags == (("toxic", 3), ("made up", 1))


def test_a_flag_counts_once_for_each_annotator_however_often_they_are_asked():
    said = [("ada", "random", (0,)), ("ada", "again", (0, 1)), ("bob", "random", (0,))]
    standing = stand([answer(item(0), name, (1, 2, 3), reason=why, flags={"toxic": places}) for name, why, places in said])
    assert progress(standing, 2).flags == (("toxic", 3),)


def test_the_end_is_where_the_pace_leads_gold_items_and_repetitions_included():
    answers = [answer(item(n), "ada", (1, 2, 3), reason="gold" if n % 5 == 4 else "random") for n in range(50)]
    standing = Standing(tuple(item(n, gold=(1, 2, 3) if n % 5 == 4 else None) for n in range(100)), tuple(answers), ())
    so_far = progress(standing, 1)
    assert (so_far.wanted, so_far.done) == (80, 40)
    times = np.array([MORNING + timedelta(minutes=2 * n) for n in range(50)], "datetime64[us]")
    noon = MORNING + timedelta(minutes=100)
    found = pace(times, so_far, noon)
    assert (found.last_hour, found.last_day) == (30, 50)
    assert found.end == noon + timedelta(minutes=100)
    assert pace(times, so_far, noon + timedelta(days=8)) == Pace(0, 0, None)  # labelling rests
    assert pace(times[:10], so_far, noon).end is None  # too early to tell
    done = progress(Standing(standing.items[:4], tuple(answers[:4]), ()), 1)
    assert pace(times, done, noon).end is None


# Warnings, and simulated annotators who work through tasks


def utility(prompt: Prompt, response: str) -> float:
    return 1.3 * float(response.split()[-1])


def simulate(database: Database, annotators: Sequence[SimulatedAnnotator], *, items: int, overlap: int) -> Standing:
    """Rankings of 4 responses, taken and answered as people do, in turn."""
    team = Team(database)
    project = team.project(items=0, responses=4, overlap=overlap)
    draw = random.Random(1)
    rows = [(Prompt(f"Question {n}?"), [Response(f"worth {draw.gauss(0, 1):.3f}") for _ in range(4)]) for n in range(items)]
    team.projects.add_items(project.id, rows, None)
    accounts = {annotator.name: team.annotator(annotator.name) for annotator in annotators}
    working = list(annotators)
    while working:
        for annotator in list(working):
            task = team.tasks.next(project.id, accounts[annotator.name])
            if task is None:
                working.remove(annotator)
                continue
            team.clock.advance(seconds=10)
            team.tasks.answer(task.lease_id, accounts[annotator.name], Answer(ranks=annotator.rank_shown(task.prompt, task.responses)))
    return standing_answers(database, project.id)


@pytest.fixture(scope="module")
def team_of_four(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    """Two who look, one who also has a position bias, and one who clicks at random."""
    faults: dict[str, dict[str, Any]] = {"bias": {"position_bias": 1.0}, "rnd": {"reliability": 0.0}}
    annotators = [SimulatedAnnotator(name, utility, **faults.get(name, {})) for name in ("ada", "bob", "bias", "rnd")]
    database = Database(tmp_path_factory.mktemp("team") / "feedback.db")
    database.close()
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    return simulate(database, annotators, items=80, overlap=4)


def test_a_position_bias_is_found_and_none_is_not(team_of_four: Standing):
    found = quality(team_of_four, 4)
    assert {a.name for a in found.annotators if any(w.kind == "position" for w in a.warnings)} == {"bias"}
    biased = of(found, "bias")
    assert biased.first_preferred is not None
    assert 0.58 < biased.first_preferred < 0.75
    assert "prefers the response shown first" in biased.warnings[0].text


def test_random_clickers_are_flagged_and_honest_annotators_are_not(team_of_four: Standing):
    found = quality(team_of_four, 4)
    assert {a.name for a in found.annotators if any(w.kind == "random" for w in a.warnings)} == {"rnd"}
    (warning,) = of(found, "rnd").warnings
    assert "no better than chance" in warning.text
    assert all((a.agreement or 0) > 0.55 for a in found.annotators if a.name != "rnd")


def test_reliability_weights_follow_the_truth_and_leave_random_clickers_next_to_nothing():
    pytest.importorskip("crowdkit")
    truth = {f"a{tenths}": tenths / 10 for tenths in range(11)}
    draw = random.Random(0)
    annotators = [SimulatedAnnotator(name, utility, reliability=share, temperature=0.3) for name, share in truth.items()]
    answers = []
    for number in range(300):
        texts = tuple(f"worth {draw.gauss(0, 1):.3f}" for _ in range(4))
        for annotator in draw.sample(annotators, 3):
            answers.append(answer(item(number, 4), annotator.name, annotator.rank_shown(Prompt(f"{number}"), texts)))
    found = reliabilities(stand(answers))
    assert set(found) == set(truth)
    assert all(0 <= weight <= 1 for weight in found.values())
    assert np.corrcoef([truth[name] for name in found], list(found.values()))[0, 1] > 0.9
    assert found["a0"] < 0.25
    assert found["a10"] > 0.75


def test_reliabilities_ask_for_crowd_kit_where_it_is_missing_and_for_overlap(monkeypatch: pytest.MonkeyPatch):
    alone = stand([answer(item(n), "ada", (1, 2, 3)) for n in range(5)])
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)
    with pytest.raises(UserError, match=r"pip install 'heed-rlhf\[quality\]'"):
        reliabilities(alone)
    monkeypatch.undo()
    pytest.importorskip("crowdkit")
    with pytest.raises(UserError, match="decided by two annotators"):
        reliabilities(alone)


def warned(standing: Standing) -> dict[str, set[str]]:
    return {a.name: {w.kind for w in a.warnings} for a in quality(standing, 3).annotators if a.warnings}


def honest(draw: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    return truth if draw.random() < 0.8 else draw.permutation(truth)


def team(seed: int, num_items: int, say: Callable[[np.random.Generator, np.ndarray, tuple[int, ...]], np.ndarray]) -> Standing:
    """Three who are mostly right, and one who says what `say` makes of the right ranks and the order shown."""
    draw = np.random.default_rng(seed)
    answers = []
    for number in range(num_items):
        truth = draw.permutation(4) + 1
        for name in ("ada", "bob", "eve", "x"):
            order = tuple(draw.permutation(4).tolist())
            ranks = say(draw, truth, order) if name == "x" else honest(draw, truth)
            seconds = float(draw.gamma(3, 5))
            answers.append(answer(item(number, 4, gold=tuple(truth.tolist())), name, ranks.tolist(), order=order, seconds=seconds))
    return stand(answers)


def test_warnings_are_rare_among_honest_annotators_and_sure_for_the_others():
    assert sum(bool(warned(team(seed, 60, lambda draw, truth, _: honest(draw, truth)))) for seed in range(60)) <= 9
    for seed in range(8):
        assert "random" in warned(team(seed, 60, lambda draw, truth, _: draw.permutation(truth)))["x"]
        assert "random" in warned(team(seed, 60, lambda draw, truth, _: 5 - honest(draw, truth)))["x"]
        by_place = warned(team(seed, 60, lambda _, truth, order: np.argsort(order) + 1))["x"]
        assert by_place == {"random", "position"}


def test_the_position_test_has_the_size_it_says():
    """One annotator without bias, ties and all, is warned about in 5 % of trials."""
    flagged = 0
    for seed in range(400):
        draw = random.Random(seed)
        made = [answer(item(n, 4), "ada", random_ranks(draw, 4, True), order=tuple(draw.sample(range(4), 4))) for n in range(25)]
        flagged += bool(quality(stand(made), 1).annotators[0].warnings)
    assert 8 <= flagged <= 34


def test_too_few_answers_are_held_against_no_one():
    assert warned(team(0, 19, lambda _, truth, order: np.argsort(order) + 1)) == {}


def test_answers_much_faster_than_the_others_are_flagged_in_words():
    standing = team(0, 30, lambda draw, truth, _: honest(draw, truth))
    hurried = [a._replace(seconds=a.seconds / (6 if a.annotator == "x" else 1)) for a in standing.answers]
    assert warned(stand(hurried)) == {"x": {"fast"}}
    (warning,) = of(quality(stand(hurried), 3), "x").warnings
    assert "much too fast" in warning.text
    assert warned(stand([a._replace(seconds=a.seconds / 2 if a.annotator == "x" else a.seconds) for a in standing.answers])) == {}


def test_who_is_worse_than_the_others_but_better_than_chance_is_not_called_random():
    standing = team(0, 120, lambda draw, truth, _: truth if draw.random() < 0.4 else draw.permutation(truth))
    x = of(quality(standing, 3), "x")
    assert (x.agreement or 1) < 0.75
    assert x.warnings == ()


def test_the_rest_of_the_team_is_measured_without_the_one_warned_about():
    standing = team(1, 60, lambda draw, truth, _: draw.permutation(truth))
    found = {
        whom: [
            s
            for a, b in combinations(standing.answers, 2)
            if a.item == b.item and ("x" in (a.annotator, b.annotator)) == (whom == "x")
            for s in same(a.ranks or (), b.ranks or ())
        ]
        for whom in ("x", "rest")
    }
    text = of(quality(standing, 3), "x").warnings[0].text
    assert f"others in {100 * mean(found['x']):.0f} % of pairs" in text
    assert f"the rest of the team in {100 * mean(found['rest']):.0f} %" in text
