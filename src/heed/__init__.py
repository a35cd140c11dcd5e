"""heed: the whole loop of reinforcement learning from human feedback in one tool."""

__version__ = "0.1.0"
