"""What reward models think of a project's responses, and which of its items they are least sure of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import combinations
from typing import NamedTuple

import numpy as np
from sqlalchemy import Select, String, cast, exists, func, insert, select, update

from heed.errors import UserError
from heed.feedback.database import Database, take_turns
from heed.feedback.outcomes import padded
from heed.feedback.projects import audit, find_project
from heed.feedback.schema import WAITING, ItemResponseRow, ItemRow, PromptRow, ResponseRow, RewardModelRow, RewardScoreRow
from heed.records import Message, Prompt

Score = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]]
"""A number for each response to its prompt; higher is better."""
CHUNK = 256
"""Responses that are scored, and then kept, together; a stop loses no more."""
AT_ONCE = 1_000
"""Items that change in one transaction; annotators who save meanwhile wait no longer than that."""


class RewardModel(NamedTuple):
    """A reward model that has scored responses of a project."""

    id: int
    project_id: int
    name: str
    """Where it was."""
    digest: str
    """Of its weights."""
    scored_at: datetime
    """When it scored the first."""


def add_reward_model(database: Database, project_id: int, name: str, digest: str, by: int | None = None) -> RewardModel:
    """The project's reward model with these weights, under the name that it first came with; a new one is added."""
    with database.write() as session:
        take_turns(session, "reward models")
        find_project(session, project_id)
        known = RewardModelRow.project_id == project_id, RewardModelRow.digest == digest
        row = session.scalar(select(RewardModelRow).where(*known))
        if row is None:
            row = RewardModelRow(project_id=project_id, name=name, digest=digest)
            session.add(row)
            session.flush()
            audit(session, by, "reward_model.add", project=project_id, reward_model=row.id, name=name, digest=digest)
        return _reward_model(row)


def reward_models(database: Database, project_id: int) -> list[RewardModel]:
    """In the order in which they came."""
    with database.read() as session:
        rows = session.scalars(select(RewardModelRow).where(RewardModelRow.project_id == project_id).order_by(RewardModelRow.id))
        return [_reward_model(row) for row in rows]


