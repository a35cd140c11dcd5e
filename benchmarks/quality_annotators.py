"""What reliability weights are worth, where the truth is known: simulated annotators label the built-in world through the HTTP API.

    python benchmarks/quality_annotators.py [--quick] [--items 1600] [--overlap 4] [--trained-on 50] [--seeds 8]

A real server process. Sixteen annotators of known faults: a quarter click at random, the others look in 60 to 100 % of the cases; some
are drawn to the response shown first. Measured are the correlation of the estimated reliability with the truth, whose
position bias is warned of, and the accuracy on held-out pairs, by the true preference, of reward models trained with and
without weights: for each seed from the export of pairs of the same few items, so that labels and not updates are what is scarce, in the
same order and from the same start.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from results import ROOT, write_results

sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from tests.web.server import serving

from heed.data.writers import from_row
from heed.evaluation import evaluate_reward_model
from heed.feedback import SimulatedAnnotator
from heed.feedback.accounts import Accounts
from heed.feedback.answers import Standing, standing_answers
from heed.feedback.database import Database
from heed.feedback.export import Export, label_weights
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.quality import quality
from heed.feedback.remote import RemoteProject, work
from heed.feedback.schema import AccountRow
from heed.models.loading import load_policy
from heed.models.scalar_model import new_scalar_model
from heed.pipeline.sources import make_renderer
from heed.records import PreferencePair, Prompt, Response
from heed.testbed import model_path
from heed.testbed.datasets import CORPUS_MANNERS, load
from heed.testbed.gold import gold
from heed.testbed.grammar import respond, task_asked
from heed.training.reward_model import RewardModelConfig, train_reward_model
from heed.training.run import Run

K = 4
CLICKERS = 4
"""Annotators who click at random."""
BIASES = (0.0, 0.0, 1.5, 0.0, 0.3, 2.0, 0.0, 0.0, 1.2, 0.0, 0.3, 0.0)
"""Utility that the others add to the response shown first, from the one who looks least often to the one who always does."""
TEMPERATURE = 0.7
SHIFT = 0.1
"""Of the share of comparisons that the response shown first wins: what must be found."""
CONFIG = RewardModelConfig(lr=1e-3, batch_size=16, weight_decay=0.1, epochs=2)
"""As in the built-in demo, but for a second pass over the few labels."""
TARGETS = {"correlation": 0.9, "missed_biases": 0, "mean_gain": 0.0}


@cache
def utility(prompt: Prompt, response: str) -> float:
    return gold(prompt, response)["utility"]


def team() -> list[SimulatedAnnotator]:
    looks = [0.0] * CLICKERS + [0.6 + 0.4 * i / (len(BIASES) - 1) for i in range(len(BIASES))]
    return [
        SimulatedAnnotator(f"annotator {i:02}", utility, reliability=look, position_bias=bias, temperature=TEMPERATURE, seed=i)
        for i, (look, bias) in enumerate(zip(looks, (0.0,) * CLICKERS + BIASES, strict=True))
    ]


def items(prompts: Sequence[Prompt], random: Random) -> list[tuple[Prompt, list[Response]]]:
    """Each prompt with K different responses of middling manners."""
    found = []
    for prompt in prompts:
        texts: dict[str, None] = {}
        while len(texts) < K:
            texts[respond(task_asked(prompt), CORPUS_MANNERS, random)] = None
        found.append((prompt, [Response(text, model="the world") for text in texts]))
    return found


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the annotators left in the database."""

    standing: Standing
    weights: dict[str, float]
    pairs: dict[str, list[PreferencePair]]
    """As exported with each way of weighing annotators."""
    seconds: float


