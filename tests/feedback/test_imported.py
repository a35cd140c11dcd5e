"""Rankings from a file become an annotator's answers: exports, agreement and disputes see them, once."""

from __future__ import annotations

import pytest

from heed.errors import UserError
from heed.feedback.accounts import Accounts
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.disputes import disputes, standing_judgements
from heed.feedback.export import Export
from heed.feedback.imported import AddedRankings, add_rankings
from heed.feedback.projects import Added, Conflict, NotFound
from heed.feedback.quality import quality
from heed.feedback.schema import AccountRow, utc_now
from heed.feedback.store import FeedbackStore
from heed.feedback.transfer import project_rows
from heed.records import Prompt, Ranking, Response
from tests.feedback.team import Team

TEXTS = ("a", "b", "c")


def rankings(number: int, ranks: tuple[int, ...] = (1, 3, 2)) -> list[Ranking]:
    """Of the items that `Team.project` makes."""
    return [Ranking(Prompt(f"project {i}?"), TEXTS[: len(ranks)], ranks) for i in range(number)]


@pytest.fixture
def team(database: Database) -> Team:
    return Team(database)


def test_rankings_are_answers_that_fill_slots_and_are_exported(team: Team) -> None:
    project = team.project(items=4, overlap=2)
    assert add_rankings(team.database, project.id, rankings(3), " Paper ", None) == AddedRankings(3, 0, 0)
    found = standing_answers(team.database, project.id).answers
    assert [(answer.annotator, answer.ranks, answer.seconds) for answer in found] == [("Paper", (1, 3, 2), 0.0)] * 3
    assert [judgement.order_shown for judgement in FeedbackStore(team.database).judgements()] == [()] * 3
    assert team.drifted() == []
    assert [team.item(i).remaining for i in range(1, 5)] == [1, 1, 1, 2]
    rows = list(Export(team.database, project.id, "rankings").rows())
    assert [(row["prompt"], row["ranks"]) for row in rows] == [(f"project {i}?", [1, 3, 2]) for i in range(3)]
    assert len(list(project_rows(team.database, project.id))) == 3 + 4 + 3 + 3


def test_agreement_and_disputes_see_them(team: Team) -> None:
    project = team.project(items=5, overlap=2)
    team.work(project.id, team.annotator("ann"), 5)  # alphabetically
    add_rankings(team.database, project.id, rankings(5, (3, 2, 1)), "Paper", None)
    seen = quality(standing_answers(team.database, project.id), 2)
    assert seen.agreement is not None
    assert seen.agreement[0] == 0.0
    assert [each.name for each in seen.annotators] == ["ann", "Paper"]
    assert [dispute.disagreement for dispute in disputes(standing_judgements(team.database, project.id))] == [1.0] * 5


def test_a_file_that_is_added_twice_counts_once(team: Team) -> None:
    project = team.project(items=3)
    twice = rankings(2)
    add_rankings(team.database, project.id, twice, "Paper", None)
    assert add_rankings(team.database, project.id, [*twice, *rankings(3, (3, 2, 1))], "paper", None) == AddedRankings(1, 4, 0)
    assert [answer.ranks for answer in standing_answers(team.database, project.id).answers] == [(1, 3, 2), (1, 3, 2), (3, 2, 1)]
    assert team.drifted() == []


def test_who_disagree_in_the_order_of_their_files_judge_one_item(team: Team) -> None:
    project, prompt = team.project(items=0, responses=2), Prompt("Q?")
    for name, texts, new in (("ann", ("a", "b"), 1), ("ben", ("b", "a"), 0), ("cy", ("b", "a"), 0)):
        added = team.projects.add_items(project.id, [(prompt, [Response(text) for text in texts])], None)
        assert added == Added(new, 1 - new, 0, 0)
        assert add_rankings(team.database, project.id, [Ranking(prompt, texts, (1, 2))], name, None) == AddedRankings(1, 0, 0)
    found = list(Export(team.database, project.id, "rankings").rows())
    assert [(row["annotator"], row["responses"], row["ranks"]) for row in found] == [
        ("ann", ["a", "b"], [1, 2]),
        ("ben", ["a", "b"], [2, 1]),
        ("cy", ["a", "b"], [2, 1]),
    ]
    (pair,) = Export(team.database, project.id, "pairs").rows()
    assert (pair["chosen"], pair["label"], pair["weight"]) == ("b", pytest.approx(2 / 3), 3)


