"""What of a feedback store is training data."""

from __future__ import annotations

from collections.abc import Mapping

from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.export import Export, prompt_of
from heed.feedback.projects import Projects
from heed.feedback.store import FeedbackStore
from heed.records import Ranking


def rankings(store: FeedbackStore, weights: Mapping[str, float] | None = None) -> list[Ranking]:
    """All rankings that a store has to learn from, each with its annotator's weight (1 without `weights`).

    Judgements outside of projects come first, as they are. Of a labelling project it is what its export of rankings holds: no answers
    to gold items, no repetitions, and what a lead decided in place of what annotators said. Raises UserError where an annotator has
    no weight, or where several projects have rankings.
    """
    alone = [j.ranking(_weight(j.annotator, weights)) for j in store.judgements(in_projects=False)]
    return [*alone, *_of_project(store.database, weights)]


def _of_project(database: Database, weights: Mapping[str, float] | None) -> list[Ranking]:
    """Of the only project that has any: each asks a question of its own, and one model cannot learn to answer all."""
    found: dict[str, list[Ranking]] = {}
    for project in Projects(database).all():
        rows = list(Export(database, project.id, "rankings", weights=weights).rows())
        if rows:
            found[project.name] = [Ranking(prompt_of(row), tuple(row["responses"]), tuple(row["ranks"]), row["weight"]) for row in rows]
    if len(found) > 1:
        raise UserError(
            f"rankings of {len(found)} projects: {', '.join(map(repr, found))}",
            file=database.engine.url.database,
            expected="one project, for each asks a question of its own",
            fix="heed feedback export DATABASE --project NAME --kind rankings --output FILE.jsonl, and train on that file",
        )
    return next(iter(found.values()), [])


def _weight(annotator: str, weights: Mapping[str, float] | None) -> float:
    if weights is None:
        return 1.0
    if annotator not in weights:
        raise UserError(f"annotator {annotator!r} has no weight", expected=f"a weight for each annotator, found {sorted(weights)}")
    return weights[annotator]
