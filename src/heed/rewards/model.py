"""A reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heed.data.render import Renderer
from heed.errors import UserError, require
from heed.models.batch import collate
from heed.models.scalar_model import ScalarModel
from heed.records import Rollout, TokenSequence
from heed.rewards.protocol import checked_scores


@dataclass(frozen=True, slots=True)
class ModelReward:
    """The reward model's score of each rollout, read at its last response token; a `Reward`.

    Raises UserError for a sequence longer than the model's context and for a score that is not finite.
    """

    model: ScalarModel
    renderer: Renderer | None = None
    """The reward model's own renderer, where its tokenizer is not the policy's: it reads the text anew. None scores the sampled ids."""
    max_tokens: int | None = None
    """Tokens in one forward, padding included; none takes what the device does best."""

    def __post_init__(self) -> None:
        require(self.max_tokens is None or self.max_tokens > 0, "max_tokens", self.max_tokens, "1 or above, or none")

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        sequences = self._sequences(rollouts)
        scores = torch.empty(len(rollouts))
        for rows in self.model.micro_batches(sequences, self.max_tokens):
            batch = collate([sequences[i] for i in rows], self.model.pad_id, self.model.device)
            scores[rows] = self.model.scores(batch).to("cpu", torch.float32)
        return checked_scores(scores, rollouts, "the reward model")

    def _sequences(self, rollouts: Sequence[Rollout]) -> list[TokenSequence]:
        sequences = [rollout.sequence() for rollout in rollouts] if self.renderer is None else self._rendered(rollouts, self.renderer)
        longest = max((len(sequence.ids) for sequence in sequences), default=0)
        if longest > self.model.context_length:
            raise UserError(
                f"a prompt and response of {longest} tokens",
                expected=f"at most the {self.model.context_length} that the reward model reads",
                fix="lower max_length or max_new_tokens",
            )
        return sequences

    def _rendered(self, rollouts: Sequence[Rollout], renderer: Renderer) -> list[TokenSequence]:
        sequences = {}
        for ended in (True, False):
            # An empty response has no token to be scored at but its end.
            rows = [i for i, r in enumerate(rollouts) if (r.finish_reason == "stop" or not r.text) == ended]
            rendered = renderer.encode_all([(rollouts[i].prompt, rollouts[i].text) for i in rows], ended=ended)
            sequences |= zip(rows, rendered, strict=True)
        return [sequences[i] for i in range(len(rollouts))]
