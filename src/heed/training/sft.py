"""Supervised fine-tuning: imitate demonstrations, token by token, on the responses only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from heed.core.losses import sft_loss
from heed.data.render import Renderer
from heed.models.batch import collate
from heed.models.language_model import LanguageModel
from heed.records import Demonstration
from heed.training import loop
from heed.training.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig(loop.TrainConfig):
    """Settings of supervised fine-tuning."""

    DEFAULT_LR: ClassVar[tuple[float, float]] = (1e-5, 2e-4)


def train_sft(
    policy: LanguageModel, renderer: Renderer, demonstrations: Sequence[Demonstration], config: SFTConfig, run: Run
) -> dict[str, float]:
    """Minimise the cross-entropy of the demonstrated responses.

    `loss = - sum_t log pi(y_t | x, y_<t) / (number of response tokens in the update)`
    """
    sequences = renderer.encode_all((d.prompt, d.response) for d in demonstrations)
    batches = loop.Batches(len(sequences), config.batch_size, config.epochs, config.seed)
    state = loop.TrainState.create({"policy": policy}, config, len(batches))

    def step(indices: list[int], stats: loop.Stats) -> None:
        chosen = [sequences[i] for i in indices]
        num_tokens = sum(sum(s.response_mask) for s in chosen)

        def losses(items: list[int], stats: loop.Stats) -> Iterator[Tensor]:
            batch = collate([chosen[i] for i in items], policy.pad_id, policy.device)
            logprobs, _ = policy.logprobs(batch)
            loss = sft_loss(logprobs, batch.response_mask, num_tokens)
            stats.add("loss", loss * num_tokens, batch.num_tokens)
            yield loss

        loop.update(state, policy.micro_batches(chosen, config.max_tokens), losses, stats)

    return loop.train(state, run, batches, step, show=("loss",))
