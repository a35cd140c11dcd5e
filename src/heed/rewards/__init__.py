"""Things that score rollouts: rules, Python functions, reward models (`heed.rewards.model`) and weighted sums of them."""

from heed.rewards.combine import weighted_sum
from heed.rewards.protocol import Reward, checked_scores
from heed.rewards.python import load_reward
from heed.rewards.rules import haiku, length_target, regex, repetition_penalty

__all__ = ["Reward", "checked_scores", "haiku", "length_target", "load_reward", "regex", "repetition_penalty", "weighted_sum"]