def label(annotators: Sequence[SimulatedAnnotator], asked: list[tuple[Prompt, list[Response]]], overlap: int) -> Labelled:
    """Have it all labelled over HTTP, every annotator in a thread."""
    with tempfile.TemporaryDirectory() as folder, closing(Database(f"{folder}/team.db")) as database:
        project = Projects(database).create("trial", ProjectSettings(num_responses=K, overlap=overlap), None)
        Projects(database).add_items(project.id, asked, None)
        keys = {annotator.name: key_of(database, annotator.name) for annotator in annotators}
        with serving(f"{folder}/team.db", Path(folder) / "log") as (_, address), ThreadPoolExecutor(len(annotators)) as threads:
            start = time.monotonic()
            jobs = [threads.submit(work, RemoteProject(address, keys[a.name], project.id, timeout=600), a) for a in annotators]
            answers = sum(job.result() for job in jobs)
            seconds = time.monotonic() - start
        assert answers == len(asked) * overlap, f"{answers} answers"
        standing = standing_answers(database, project.id, texts=True)
        weights = label_weights(standing)
        ways = {"unweighted": None, "weighted": weights, "log_odds": {name: log_odds(weight) for name, weight in weights.items()}}
        pairs = {way: exported(Export(database, project.id, "pairs", weights=found)) for way, found in ways.items()}
    return Labelled(standing, weights, pairs, seconds)


def exported(export: Export) -> list[PreferencePair]:
    pairs = [from_row(row) for row in export.rows()]
    return [pair for pair in pairs if isinstance(pair, PreferencePair)]


def key_of(database: Database, name: str) -> str:
    with database.write() as session:
        row = AccountRow(name=name, password="none", role="annotator", avoid=[])
        session.add(row)
        session.flush()
        number = row.id
    return Accounts(database).new_token(number, "simulated")


def shift(annotator: SimulatedAnnotator, asked: list[tuple[Prompt, list[Response]]]) -> float:
    """By how much the annotator's faults move the share of comparisons that the response shown first wins, over random orders."""
    random, won, count = Random(annotator.name), 0.0, 0
    for prompt, responses in asked:
        for _ in range(5):
            texts = random.sample([response.text for response in responses], K)
            ranks = annotator.rank_shown(prompt, texts)
            won += sum(1.0 if ranks[0] < rank else 0.5 * (ranks[0] == rank) for rank in ranks[1:])
            count += K - 1
    return won / count - 0.5


def skill(annotator: SimulatedAnnotator, asked: list[tuple[Prompt, list[Response]]]) -> float:
    """How far the annotator is better than a coin on pairs that differ in truth: 2 p - 1."""
    random, right, count = Random(annotator.name), 0, 0
    for prompt, responses in asked:
        texts = random.sample([response.text for response in responses], K)
        ranks, worth = annotator.rank_shown(prompt, texts), [utility(prompt, text) for text in texts]
        for i, j in itertools.combinations(range(K), 2):
            if worth[i] != worth[j]:
                right += (ranks[i] < ranks[j]) == (worth[i] > worth[j])
                count += 1
    return 2 * right / count - 1


def people(annotators: Sequence[SimulatedAnnotator], labelled: Labelled, asked: list[tuple[Prompt, list[Response]]]) -> dict[str, Any]:
    """What was estimated of each annotator, beside the truth."""
    found = {a.name: a for a in quality(labelled.standing, overlap=1).annotators}
    rows = []
    for annotator in annotators:
        estimated = found[annotator.name]
        rows.append(
            {
                "answers": estimated.answers,
                "reliability": round(annotator.reliability, 3),
                "skill": round(skill(annotator, asked), 3),
                "estimated": round(labelled.weights[annotator.name], 3),
                "position_bias": annotator.position_bias,
                "shift": round(shift(annotator, asked), 3),
                "first_preferred": round(estimated.first_preferred or math.nan, 3),
                "position_warned": any(warning.kind == "position" for warning in estimated.warnings),
                "random_warned": any(warning.kind == "random" for warning in estimated.warnings),
            }
        )
    biased = [row for row in rows if abs(row["shift"]) > SHIFT]
    unbiased = [row for row in rows if row["position_bias"] == 0]
    clickers = [row for row in rows if row["reliability"] == 0]

    def correlation(truth: str, among: list[dict[str, Any]]) -> float:
        return float(np.corrcoef([row[truth] for row in among], [row["estimated"] for row in among])[0, 1])

    return {
        "correlation_with_reliability": correlation("reliability", rows),
        "correlation_with_skill": correlation("skill", rows),
        "correlation_with_reliability_of_those_who_look": correlation("reliability", rows[CLICKERS:]),
        "biases_over_0.1": len(biased),
        "missed_biases": sum(not row["position_warned"] for row in biased),
        "smaller_biases_found": sum(row["position_warned"] for row in rows if row not in biased and row not in unbiased),
        "false_alarms_of_bias": sum(row["position_warned"] for row in unbiased),
        "unbiased": len(unbiased),
        "clickers_found": sum(row["random_warned"] for row in clickers),
        "others_called_random": sum(row["random_warned"] for row in rows if row not in clickers),
        "annotators": rows,
    }


