"""`heed feedback score`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from heed.errors import UserError
from heed.feedback.answers import standing_answers
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects
from heed.feedback.quality import Estimate
from heed.feedback.reward_agreement import Preferences, agreement
from heed.feedback.reward_scores import RewardModel, add_reward_model, prioritise, score_responses, stored_scores
from heed.pipeline.device import check_device
from heed.pipeline.newest import newest_reward_model
from heed.records import Prompt, Rollout

if TYPE_CHECKING:
    from heed.data.render import Renderer
    from heed.rewards.protocol import Reward

POLL_SECONDS = 5.0
"""Between two looks at what has been added."""


@dataclass(frozen=True, slots=True)
class ScoreProject:
    """Let reward models score a project's responses, say how far they agree with people, and give annotators first what they are unsure of.

    With one model, the least sure items are those whose scores are nearest to each other; with several, those that they
    disagree on most. The project's strategy decides whether annotators get them first.
    """

    database: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATABASE")]
    """A file, or a URL such as postgresql+psycopg://..."""
    project: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROJECT")]
    """The project's name."""
    reward_model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FOLDER")]
    """A reward model's folder, or that of a run, whose newest reward model is taken; repeated, the models are an ensemble."""
    watch: bool = False
    """Go on with what is added later: items, and newer reward models of a run."""
    max_length: int = 1024
    """Tokens of prompt and response together; the model's own context where that is shorter."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How weights are held in memory."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""

    def __call__(self) -> None:
        check_device(self.device)
        if not self.reward_model:
            raise UserError("no reward model is named", fix="add --reward-model FOLDER")
        if "://" not in self.database and not Path(self.database).is_file():
            raise UserError("there is no such file", file=self.database, expected="a feedback database")
        with closing(Database(self.database)) as database:
            project = Projects(database).get(self.project)
            models = [Scorer(folder, self.max_length, {"dtype": self.dtype, "device": self.device}) for folder in self.reward_model]
            self._score(database, project, models)
            while self.watch:
                time.sleep(POLL_SECONDS)
                self._score(database, project, models, again=True)

    def _score(self, database: Database, project: Project, scorers: Sequence[Scorer], *, again: bool = False) -> None:
        """One round over what is there; a later one is silent where there is nothing new."""
        scored = [scorer.score(database, project.id) for scorer in scorers]
        changed = prioritise(database, [model for model, _ in scored])
        if again and not changed and not any(number for _, number in scored):
            return
        people = Preferences.of(standing_answers(database, project.id))
        for model, number in scored:
            found = agreement(people, model, stored_scores(database, model.id))
            print(f"{model.name}: {number:,} responses scored; {_told(found.overall, found.answers)}")
        print(f"{changed:,} items have a new priority", flush=True)
        if not again and Projects(database).get(project.id).settings.strategy != "uncertain":
            print(f"annotators get items at random: choose the strategy `uncertain` in the settings of {project.name!r} to use priorities")


class Scorer:
    """A reward model in memory, and the folder that may come to hold a newer one."""

    def __init__(self, folder: str, max_length: int, options: dict[str, str]) -> None:
        self.folder, self.max_length, self.options = Path(folder), max_length, options
        self.path, self.digest = Path(), ""
        self._reward: Reward | None = None
        self._renderer: Renderer | None = None

    def score(self, database: Database, project_id: int) -> tuple[RewardModel, int]:
        """Score what the newest model has not scored; returns that model, and how many responses it scored."""
        from heed.training.run import Display

        reward, renderer = self._load()
        display = None

        def show(done: int, total: int) -> None:
            nonlocal display
            display = display or Display("scoring")
            display.show(done, total, str(self.path))

        def score(items: Sequence[tuple[Prompt, str]]) -> list[float]:
            return reward([Rollout(prompt, (), (), (), text, "stop") for prompt, text in items]).tolist()

        model = add_reward_model(database, project_id, str(self.path), self.digest)
        try:
            number = score_responses(database, model, score, show)
        finally:
            if display is not None:
                display.close()
        if number and renderer.truncations():
            print(f"{self.path}: {renderer.truncations()}")
        return model, number

    def _load(self) -> tuple[Reward, Renderer]:
        """The newest model, and what renders its texts; what is in memory already is not loaded again."""
        path = newest_reward_model(self.folder)
        digest = weights_digest(path)
        if self._reward is None or self._renderer is None or digest != self.digest:
            print(f"loading {path} ...", flush=True)
            from transformers.utils import logging

            from heed.pipeline.sources import load_scoring

            logging.disable_progress_bar()  # it would tear heed's own apart
            self._reward, self._renderer = load_scoring(str(path), max_length=self.max_length, **self.options)
            self.path, self.digest = path, digest
        return self._reward, self._renderer


def weights_digest(folder: Path) -> str:
    """Hash of a model folder's weights; UserError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError("no *.safetensors weights here", file=folder, expected="a reward model's folder, or that of a run")
    stats = [(file, file.stat()) for file in files]
    return hashlib.sha256(b"".join(_file_digest(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)).hexdigest()


@cache
def _file_digest(file: Path, size: int, changed: int) -> bytes:
    """Kept for as long as the file is as large and as old: weights are gigabytes."""
    with file.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").digest()


def _told(share: Estimate | None, answers: int) -> str:
    if share is None:
        return "nobody has judged them yet"
    value, low, high = (100 * number for number in share)
    return f"agrees with people in {value:.1f} % of pairs ({low:.1f} to {high:.1f} %, {answers:,} answers)"
