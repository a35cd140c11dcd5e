"""Simulated annotators of known faults at work on the API of a real server: what the app says of them is true."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from heed.feedback import SimulatedAnnotator
from heed.feedback.accounts import Accounts
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.export import label_weights
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.quality import quality
from heed.feedback.remote import RemoteProject, work
from heed.records import Prompt, Response
from tests.feedback.team import Team
from tests.web.server import serving

RELIABILITY = (0.0, 0.0, 0.4, 0.6, 0.8, 0.9, 1.0, 1.0)
BIASED = ("a5", "a7")
ITEMS, OVERLAP = 160, 4


def worth(prompt: Prompt, response: str) -> float:
    return float(response.split()[1])


def test_reliability_and_position_bias_of_annotators_at_the_api_are_found(tmp_path: Path):
    pytest.importorskip("crowdkit")
    draw, location = random.Random(0), str(tmp_path / "team.db")
    annotators = [
        SimulatedAnnotator(f"a{i}", worth, reliability=share, temperature=0.3, position_bias=5.0 if f"a{i}" in BIASED else 0.0, seed=i)
        for i, share in enumerate(RELIABILITY)
    ]
    items = [(Prompt(f"Question {n}?"), [Response(f"worth {draw.gauss(0, 1.5):.3f}") for _ in range(4)]) for n in range(ITEMS)]
    with closing(Database(location)) as database:
        project = Projects(database).create("Trial", ProjectSettings(overlap=OVERLAP), None).id
        Projects(database).add_items(project, items, None)
        keys = [Accounts(database).new_token(Team(database).annotator(a.name), "simulated") for a in annotators]
        with serving(location, tmp_path / "log") as (_, address), ThreadPoolExecutor(len(annotators)) as threads:
            done = threads.map(lambda key, annotator: work(RemoteProject(address, key, project), annotator), keys, annotators)
            assert sum(done) == ITEMS * OVERLAP
        standing = standing_answers(database, project)
    weights = label_weights(standing)
    # Who is drawn to a place looks less at the responses: of them the weight is less than the share of looks.
    looking = [i for i, annotator in enumerate(annotators) if annotator.name not in BIASED]
    assert np.corrcoef([RELIABILITY[i] for i in looking], [weights[f"a{i}"] for i in looking])[0, 1] > 0.8, "0.97 as a rule"
    warned = {a.name: {warning.kind for warning in a.warnings} for a in quality(standing, OVERLAP).annotators}
    found = {name for name, kinds in warned.items() if "position" in kinds}
    assert found >= set(BIASED)
    assert len(found) <= len(BIASED) + 1, "one false alarm may be, once in twenty teams"
    assert "random" not in set().union(*(warned[f"a{i}"] for i in looking if RELIABILITY[i] > 0.5))
