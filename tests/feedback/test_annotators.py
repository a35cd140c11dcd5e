"""What the app says of simulated annotators, whose faults are known, is true."""

from __future__ import annotations

import random

import numpy as np
import pytest

from heed.feedback import SimulatedAnnotator
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.export import label_weights
from heed.feedback.quality import quality
from heed.feedback.tasks import Answer
from heed.records import Prompt, Response
from tests.feedback.team import Team

RELIABILITY = (0.0, 0.0, 0.4, 0.6, 0.8, 0.9, 1.0, 1.0)
BIASED = ("a5", "a7")
ITEMS, OVERLAP = 160, 4


def worth(prompt: Prompt, response: str) -> float:
    return float(response.split()[1])


def label_in_turn(team: Team, project: int, annotators: list[SimulatedAnnotator]) -> None:
    """One answer each, round after round: who is fast, and so who judges with whom, is no matter of luck."""
    at_work = {team.annotator(annotator.name): annotator for annotator in annotators}
    while at_work:
        for account, annotator in list(at_work.items()):
            if (task := team.tasks.next(project, account)) is None:
                del at_work[account]
            else:
                team.tasks.answer(task.lease_id, account, Answer(ranks=annotator.rank_shown(task.prompt, task.responses)))


def test_reliability_and_position_bias_are_found(database: Database):
    pytest.importorskip("crowdkit")
    team, draw = Team(database), random.Random(0)
    annotators = [
        SimulatedAnnotator(f"a{i}", worth, reliability=share, temperature=0.3, position_bias=5.0 if f"a{i}" in BIASED else 0.0, seed=i)
        for i, share in enumerate(RELIABILITY)
    ]
    project = team.project(items=0, responses=4, overlap=OVERLAP).id
    texts = [[Response(f"worth {draw.gauss(0, 1.5):.3f}") for _ in range(4)] for _ in range(ITEMS)]
    team.projects.add_items(project, [(Prompt(f"Question {n}?"), responses) for n, responses in enumerate(texts)], None)
    label_in_turn(team, project, annotators)
    standing = standing_answers(database, project)
    assert len(standing.answers) == ITEMS * OVERLAP
    weights = label_weights(standing)
    # Who is drawn to a place looks less at the responses: of them the weight is less than the share of looks.
    looking = [i for i, annotator in enumerate(annotators) if annotator.name not in BIASED]
    assert np.corrcoef([RELIABILITY[i] for i in looking], [weights[f"a{i}"] for i in looking])[0, 1] > 0.9
    warned = {a.name: {warning.kind for warning in a.warnings} for a in quality(standing, OVERLAP).annotators}
    assert {name for name, kinds in warned.items() if "position" in kinds} == set(BIASED)
    assert {name for name, kinds in warned.items() if "random" in kinds} >= {"a0", "a1"}
    assert not any("random" in warned[f"a{i}"] for i in looking if RELIABILITY[i] > 0.5)
