"""`heed feedback curve`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from heed.errors import UserError
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.learning_curve import Forecast, Point, forecasts, keep, nested
from heed.feedback.projects import Projects
from heed.feedback.quality import quality
from heed.pipeline.device import check_device
from heed.pipeline.newest import trained_policy

if TYPE_CHECKING:
    from heed.models.backbone import LoRAConfig
    from heed.pipeline.train import RewardModelStageConfig
    from heed.records import PreferencePair, Ranking

LEAST_ITEMS = 10
"""Fewer have no eighth to train on and no fifth to measure on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureCurve:
    """Train reward models on an eighth, a quarter, half and all of a project's labels, and tell what more labels would buy.

    Each is measured on the same items, a fifth, that none was trained on. The dashboard shows the curve.
    """

    database: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATABASE")]
    """A file, or a URL such as postgresql+psycopg://..."""
    project: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROJECT")]
    """The project's name."""
    model: str
    """The model to start from: its folder or that of the run that trained it, a Hugging Face id, or `testbed` for the built-in one."""
    lr: float | None = None
    """Peak learning rate; none takes the usual one, higher for LoRA adapters than for whole models."""
    batch_size: int = 32
    """Rankings in one update."""
    epochs: int = 1
    """Passes over the labels."""
    weights: bool = False
    """Weigh each annotator's labels by their reliability."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank instead of all weights."""
    max_length: int = 1024
    """Tokens of prompt and response together; the model's own context where that is shorter."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    seed: int = 0

    def __call__(self) -> None:
        check_device(self.device)
        if "://" not in self.database and not Path(self.database).is_file():
            raise UserError("there is no such file", file=self.database, expected="a feedback database")
        with closing(Database(self.database)) as database:
            project = Projects(database).get(self.project)
            ceiling = quality(standing_answers(database, project.id), project.settings.overlap).ceiling
            points = []
            for point in self._points(None if ceiling is None else ceiling.value):
                points.append(point)
                print(_row(point), flush=True)
            keep(database, project.id, self.model, points, None)
        print(told(points, forecasts(points, points[-1].ceiling)))

    def _points(self, ceiling: float | None) -> Iterator[Point]:
        from transformers.utils import logging

        from heed.data.split import split_by_prompt
        from heed.models.backbone import LoRAConfig
        from heed.pipeline.people import judged
        from heed.pipeline.train import RewardModelStageConfig, pairs

        logging.disable_progress_bar()  # it would tear the rows apart
        start = trained_policy(self.model)  # once: a run that goes on may train a newer one meanwhile
        config = RewardModelStageConfig(lr=self.lr, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed)
        lora = None if self.lora_rank is None else LoRAConfig(rank=self.lora_rank, alpha=2 * self.lora_rank)
        judgements, weights = judged(self.database, self.project, weights=self.weights)
        rankings = [judgement.ranking(weights[judgement.annotator]) for judgement in judgements]
        if len(_items(rankings)) < LEAST_ITEMS:
            found = f"{len(_items(rankings))} items of {self.project!r} have a ranking"
            raise UserError(found, expected=f"{LEAST_ITEMS} or more", fix="let annotators answer first: heed label")
        train, held_out = split_by_prompt(rankings, config.held_out, config.seed)
        test = pairs(held_out)
        if all(pair.label == 0.5 for pair in test):
            raise UserError("everything held out is tied", expected="preferences to measure on", fix="another --seed, or more answers")
        print(f"measured on {len(test):,} pairs of {len(_items(held_out)):,} items that no model is trained on")
        for part in nested(_items(train), config.seed):
            chosen = [ranking for item in part for ranking in item]
            accuracy = self._accuracy(start, chosen, test, config, lora, f"{len(part):,} items")
            yield Point(items=len(part), answers=len(chosen), pairs=len(pairs(chosen)), ceiling=ceiling, **accuracy)

    def _accuracy(
        self,
        start: str,
        rankings: list[Ranking],
        test: list[PreferencePair],
        config: RewardModelStageConfig,
        lora: LoRAConfig | None,
        label: str,
    ) -> dict[str, float]:
        """Of a reward model that is trained on these alone."""
        from heed.evaluation import evaluate_reward_model
        from heed.models.loading import load_policy
        from heed.models.scalar_model import new_scalar_model
        from heed.pipeline.sources import make_renderer, model_path
        from heed.training.reward_model import train_reward_model
        from heed.training.run import Run

        model = new_scalar_model(load_policy(model_path(start), device=self.device, lora=lora), "reward", config.seed)
        renderer = make_renderer(model, self.max_length)
        with tempfile.TemporaryDirectory(prefix="heed-curve-") as folder, Run(Path(folder), label=label) as run:
            train_reward_model(model, renderer, rankings, config, run)
        found = evaluate_reward_model(model, renderer, test, seed=config.seed).accuracy
        return {"accuracy": found.mean, "low": found.low, "high": found.high}


def told(points: Sequence[Point], expected: Sequence[Forecast]) -> str:
    """The noise ceiling and what more labels would buy, in words."""
    lines = []
    if points[-1].ceiling is not None:
        lines.append(f"noise ceiling: {_percent(points[-1].ceiling)}, what a perfect model would reach on these annotators' labels")
    for forecast in expected:
        interval = f"{_percent(forecast.low)} to {_percent(forecast.high)}"
        lines.append(f"{forecast.factor} times the labels ({forecast.answers:,} answers): about {_percent(forecast.accuracy)} ({interval})")
    if not expected:
        lines.append("what more labels would buy cannot be told from so little")
    return "\n".join(lines)


def _items(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """Rankings of the same responses together."""
    found: dict[tuple[str, tuple[str, ...]], list[Ranking]] = {}
    for ranking in rankings:
        found.setdefault((ranking.prompt.id, ranking.responses), []).append(ranking)
    return list(found.values())


def _row(point: Point) -> str:
    interval = f"({_percent(point.low)} to {_percent(point.high)})"
    return f"{point.items:>7,} items {point.answers:>8,} answers {point.pairs:>9,} pairs: {_percent(point.accuracy)} {interval}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