def test_what_a_file_brought_is_no_work_of_today_and_cannot_be_undone(team: Team) -> None:
    team.clock.now = utc_now()
    project, ann = team.project(items=9, overlap=2), team.annotator("ann", daily_cap=2)
    (own,) = team.work(project.id, ann, 1)
    others = [ranking for ranking in rankings(7) if ranking.prompt != own.prompt]
    assert add_rankings(team.database, project.id, others, "ann", None).new == len(others) >= 6
    assert team.tasks.progress(project.id, ann).today == 1
    assert Accounts(team.database).answers_today() == {ann: 1}
    team.work(project.id, ann, 1)
    assert team.tasks.next(project.id, ann) is None
    undone = [team.tasks.undo(project.id, ann) for _ in range(3)]
    assert undone[1] is not None
    assert (undone[1].item_id, undone[2]) == (own.item_id, None)
    assert len(standing_answers(team.database, project.id).answers) == len(others)
    assert team.drifted() == []


def test_of_a_longer_ranking_an_item_takes_its_part_and_what_has_no_item_is_counted(team: Team) -> None:
    project = team.project(items=0, responses=3)
    prompt = Prompt("Q?")
    texts = ["a", "b", "c", "d", "e"]
    team.projects.add_items(project.id, [(prompt, [Response(text) for text in texts])], None)  # abc and de
    ranking = Ranking(prompt, tuple(reversed(texts)), (1, 2, 3, 3, 5))
    others = [Ranking(Prompt("unknown"), ("a", "b"), (1, 2)), Ranking(prompt, ("a", "b"), (1, 2))]
    assert add_rankings(team.database, project.id, [ranking, *others], "Paper", None) == AddedRankings(2, 0, 2)
    assert [answer.ranks for answer in standing_answers(team.database, project.id).answers] == [(3, 1, 1), (2, 1)]


def test_an_item_that_all_wanted_have_judged_takes_one_more(team: Team) -> None:
    project = team.project(items=1, overlap=1)
    team.work(project.id, team.annotator("ann"), 1)
    assert add_rankings(team.database, project.id, rankings(1), "Paper", None).new == 1
    assert team.drifted() == []
    assert team.tasks.next(project.id, team.annotator("ben")) is None


def test_gold_items_are_not_asked(team: Team) -> None:
    project = team.project(items=2, gold=1)
    assert add_rankings(team.database, project.id, rankings(2), "Paper", None) == AddedRankings(1, 0, 1)
    assert [answer.item.gold for answer in standing_answers(team.database, project.id).answers] == [None]
    assert team.drifted() == []


def test_no_statistic_takes_order_and_time_from_a_file_that_tells_neither(team: Team) -> None:
    project = team.project(items=30, overlap=2)
    add_rankings(team.database, project.id, rankings(30), "Paper", None)
    ann = team.annotator("ann")
    team.work(project.id, ann, 30)
    of_ann, of_file = quality(standing_answers(team.database, project.id), 2).annotators
    assert (of_file.answers, of_file.seconds, of_file.first_preferred, of_file.warnings) == (30, None, None, ())
    assert of_ann.seconds is not None
    assert of_ann.first_preferred is not None


def test_what_an_annotator_has_on_the_screen_stays_and_what_was_left_is_taken_up(team: Team) -> None:
    project = team.project(items=1)
    ann = team.annotator("ann")
    task = team.take(project.id, ann)
    assert add_rankings(team.database, project.id, rankings(1), "ann", None).known == 1
    team.clock.advance(hours=1)
    team.set_account(ann, daily_cap=None)
    assert team.tasks.next(project.id, team.annotator("ben")) is not None  # the item goes to someone else
    assert add_rankings(team.database, project.id, rankings(1), "ann", None).new == 1
    assert team.lease(task.lease_id).state == "answered"
    assert team.drifted() == []