def score_responses(
    database: Database, model: RewardModel, score: Score, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Score all responses of the project's items that this model has not scored, and return how many.

    `progress` is told how many are done, and of how many. After a stop the same call goes on.
    """
    with database.read() as session:
        left = session.scalars(_unscored(model)).all()
    for start in range(0, len(left), CHUNK):
        texts = _texts(database, left[start : start + CHUNK])
        scores = score(list(texts.values()))
        rows = [{"reward_model_id": model.id, "response_id": i, "score": s} for i, s in zip(texts, scores, strict=True)]
        with database.write() as session:
            take_turns(session, "reward scores")
            own = RewardScoreRow.reward_model_id == model.id, RewardScoreRow.response_id.in_(list(texts))
            known = set(session.scalars(select(RewardScoreRow.response_id).where(*own)))  # by another process, meanwhile
            new = [row for row in rows if row["response_id"] not in known]
            if new:
                session.execute(insert(RewardScoreRow), new)
                audit(session, None, "reward_model.score", project=model.project_id, reward_model=model.id, responses=len(new))
        progress(start + len(texts), len(left))
    return len(left)


def prioritise(database: Database, models: Sequence[RewardModel]) -> int:
    """Set the priority of each item that still waits for annotators by how unsure the models are of it (see `priorities`).

    Returns how many items have another priority than before. Items with a response that some model has not scored keep theirs.
    Raises UserError without models, or with those of several projects.
    """
    if len({model.project_id for model in models}) != 1:
        raise UserError(f"reward models {[model.name for model in models]}", expected="one or more that scored the same project")
    project_id = models[0].project_id
    items, before, responses = _waiting(database, project_id)
    found = priorities(np.stack([stored_scores(database, model.id).of(responses) for model in models]), responses > 0)
    rows = [{"id": items[i], "priority": float(found[i])} for i in np.flatnonzero(~np.isnan(found) & (found != before)).tolist()]
    for start in range(0, len(rows), AT_ONCE):
        chunk = rows[start : start + AT_ONCE]
        with database.write() as session:
            find_project(session, project_id, lock=True)
            session.execute(update(ItemRow), chunk)
            audit(session, None, "items.prioritise", project=project_id, reward_models=[model.id for model in models], items=len(chunk))
    return len(rows)


def priorities(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """How unsure M reward models are of each of I items: `[M, I, K]` to `[I]`; NaN for an item with a response that has no score.

    `present`, `[I, K]`, tells which responses an item has. With p_ij = sigma(s_i - s_j), the Bradley-Terry probability that
    response i is better, and a mean over the item's pairs:

    - one model: the mean of 4 p_ij (1 - p_ij), 1 where all scores are equal and 0 where every order is certain;
    - several: the mean of the standard deviation of p_ij over the models, 0 where all say the same and 1/2 at most.

    Each model's scores are used on their own scale, for their differences are log-odds. Source: Lewis and Gale 1994
    (uncertainty sampling); Christiano et al. 2017, section 2.2.4 (disagreement of an ensemble).
    """
    left, right = np.array(list(combinations(range(scores.shape[2]), 2)), dtype=int).reshape(-1, 2).T
    # sigma(x) = (1 + tanh(x / 2)) / 2, which overflows nowhere.
    p = (1 + np.tanh((scores[..., left] - scores[..., right]) / 2)) / 2
    unsure = 4 * p[0] * (1 - p[0]) if len(scores) == 1 else p.std(axis=0)
    pairs = present[:, left] & present[:, right]
    with np.errstate(invalid="ignore"):
        return np.where(pairs, unsure, 0).sum(axis=1) / pairs.sum(axis=1)


class Scores(NamedTuple):
    """What a reward model gives responses."""

    responses: np.ndarray
    """`[N]`: their ids, rising."""
    values: np.ndarray
    """`[N]`."""

    def of(self, responses: np.ndarray) -> np.ndarray:
        """The score of each of these ids, NaN where there is none; any shape."""
        if not len(self.responses):
            return np.full(responses.shape, np.nan)
        places = np.minimum(np.searchsorted(self.responses, responses), len(self.responses) - 1)
        return np.where(self.responses[places] == responses, self.values[places], np.nan)


def stored_scores(database: Database, model_id: int) -> Scores:
    """All scores of a reward model."""
    # In one text: a row for each response would take five times as long.
    pair = cast(RewardScoreRow.response_id, String) + "," + cast(RewardScoreRow.score, String)
    query = select(func.aggregate_strings(pair, ",")).where(RewardScoreRow.reward_model_id == model_id)
    with database.read() as session:
        pairs = np.fromstring(session.scalar(query) or "", sep=",").reshape(-1, 2)
    pairs = pairs[np.argsort(pairs[:, 0])]
    return Scores(pairs[:, 0].astype(int), pairs[:, 1])


def response_table(responses: Sequence[Sequence[int]]) -> np.ndarray:
    """Ids of each item's responses as `[I, K]`, 0 where an item has fewer than another."""
    return np.nan_to_num(padded(responses, max(map(len, responses), default=0))).astype(int)


def _waiting(database: Database, project_id: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Items that still wait for annotators, their priorities `[I]`, and their responses `[I, K]`."""
    waiting = ItemRow.project_id == project_id, WAITING
    held = select(ItemResponseRow.item_id, ItemResponseRow.response_id).join(ItemRow, ItemRow.id == ItemResponseRow.item_id).where(*waiting)
    responses: defaultdict[int, list[int]] = defaultdict(list)
    with database.read() as session:
        items = session.execute(select(ItemRow.id, ItemRow.priority).where(*waiting)).all()
        for item_id, response_id in session.execute(held.order_by(ItemResponseRow.item_id, ItemResponseRow.position)):
            responses[item_id].append(response_id)
    table = response_table([responses[item_id] for item_id, _ in items])
    return [item_id for item_id, _ in items], np.array([priority for _, priority in items]), table


def _unscored(model: RewardModel) -> Select[int]:
    """Responses of the model's project without a score; those to one prompt stand together, so that it is read once."""
    own = select(ItemResponseRow.response_id).join(ItemRow, ItemRow.id == ItemResponseRow.item_id)
    scored = exists().where(RewardScoreRow.reward_model_id == model.id, RewardScoreRow.response_id == ResponseRow.id)
    unscored = ResponseRow.id.in_(own.where(ItemRow.project_id == model.project_id)), ~scored
    return select(ResponseRow.id).where(*unscored).order_by(ResponseRow.prompt_id, ResponseRow.id)


def _texts(database: Database, responses: Sequence[int]) -> dict[int, tuple[Prompt, str]]:
    """Prompt and text of each of these responses, in their order."""
    query = select(ResponseRow.id, PromptRow.content, ResponseRow.text).join(PromptRow, PromptRow.id == ResponseRow.prompt_id)
    with database.read() as session:
        rows = session.execute(query.where(ResponseRow.id.in_(responses))).all()
    found = {i: (Prompt(c if isinstance(c, str) else tuple(Message(*m) for m in c)), text) for i, c, text in rows}
    return {i: found[i] for i in responses}


def _reward_model(row: RewardModelRow) -> RewardModel:
    return RewardModel(row.id, row.project_id, row.name, row.digest, row.created_at)
