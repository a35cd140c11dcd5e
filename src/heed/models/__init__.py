"""Roles on one backbone: token ids in, log-probabilities, values and scores out."""

from heed.models.backbone import LoRAConfig
from heed.models.batch import TokenBatch, collate
from heed.models.language_model import LanguageModel
from heed.models.loading import load_policy, load_reward_model
from heed.models.scalar_model import ScalarModel, ValueHead, critic_from, new_scalar_model, value_head

__all__ = [
    "LanguageModel",
    "LoRAConfig",
    "ScalarModel",
    "TokenBatch",
    "ValueHead",
    "collate",
    "critic_from",
    "load_policy",
    "load_reward_model",
    "new_scalar_model",
    "value_head",
]