def log_odds(weight: float) -> float:
    """The other weight that theory offers, that of a vote: log(p / (1 - p)) of the accuracy p = (1 + weight) / 2, kept below 0.99."""
    p = min((1 + weight) / 2, 0.99)
    return math.log(p / (1 - p))


def accuracies(labelled: Labelled, test: list[PreferencePair], trained_on: int, seed: int, folder: Path) -> dict[str, float]:
    """Of reward models trained on the pairs of some items, weighted in each way."""
    prompts = list(dict.fromkeys(pair.prompt for pair in labelled.pairs["unweighted"]))
    chosen, found = set(Random(seed).sample(prompts, trained_on)), {}
    for way, pairs in labelled.pairs.items():
        model = new_scalar_model(load_policy(model_path(), device="cpu"), "reward", seed)
        renderer = make_renderer(model, 256)
        with Run(folder / f"{way}-{seed}", display=False) as run:
            train_reward_model(model, renderer, [p for p in pairs if p.prompt in chosen], dataclasses.replace(CONFIG, seed=seed), run)
        found[way] = evaluate_reward_model(model, renderer, test).accuracy.mean
    return found


def held_out(random: Random) -> list[PreferencePair]:
    """All pairs of responses to held-out prompts that differ in truth, better one first."""
    pairs = []
    for prompt, responses in items(load("heldout"), random):
        for a, b in itertools.combinations([response.text for response in responses], 2):
            if utility(prompt, a) != utility(prompt, b):
                better, worse = (a, b) if utility(prompt, a) > utility(prompt, b) else (b, a)
                pairs.append(PreferencePair(prompt, better, worse))
    return pairs


def gains(each: list[dict[str, float]], way: str) -> dict[str, Any]:
    """What a way of weighing adds to the accuracy, seed by seed."""
    found = [accuracy[way] - accuracy["unweighted"] for accuracy in each]
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return {"each": [round(gain, 4) for gain in found], "mean": statistics.fmean(found), "standard_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes no results")
    parser.add_argument("--items", type=int, default=1600)
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--trained-on", type=int, default=50, help="items whose pairs a reward model is trained on")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    if options.quick:
        options.items, options.trained_on, options.seeds = 160, 20, 2
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    annotators, asked = team(), items(load("prompts")[: options.items], Random(1))
    labelled = label(annotators, asked, options.overlap)
    found = people(annotators, labelled, asked)
    print({key: value for key, value in found.items() if key != "annotators"}, f"{labelled.seconds:.0f} s", flush=True)
    for row in found["annotators"]:
        print(row, flush=True)
    test, each = held_out(Random(2)), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            start = time.monotonic()
            each.append(accuracies(labelled, test, options.trained_on, seed, Path(folder)))
            print(seed, each[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    results = {
        "targets": TARGETS,
        "items": options.items,
        "overlap": options.overlap,
        "answers": len(labelled.standing.answers),
        "answers_per_second": round(len(labelled.standing.answers) / labelled.seconds, 1),
        "people": found,
        "reward_models": {
            "items": options.trained_on,
            "answers": options.trained_on * options.overlap,
            "epochs": CONFIG.epochs,
            "held_out_pairs": len(test),
            "seeds": list(range(options.seeds)),
            "accuracy": {way: statistics.fmean(accuracy[way] for accuracy in each) for way in each[0]},
            "gain_of_weights": gains(each, "weighted"),
            "gain_of_log_odds": gains(each, "log_odds"),
        },
    }
    print(results["reward_models"])
    if not options.quick:
        write_results("quality_annotators", " ".join(["python", *sys.argv]), results)


if __name__ == "__main__":
    main()
