"""Measurement: what the gold preference, the reference and held-out comparisons say of policies and reward models."""

from heed.evaluation.policies import (
    BestOfNPoint,
    Gold,
    GradedResponse,
    PolicyEvaluation,
    best_of_n,
    evaluate_policy,
    grade,
    kl_to_reference,
    summarise,
    win_rate,
)
from heed.evaluation.reward_model import RewardModelEvaluation, ScoredPair, evaluate_reward_model, measure_reward_model, score_pairs

__all__ = [
    "BestOfNPoint",
    "Gold",
    "GradedResponse",
    "PolicyEvaluation",
    "RewardModelEvaluation",
    "ScoredPair",
    "best_of_n",
    "evaluate_policy",
    "evaluate_reward_model",
    "grade",
    "kl_to_reference",
    "measure_reward_model",
    "score_pairs",
    "summarise",
    "win_rate",
]