def test_nobody_can_sign_in_as_an_annotator_that_came_with_a_file_and_the_log_tells_who_brought_it(team: Team) -> None:
    project, lea = team.project(items=1), team.annotator("Lea")
    add_rankings(team.database, project.id, rankings(1), "Paper", lea)
    accounts = Accounts(team.database)
    assert [account.name for account in accounts.all()] == ["Lea"]
    assert accounts.sign_in("Paper", "") is None
    (paper,) = accounts.imported()
    for attempt in (
        lambda: accounts.start_session(paper.id),
        lambda: accounts.new_token(paper.id, "key"),
        lambda: accounts.invite("annotator", paper.id),
        lambda: accounts.change_role(paper.id, "owner", lea),
        lambda: accounts.change(paper.id, lea, daily_cap=3),
        lambda: accounts.change_password(paper.id, "", "a long enough password"),
        lambda: team.tasks.next(project.id, paper.id),
    ):
        with pytest.raises(NotFound):
            attempt()
    (entry,) = accounts.log("answers.import")
    assert (entry.who, entry.detail["new"], entry.detail["project"]) == ("Lea", 1, project.id)
    assert "Paper" not in str(accounts.log())


def test_someone_who_came_with_a_file_is_forgotten_as_others_are(team: Team) -> None:
    project, accounts = team.project(items=2), Accounts(team.database)
    owner = team.annotator("Olga", role="owner")
    add_rankings(team.database, project.id, rankings(2), "Paula Person", None)
    (paula,) = accounts.imported()
    assert (paula.name, paula.role) == ("Paula Person", "annotator")
    pseudonym = accounts.delete(paula.id, owner)
    assert accounts.imported() == []
    assert [answer.annotator for answer in standing_answers(team.database, project.id).answers] == [pseudonym] * 2
    assert "Paula" not in str([list(project_rows(team.database, project.id)), FeedbackStore(team.database).judgements()])
    with pytest.raises(NotFound):
        accounts.delete(paula.id, owner)


def test_who_came_with_a_file_is_no_owner_that_is_left(team: Team) -> None:
    owner = team.annotator("Olga", role="owner")
    with team.database.write() as session:
        session.add(AccountRow(name="Paula", role="owner", avoid=[]))
    with pytest.raises(Conflict, match="no owner would be left"):
        Accounts(team.database).delete(owner, owner)


def test_pairs_of_a_project_that_compares_two(team: Team) -> None:
    project = team.project(items=2, responses=2, compare="pairwise")
    pairs = [*rankings(1, (1, 2)), Ranking(Prompt("project 1?"), ("b", "a"), (1, 1))]
    add_rankings(team.database, project.id, pairs, "Paper", None)
    assert [(answer.ranks, answer.strength) for answer in standing_answers(team.database, project.id).answers] == [
        ((1, 2), None),
        ((1, 1), None),
    ]
    rows = list(Export(team.database, project.id, "pairs").rows())
    assert [(row["chosen"], row["label"], row["margin"]) for row in rows] == [("a", 1.0, 0.0), ("a", 0.5, 0.0)]


def test_faults_are_told_and_nothing_is_kept(team: Team) -> None:
    project, other = team.project(items=1), team.project("rated", items=1, responses=2, compare="none", ratings=("kind",))
    before = team.answers()
    for where, said, name, message in (
        (project.id, rankings(1), " ", "a name of 0 characters"),
        (other.id, rankings(1), "Paper", "compare is 'none'"),
        (project.id, [Ranking(Prompt("project 0?"), ("a", "a"), (1, 2))], "Paper", "different ones in a ranking"),
    ):
        with pytest.raises(UserError, match=message):
            add_rankings(team.database, where, said, name, None)
    with pytest.raises(NotFound):
        add_rankings(team.database, 99, rankings(1), "Paper", None)
    assert team.answers() == before == []
    assert Accounts(team.database).log("account") == []
