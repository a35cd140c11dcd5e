"""Direct preference optimisation: learn from pairs without a reward model or sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from heed.core.losses import dpo_loss
from heed.core.masking import masked_sum
from heed.data.render import Renderer
from heed.errors import require
from heed.models.batch import collate, micro_batches
from heed.models.language_model import LanguageModel
from heed.records import PreferencePair, TokenSequence
from heed.training import loop
from heed.training.run import Run, load_tensors, save_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOConfig(loop.TrainConfig):
    """Settings of direct preference optimisation."""

    DEFAULT_LR: ClassVar[tuple[float, float]] = (1e-6, 1e-5)

    beta: float = 0.1
    """Strength of the leash to the reference: the reward is beta times the log-ratio."""

    def __post_init__(self) -> None:
        loop.TrainConfig.__post_init__(self)
        require(self.beta > 0, "beta", self.beta, "a number above 0")


def train_dpo(policy: LanguageModel, renderer: Renderer, pairs: Sequence[PreferencePair], config: DPOConfig, run: Run) -> dict[str, float]:
    """Raise the likelihood of chosen over rejected responses, relative to the policy as it was given.

    `loss = -log sigma(beta (log pi(y+)/pi_ref(y+) - log pi(y-)/pi_ref(y-)))`  (Rafailov et al. 2023, eq. 7)

    The reference is the policy before the first update; its log-probabilities are computed once and cached beside the
    checkpoint, so no second copy of the weights is held.
    """
    sequences = renderer.encode_all((p.prompt, response) for p in pairs for response in (p.chosen, p.rejected))
    encoded = list(zip(sequences[::2], sequences[1::2], strict=True))
    batches = loop.Batches(len(encoded), config.batch_size, config.epochs, config.seed)
    state = loop.TrainState.create({"policy": policy}, config, len(batches))
    with state.autocast():  # as the policy will be read, or the two would differ before any update
        reference = cached_reference(policy, sequences, config.max_tokens, run).view(-1, 2)

    def step(indices: list[int], stats: loop.Stats) -> None:
        def losses(members: list[int], stats: loop.Stats) -> Iterator[Tensor]:
            rows = [indices[i] for i in members]
            logps = response_logprobs(policy, [s for i in rows for s in encoded[i]]).view(-1, 2)
            ref = reference[rows].to(logps.device)
            labels = logps.new_tensor([pairs[i].label for i in rows])
            weights = logps.new_tensor([pairs[i].weight for i in rows])
            loss, margins = dpo_loss(
                logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1], config.beta, labels=labels, weights=weights, num_pairs=len(indices)
            )
            stats.add("loss", loss * len(indices), len(rows))
            stats.add_agreement(margins, labels)
            stats.add("chosen_logratio", (logps[:, 0] - ref[:, 0]).sum(), len(rows))
            stats.add("rejected_logratio", (logps[:, 1] - ref[:, 1]).sum(), len(rows))
            yield loss

        sizes = [policy.footprint(encoded[i]) for i in indices]
        groups = micro_batches([width for _, width in sizes], policy.token_budget(config.max_tokens), [rows for rows, _ in sizes])
        loop.update(state, groups, losses, stats)

    return loop.train(state, run, batches, step, show=("loss", "accuracy", "margin"))


def response_logprobs(policy: LanguageModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Log-probability of each whole response, `[B]`."""
    batch = collate(sequences, policy.pad_id, policy.device)
    logprobs, _ = policy.logprobs(batch)
    return masked_sum(logprobs, batch.response_mask, dim=1)


@torch.no_grad()
def cached_reference(policy: LanguageModel, sequences: Sequence[TokenSequence], max_tokens: int | None, run: Run) -> Tensor:
    """Response log-probabilities under the policy before training, `[B]`, from the cache where it holds these sequences."""
    path = run.folder / "reference.safetensors"
    fingerprint = hashlib.sha256(repr([(s.ids, s.response_mask) for s in sequences]).encode()).hexdigest()
    if path.exists() and run.checkpoint_path.exists():
        tensors, metadata = load_tensors(path)
        if metadata["sequences"] == fingerprint:
            return tensors["logprobs"]
    distinct = list(dict.fromkeys(sequences))  # a response of a ranking stands in several pairs
    found = torch.empty(len(distinct))
    groups = policy.micro_batches(distinct, max_tokens)
    for done, members in enumerate(groups, start=1):
        found[members] = response_logprobs(policy, [distinct[i] for i in members]).float().cpu()
        run.progress(done, len(groups), "reference")
        run.checkpoint_if_due(False, lambda: None)
    place = {sequence: i for i, sequence in enumerate(distinct)}
    logprobs = found[[place[sequence] for sequence in sequences]]
    save_atomically(path, {"logprobs": logprobs}, {"sequences": fingerprint})
    return logprobs
