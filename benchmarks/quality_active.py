"""Labels needed for the same reward model: items that it is unsure of first, against items at random.

    python benchmarks/quality_active.py [--seeds 3] [--models 2] [--folder runs/active]

On the built-in world, through the labelling app's own store: a project for each way of choosing, of whose items simulated annotators
are leased the next ones; after each round reward models are trained on what was said so far (as many as the ensemble has, from
different seeds), score the project, and set its priorities. All ways of a seed share the items, the annotators and the first round,
which is at random. Accuracy is that of one reward model against the true preference, on pairs of held-out prompts whose utility differs.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from results import ROOT, write_results
from transformers.utils import logging

from heed.data.render import Renderer
from heed.evaluation.reward_model import score_pairs
from heed.feedback import training_data
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.reward_scores import add_reward_model, prioritise, score_responses
from heed.feedback.simulated import SimulatedAnnotator
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Answer, Tasks
from heed.models.loading import load_policy
from heed.models.scalar_model import ScalarModel, new_scalar_model
from heed.pipeline.collect import JudgeConfig
from heed.pipeline.sources import make_renderer, model_path
from heed.records import PreferencePair, Prompt, Ranking, Response, Rollout, Sampling
from heed.rewards.model import ModelReward
from heed.rollout.local import LocalEngine
from heed.testbed.datasets import load
from heed.testbed.gold import gold
from heed.training.reward_model import RewardModelConfig, train_reward_model
from heed.training.run import Run

K = 4
WAYS = {"random": 1.0, "uncertain": 0.25, "uncertain, no control": 0.0}
"""Share of items that come at random, for each way of choosing what comes next."""
ROUNDS = (20, 40, 60, 80, 120)
"""Labels (rankings of 4) after each round."""
POOL = 400
"""Items to choose from."""
LEARNING: Any = {"lr": 1e-3, "batch_size": 8, "weight_decay": 0.1, "epochs": 2}
"""As in the demo's recipe, but for smaller batches and one pass more over fewer labels."""


@dataclass(frozen=True)
class World:
    """What all ways of choosing share: items, annotators, and held-out pairs with their right order."""

    items: Sequence[tuple[Prompt, Sequence[Response]]]
    annotators: Sequence[SimulatedAnnotator]
    held_out: Sequence[PreferencePair]
    seed: int


def utility(prompt: Prompt, response: str) -> float:
    return gold(prompt, response)["utility"]


def sampled(prompts: Sequence[Prompt], seed: int) -> list[tuple[Prompt, list[Response]]]:
    """K responses of the built-in model to each prompt."""
    policy = load_policy(model_path("testbed"))
    engine = LocalEngine(policy, make_renderer(policy, 256, 64), seed=seed)
    texts = [rollout.text for rollout in engine.generate(prompts, Sampling(max_new_tokens=64), K)]
    return [(prompt, [Response(text) for text in texts[K * i : K * i + K]]) for i, prompt in enumerate(prompts)]


