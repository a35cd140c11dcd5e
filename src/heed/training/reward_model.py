"""Reward modelling: learn a score whose differences predict what people prefer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heed.core.losses import kwise_loss
from heed.data.render import Renderer
from heed.errors import require
from heed.models.batch import collate, micro_batches
from heed.models.scalar_model import ScalarModel
from heed.records import PreferencePair, Ranking, TokenSequence, ranked_pairs
from heed.training import loop
from heed.training.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelConfig(loop.TrainConfig):
    """Settings of reward modelling."""

    max_reference_responses: int = 512
    """How many training responses the score is centred on after training."""

    def __post_init__(self) -> None:
        loop.TrainConfig.__post_init__(self)
        require(self.max_reference_responses > 0, "max_reference_responses", self.max_reference_responses, "a whole number above 0")


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The responses to one prompt, each encoded once, and the pairs among them that people compared."""

    sequences: tuple[TokenSequence, ...]
    better: tuple[int, ...]
    """Index of the preferred response of each pair."""
    worse: tuple[int, ...]
    labels: tuple[float, ...]
    """Probability that `better` is better."""
    margins: tuple[float, ...]
    weight: float


def comparisons(items: Sequence[PreferencePair | Ranking], renderer: Renderer) -> list[Comparisons]:
    """Pairs and rankings as batch elements; a pair is a ranking of two that knows its strength."""
    rankings = [
        (i.prompt, (i.chosen, i.rejected), ((0, 1, i.label),), i.margin, i.weight)
        if isinstance(i, PreferencePair)
        else (i.prompt, i.responses, ranked_pairs(i.ranks), 0.0, i.weight)
        for i in items
    ]
    sequences = iter(renderer.encode_all((prompt, response) for prompt, responses, *_ in rankings for response in responses))
    found = []
    for _, responses, pairs, margin, weight in rankings:
        better, worse, labels = zip(*pairs, strict=True)
        own = tuple(itertools.islice(sequences, len(responses)))
        found.append(Comparisons(own, better, worse, labels, (margin,) * len(pairs), weight))
    return found


def train_reward_model(
    model: ScalarModel, renderer: Renderer, items: Sequence[PreferencePair | Ranking], config: RewardModelConfig, run: Run
) -> dict[str, float]:
    """Fit scores to rankings by Bradley-Terry, all C(K, 2) pairs of a prompt in one batch element.

    `loss = - mean over rankings of 1 / C(K, 2) sum_(w, l) log sigma(r_w - r_l)`  (Ouyang et al. 2022, eq. 1)

    Afterwards the score is shifted so that training responses average 0.
    """
    encoded = comparisons(items, renderer)
    batches = loop.Batches(len(encoded), config.batch_size, config.epochs, config.seed)
    state = loop.TrainState.create({"reward": model}, config, len(batches))

    def step(indices: list[int], stats: loop.Stats) -> None:
        chosen = [encoded[i] for i in indices]

        def losses(members: list[int], stats: loop.Stats) -> Iterator[Tensor]:
            group = [chosen[i] for i in members]
            batch = collate([s for c in group for s in c.sequences], model.pad_id, model.device)
            scores = model.scores(batch)
            pairs = flat_pairs(group, scores.device)
            loss = kwise_loss(scores, **pairs, num_rankings=len(chosen))
            stats.add("loss", loss * len(chosen), len(group))
            stats.add_agreement(scores[pairs["better"]] - scores[pairs["worse"]], pairs["labels"])
            stats.add("score", scores.sum(), len(scores))
            yield loss

        sizes = [model.footprint(c.sequences) for c in chosen]
        groups = micro_batches([width for _, width in sizes], model.token_budget(config.max_tokens), [rows for rows, _ in sizes])
        loop.update(state, groups, losses, stats)

    metrics = loop.train(state, run, batches, step, show=("loss", "accuracy"))
    center(model, [s for c in encoded for s in c.sequences][: config.max_reference_responses], config.max_tokens)
    return metrics


def flat_pairs(group: Sequence[Comparisons], device: torch.device) -> dict[str, Tensor]:
    """The pairs of several rankings as index tensors into their responses laid end to end; every entry is `[P]`."""
    better, worse, labels, margins, weights, counts, start = [], [], [], [], [], [], 0
    for c in group:
        better += [start + i for i in c.better]
        worse += [start + i for i in c.worse]
        labels += c.labels
        margins += c.margins
        weights += [c.weight] * len(c.better)
        counts += [len(c.better)] * len(c.better)
        start += len(c.sequences)
    return {
        "better": torch.tensor(better, device=device),
        "worse": torch.tensor(worse, device=device),
        "labels": torch.tensor(labels, device=device),
        "margins": torch.tensor(margins, device=device),
        "weights": torch.tensor(weights, device=device),
        "pairs_per_ranking": torch.tensor(counts, device=device),
    }


@torch.no_grad()
def center(model: ScalarModel, sequences: Sequence[TokenSequence], max_tokens: int | None) -> None:
    """Shift the score so that these responses average 0 (Ouyang et al. 2022, section 3.5)."""
    model.offset = 0.0
    scores = []
    for members in model.micro_batches(sequences, max_tokens):
        scores.append(model.scores(collate([sequences[i] for i in members], model.pad_id, model.device)))
    model.offset = float(torch.cat(scores).double().mean())
