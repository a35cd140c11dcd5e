"""Reward models on held-out pairs: accuracy beside what length alone achieves, and whether the scores mean what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from heed.core.statistics import Interval, calibration
from heed.data.render import Renderer
from heed.errors import UserError
from heed.evaluation.intervals import as_dict, share_interval
from heed.evaluation.policies import Gold
from heed.models.batch import collate
from heed.models.scalar_model import ScalarModel
from heed.records import PreferencePair


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A held-out pair with the reward model's score of either response."""

    pair: PreferencePair
    chosen_score: float
    rejected_score: float

    @property
    def difference(self) -> float:
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs on which the model is about equally sure."""

    confidence: float
    """Mean probability it gives to the response it prefers."""
    accuracy: float
    """Share in which people preferred that response too."""
    count: int


@dataclass(frozen=True, slots=True)
class RewardModelEvaluation:
    """What is known of a reward model on held-out pairs; intervals are 95 %, clustered by prompt."""

    accuracy: Interval
    """Share of decided pairs in which the preferred response has the higher score; equal scores count half."""
    longer_baseline: float
    """Accuracy of always choosing the response with more characters; equal lengths count half."""
    shorter_baseline: float
    noise_ceiling: float | None
    """Accuracy of an average annotator against the truth, from their agreement; None where nobody judged twice.

    It takes every pair to be equally hard. Where they are not, it overstates what can be reached: sqrt is concave.
    """
    oracle_accuracy: Interval | None
    """Accuracy of the gold preference itself on these judgements, where one exists: what no model can beat."""
    gold_accuracy: Interval | None
    """Accuracy against the gold preference, where one exists."""
    ece: float
    calibration: tuple[CalibrationBin, ...]
    by_kind: Mapping[str, Interval]
    num_pairs: int
    num_ties: int
    """Pairs that people called equal: part of the calibration, not of any accuracy."""

    def to_dict(self) -> dict[str, object]:
        """The entry `reward_model` of `summary.json`."""
        return {
            "accuracy": as_dict(self.accuracy),
            "longer_baseline": self.longer_baseline,
            "shorter_baseline": self.shorter_baseline,
            "noise_ceiling": self.noise_ceiling,
            "oracle_accuracy": as_dict(self.oracle_accuracy) if self.oracle_accuracy else None,
            "gold_accuracy": as_dict(self.gold_accuracy) if self.gold_accuracy else None,
            "ece": self.ece,
            "calibration": [{"confidence": b.confidence, "accuracy": b.accuracy, "count": b.count} for b in self.calibration],
            "by_kind": {kind: as_dict(interval) for kind, interval in self.by_kind.items()},
            "num_pairs": self.num_pairs,
            "num_ties": self.num_ties,
        }


def evaluate_reward_model(
    model: ScalarModel,
    renderer: Renderer,
    pairs: Sequence[PreferencePair],
    *,
    gold: Gold | None = None,
    noise_ceiling: float | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> RewardModelEvaluation:
    """Score held-out pairs and measure the scores."""
    return measure_reward_model(score_pairs(model, renderer, pairs, max_tokens), gold=gold, noise_ceiling=noise_ceiling, seed=seed)


@torch.no_grad()
def score_pairs(
    model: ScalarModel, renderer: Renderer, pairs: Sequence[PreferencePair], max_tokens: int | None = None
) -> tuple[ScoredPair, ...]:
    """Score both responses of each pair; a response that several pairs share is scored once.

    Raises `UserError` where a score is not finite, as those of a model whose training diverged.
    """
    responses = dict.fromkeys((pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected))
    sequences = renderer.encode_all(responses)
    scores = torch.zeros(len(sequences))
    for members in model.micro_batches(sequences, max_tokens):
        batch = collate([sequences[i] for i in members], model.pad_id, model.device)
        scores[members] = model.scores(batch).float().cpu()
    if broken := int((~scores.isfinite()).sum()):
        found = f"the reward model gave {broken:,} of {len(scores):,} held-out responses no finite score"
        raise UserError(found, fix="train it again with a lower lr")
    score_of = dict(zip(responses, scores.tolist(), strict=True))
    return tuple(ScoredPair(p, score_of[p.prompt, p.chosen], score_of[p.prompt, p.rejected]) for p in pairs)


def measure_reward_model(
    scored: Sequence[ScoredPair],
    *,
    gold: Gold | None = None,
    noise_ceiling: float | None = None,
    num_bins: int = 20,
    seed: int = 0,
) -> RewardModelEvaluation:
    """Accuracy, length heuristics and calibration of scored pairs.

    Calibration compares `sigma(|r+ - r-|)`, the Bradley-Terry probability of the preferred response, with how often people
    agree (a tie is half an agreement); `num_bins` bins part `[0, 1]`, of which the upper half is used. Raises `ValueError`
    where people decided no pair.
    """
    decided = [s for s in scored if s.pair.label != 0.5]
    if not decided:
        raise ValueError("a reward model's accuracy needs pairs that people decided")

    def accuracy(pairs: Sequence[ScoredPair], advantage: Callable[[ScoredPair], float], truth: Callable[[ScoredPair], float]) -> Interval:
        values = [agreement(advantage(s), truth(s)) for s in pairs]
        return share_interval(values, [s.pair.prompt.id for s in pairs], seed)

    def people(s: ScoredPair) -> float:
        return s.pair.label - 0.5

    def gold_difference(s: ScoredPair) -> float:
        return gold(s.pair.prompt, s.pair.chosen)["utility"] - gold(s.pair.prompt, s.pair.rejected)["utility"] if gold else 0.0

    told_apart = [s for s in scored if gold_difference(s) != 0]
    kinds = sorted({s.pair.prompt.tags["kind"] for s in decided if "kind" in s.pair.prompt.tags})
    longer = accuracy(decided, lambda s: len(s.pair.chosen) - len(s.pair.rejected), people).mean
    bins, ece = confidence_calibration(scored, num_bins)
    return RewardModelEvaluation(
        accuracy=accuracy(decided, lambda s: s.difference, people),
        longer_baseline=longer,
        shorter_baseline=1 - longer,
        noise_ceiling=noise_ceiling,
        oracle_accuracy=accuracy(decided, gold_difference, people) if gold else None,
        gold_accuracy=accuracy(told_apart, lambda s: s.difference, gold_difference) if told_apart else None,
        ece=ece,
        calibration=bins,
        by_kind={
            kind: accuracy([s for s in decided if s.pair.prompt.tags.get("kind") == kind], lambda s: s.difference, people) for kind in kinds
        },
        num_pairs=len(scored),
        num_ties=len(scored) - len(decided),
    )


def agreement(advantage: float, truth: float) -> float:
    """1 where both have the same sign, 0 where the opposite one, half where `advantage` is 0."""
    return 0.5 if advantage == 0 else float((advantage > 0) == (truth > 0))


def confidence_calibration(scored: Sequence[ScoredPair], num_bins: int) -> tuple[tuple[CalibrationBin, ...], float]:
    """Calibration of the model's confidence in the response it prefers: the bins that hold any pair, and the ECE."""
    differences = torch.tensor([s.difference for s in scored], dtype=torch.float64)
    labels = torch.tensor([s.pair.label for s in scored], dtype=torch.float64)
    # A model that does not tell two responses apart prefers neither, so it is right in half of the cases.
    agreed = torch.where(differences > 0, labels, torch.where(differences < 0, 1 - labels, 0.5))
    counts, predicted, observed, ece = calibration(differences.abs().sigmoid(), agreed, num_bins)
    rows = zip(predicted.tolist(), observed.tolist(), counts.tolist(), strict=True)
    return tuple(CalibrationBin(p, o, n) for p, o, n in rows if n), ece
