"""Engines that sample responses from a policy."""

from heed.rollout.engine import Engine
from heed.rollout.local import LocalEngine

__all__ = ["Engine", "LocalEngine"]
