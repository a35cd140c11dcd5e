"""What is disputed, and how much."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heed.feedback.accounts import Accounts
from heed.feedback.agreement import pairwise_agreement
from heed.feedback.database import Database
from heed.feedback.disputes import Said, case, decided_items, disagreement, disputes, standing_judgements
from heed.feedback.projects import NotFound, Projects, ProjectSettings
from heed.feedback.tasks import Answer, Tasks
from heed.records import Judgement, Prompt, Response

RANKINGS = st.lists(st.lists(st.integers(1, 3), min_size=3, max_size=3), min_size=2, max_size=5)


def test_the_same_said_by_all_is_no_disagreement() -> None:
    assert disagreement([(1, 2, 3), (1, 2, 3), (1, 2, 3)]) == 0
    assert disagreement([(1, 1), (1, 1)]) == 0


def test_opposite_rankings_disagree_wholly() -> None:
    assert disagreement([(1, 2, 3), (3, 2, 1)]) == 1


def test_a_tie_is_half_way() -> None:
    assert disagreement([(1, 1), (1, 2)]) == 0.5


def test_only_the_order_of_ranks_counts() -> None:
    assert disagreement([(1, 3, 5), (1, 2, 3)]) == 0


@given(RANKINGS)
def test_it_is_one_minus_the_pairwise_agreement(rankings: list[list[int]]) -> None:
    judgements = [Judgement(Prompt("x"), ("a", "b", "c"), tuple(ranks), f"annotator {i}") for i, ranks in enumerate(rankings)]
    assert disagreement(rankings) == pytest.approx(1 - pairwise_agreement(judgements))


@given(RANKINGS, st.permutations(range(3)))
def test_the_order_of_people_and_responses_changes_nothing(rankings: list[list[int]], order: list[int]) -> None:
    moved = [[ranks[i] for i in order] for ranks in reversed(rankings)]
    assert disagreement(moved) == pytest.approx(disagreement(rankings))


def test_one_ranking_cannot_disagree() -> None:
    with pytest.raises(ValueError, match="1 rankings"):
        disagreement([(1, 2)])


def test_the_most_disputed_comes_first_and_items_of_one_annotator_do_not_come() -> None:
    alike, opposite, tied = ((1, 2), (1, 2)), ((1, 2), (2, 1)), ((1, 1), (2, 1))
    said = [Said(item, who, ranks) for item, both in ((1, alike), (2, opposite), (4, tied)) for who, ranks in enumerate(both)]
    found = [(2, 2, 1.0), (4, 2, 0.5), (1, 2, 0.0)]
    assert disputes([*said, Said(3, 1, (1, 2))]) == found
    assert disputes([Said(3, 1, (1, 2)), *reversed(said)]) == found


def test_of_an_annotator_asked_again_the_last_judgement_counts() -> None:
    said = [Said(1, 1, (2, 1)), Said(1, 2, (1, 2)), Said(1, 1, (1, 2))]
    assert [d.disagreement for d in disputes(said)] == [0.0]
    assert disputes([Said(1, 1, (2, 1)), Said(1, 1, (1, 2))]) == []


def test_what_was_taken_back_is_no_dispute_and_decisions_stand_beside(tmp_path: Path) -> None:
    database = Database(tmp_path / "f.db")
    accounts, projects, tasks = Accounts(database), Projects(database), Tasks(database)
    ann, bob = (accounts.accept(accounts.invite("annotator", None), name, "a long enough password") for name in ("Ann", "Bob"))
    project = projects.create("Kind", ProjectSettings(num_responses=2, overlap=2), None)
    projects.add_items(project.id, [(Prompt("Hi?"), [Response("yes"), Response("no")])], None)
    for account, liked in ((ann, "yes"), (bob, "no")):
        task = tasks.next(project.id, account.id)
        assert task is not None
        tasks.answer(task.lease_id, account.id, Answer(ranks=(1, 2) if task.responses[0] == liked else (2, 1), note=f"by {account.name}"))
    (dispute,) = disputes(standing_judgements(database, project.id))
    assert dispute.disagreement == 1
    tasks.decide(dispute.item_id, ann.id, (1, 2), "yes is right")
    found = case(database, dispute.item_id)
    assert found.responses == ("yes", "no")
    assert [(o.annotator, o.ranks, o.note) for o in found.opinions] == [("Ann", (1, 2), "by Ann"), ("Bob", (2, 1), "by Bob")]
    assert [(d.lead, d.ranks, d.note) for d in found.decisions] == [("Ann", (1, 2), "yes is right")]
    assert decided_items(database, project.id) == {dispute.item_id}
    tasks.undo(project.id, bob.id)
    assert disputes(standing_judgements(database, project.id)) == []
    assert [o.annotator for o in case(database, dispute.item_id).opinions] == ["Ann"]
    with pytest.raises(NotFound):
        case(database, 2**70)