def gold_pairs(items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[PreferencePair]:
    """All pairs whose true utilities differ, the better response first."""
    found = []
    for prompt, responses in items:
        worth = {response.text: utility(prompt, response.text) for response in responses}
        found += [PreferencePair(prompt, a, b) for a in worth for b in worth if worth[a] > worth[b]]
    return found


def make_world(seed: int) -> World:
    prompts = Random(seed).sample(load("prompts"), POOL)
    annotators = [
        SimulatedAnnotator(a.name, utility, a.reliability, a.position_bias, a.tie_threshold, a.temperature, seed)
        for a in JudgeConfig().annotators
    ]
    return World(sampled(prompts, seed), annotators, gold_pairs(sampled(load("heldout"), 0)), seed)


class Team:
    """A project whose items are chosen one way, and the annotators who are leased them."""

    def __init__(self, folder: Path, world: World, control_share: float) -> None:
        self.world = world
        self.database = Database(folder / "feedback.db")
        projects, accounts = Projects(self.database), Accounts(self.database)
        settings = ProjectSettings(num_responses=K, strategy="uncertain", control_share=control_share)
        self.project = projects.create("active", settings, None)
        projects.add_items(self.project.id, world.items, None)
        self.accounts = [accounts.accept(accounts.invite("annotator", None), a.name, "a long enough password").id for a in world.annotators]
        self.tasks = Tasks(self.database, Random(world.seed))
        self.num_labels = 0

    def choose_at_random(self, until: int) -> None:
        """The first labels, before there is a reward model to be unsure of anything."""
        projects = Projects(self.database)
        chosen = self.project.settings
        made = projects.change(self.project.id, replace(chosen, strategy="random"), self.project.revision, None)
        self.label(until)
        self.project = projects.change(self.project.id, chosen, made.revision, None)

    def label(self, until: int) -> None:
        """Annotators take turns until there are so many labels."""
        while self.num_labels < until:
            who = self.num_labels % len(self.accounts)
            task = self.tasks.next(self.project.id, self.accounts[who])
            assert task is not None
            ranks = self.world.annotators[who].rank_shown(task.prompt, task.responses)
            self.tasks.answer(task.lease_id, self.accounts[who], Answer(ranks=ranks))
            self.num_labels += 1

    def prioritise(self, models: Sequence[tuple[ScalarModel, Renderer]]) -> None:
        """As `heed feedback score` does."""
        known = []
        for number, (model, renderer) in enumerate(models):
            reward = ModelReward(model, renderer)

            def score(items: Sequence[tuple[Prompt, str]], reward: ModelReward = reward) -> list[float]:
                return reward([Rollout(prompt, (), (), (), text, "stop") for prompt, text in items]).tolist()

            name = f"{self.num_labels}-{number}"
            known.append(add_reward_model(self.database, self.project.id, name, name))
            score_responses(self.database, known[-1], score)
        prioritise(self.database, known)


def trained(rankings: Sequence[Ranking], folder: Path, seed: int) -> tuple[ScalarModel, Renderer]:
    """A reward model of these rankings."""
    shutil.rmtree(folder, ignore_errors=True)
    model = new_scalar_model(load_policy(model_path("testbed")), "reward", seed)
    renderer = make_renderer(model, 256)
    with Run(folder, display=False) as run:
        train_reward_model(model, renderer, rankings, RewardModelConfig(seed=seed, **LEARNING), run)
    return model, renderer


def accuracy(model: ScalarModel, renderer: Renderer, pairs: Sequence[PreferencePair]) -> float:
    differences = [scored.difference for scored in score_pairs(model, renderer, pairs)]
    return statistics.fmean(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences)


def curves(world: World, folder: Path, num_models: int) -> dict[str, list[float]]:
    """Accuracy after each round, for each way of choosing."""
    found: dict[str, list[float]] = {}
    first: list[tuple[ScalarModel, Renderer]] = []
    for way, control_share in WAYS.items():
        place = folder / way.replace(", ", "-").replace(" ", "-")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        team = Team(place, world, control_share)
        found[way] = []
        for number, labels in enumerate(ROUNDS):
            if number == 0:
                team.choose_at_random(labels)
            else:
                team.label(labels)
            alone = way == "random" or labels == ROUNDS[-1]  # no next items to choose by an ensemble
            rankings = training_data.rankings(FeedbackStore(team.database))
            if number == 0 and first:
                models = first
            else:
                size = num_models if number == 0 or not alone else 1
                models = [trained(rankings, place / "model", 100 * world.seed + i) for i in range(size)]
            first = first or models
            if not alone:
                team.prioritise(models)
            found[way].append(accuracy(*models[0], world.held_out))
            print(f"seed {world.seed}  {way:22} {labels:4} labels  accuracy {found[way][-1]:.4f}", flush=True)
        team.database.close()
    return found


def labels_needed(curve: Sequence[float], target: float) -> float | None:
    """Labels at which a curve first reaches the target, by straight lines between rounds; none where it never does."""
    points = list(zip(ROUNDS, curve, strict=True))
    if curve[0] >= target:
        return float(ROUNDS[0])
    for (before, low), (after, high) in pairwise(points):
        if low < target <= high:
            return before + (after - before) * (target - low) / (high - low)
    return None


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds, which one seed does not have."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def summary(found: Sequence[Mapping[str, list[float]]]) -> dict[str, Any]:
    """Curves with their spread over seeds, and labels for the same accuracy: what all ways reach on average, and two points less."""
    mean = {way: [statistics.fmean(values) for values in zip(*(curve[way] for curve in found), strict=True)] for way in WAYS}
    deviation = {way: [spread(values) for values in zip(*(curve[way] for curve in found), strict=True)] for way in WAYS}
    reached = min(max(curve) for curve in mean.values())
    needed = []
    for target in (reached - 0.02, reached):
        labels = {way: labels_needed(curve, target) for way, curve in mean.items()}
        at_random = labels["random"]
        ratios = {way: number / at_random if number and at_random else None for way, number in labels.items() if way != "random"}
        needed.append({"accuracy": target, "labels": labels, "labels_over_random": ratios})
    better = {
        way: [statistics.fmean(curve[way][i] - curve["random"][i] for curve in found) for i in range(len(ROUNDS))]
        for way in WAYS
        if way != "random"
    }
    return {"labels": ROUNDS, "mean": mean, "deviation": deviation, "gain_over_random": better, "labels_needed": needed, "each": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=int, default=2, help="reward models in the ensemble; 1 chooses by the margin of one")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "active")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    start = time.monotonic()
    worlds = (make_world(seed) for seed in range(options.seeds))
    found = [curves(world, options.folder / str(world.seed), options.models) for world in worlds]
    results = summary(found) | {
        "ways": WAYS,
        "models": options.models,
        "items": POOL,
        "responses": K,
        "training": LEARNING,
        "seconds": round(time.monotonic() - start),
    }
    write_results("quality_active", " ".join(["python", *sys.argv]), results)
    for i, labels in enumerate(ROUNDS):
        print(f"{labels:4} labels  " + "  ".join(f"{way} {curve[i]:.4f}" for way, curve in results["mean"].items()))
    print(results["labels_needed"])


if __name__ == "__main__":
    main()
