"""What a policy, a value model and a reward model have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heed.models.backbone import Backbone
from heed.models.batch import TokenBatch, micro_batches
from heed.models.sharing import prompt_runs, shared_rows
from heed.records import TokenSequence

GPU_TOKENS, CPU_TOKENS = 2**13, 2**10
"""A GPU wants large products; a CPU loses more to padding, and to activations that leave its cache."""
CPU_ACTIVATIONS = 2**22
"""Tokens times layers times width in a micro-batch on a CPU: about half a gigabyte of activations."""


class Role:
    """A model in one of its parts: a head and, on a backbone that it may share, the whole of the weights or one adapter."""

    def __init__(self, model: Any, tokenizer: Any, backbone: Backbone, *, adapter: str | None, source: str | None) -> None:
        self.model = model
        """The transformers model: the backbone's body with this role's head."""
        self.tokenizer = tokenizer
        self.backbone = backbone
        self.adapter = adapter
        """The role's adapter; None where the role is a whole model, or the base without adapters."""
        self.source = source
        """Where the base weights are found, which a saved adapter names; None where they are nowhere on their own."""
        self.frozen = False
        self.version = 0
        """How many updates the weights have seen."""
        self.eos_ids = _eos_ids(model, tokenizer)
        """Every id that ends a response."""
        pad_id, num_embeddings = tokenizer.pad_token_id, len(model.get_input_embeddings().weight)
        self.pad_id: int = pad_id if pad_id is not None and pad_id < num_embeddings else min(self.eos_ids, default=0)
        """Filler for batches, with an embedding. It may end a response as well: masks never come from it."""
        self.context_length = context_length(model.config, tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def hidden(self, batch: TokenBatch, read: Tensor | None = None) -> Tensor:
        """Last hidden states after the final norm, `[B, T, D]`; those of padding, or not marked in `read` `[B, T]`, mean nothing."""
        training = torch.is_grad_enabled() and not self.frozen
        self.backbone.activate(self.adapter, training=training)
        with torch.set_grad_enabled(training):
            return self.backbone.hidden(batch, read)

    def token_budget(self, max_tokens: int | None) -> int:
        """Tokens in one micro-batch: as many as told or, where nothing is, as the device does best."""
        return max_tokens or micro_batch_tokens(self.device.type, self.model.config.num_hidden_layers, self.backbone.hidden_size)

    def micro_batches(self, sequences: Sequence[TokenSequence], max_tokens: int | None = None) -> list[list[int]]:
        """Indices of sequences in groups that `hidden` runs within the token budget, those of one prompt that stand together in one."""
        max_tokens = self.token_budget(max_tokens)
        if not self.shares_prompts:
            return micro_batches([len(s.ids) for s in sequences], max_tokens)
        packed = [
            ([run[i] for i in members], width)
            for prompt_length, run in prompt_runs(sequences)
            for members, width in shared_rows(prompt_length, [len(sequences[i].ids) for i in run], self.backbone.hidden_size)
        ]
        groups = micro_batches([width for _, width in packed], max_tokens)
        return [[i for row in group for i in packed[row][0]] for group in groups]

    def footprint(self, sequences: Sequence[TokenSequence]) -> tuple[int, int]:
        """Rows and width in which `hidden` runs sequences of one prompt that stand together."""
        lengths = [len(s.ids) for s in sequences]
        if not self.shares_prompts:
            return len(lengths), max(lengths)
        widths = [width for _, width in shared_rows(sequences[0].prompt_length, lengths, self.backbone.hidden_size)]
        return len(widths), max(widths)

    @property
    def shares_prompts(self) -> bool:
        return self.backbone.shares_prompts

    def weights(self) -> dict[str, nn.Parameter]:
        """The role's own weights by name: its adapter and head, or, without LoRA, all of its model."""
        if self.backbone.lora is None:
            return dict(self.model.named_parameters())
        if self.adapter is None:
            return {}
        body, prefix = self.backbone.parameters(self.adapter), self.model.base_model_prefix
        return {f"{prefix}.{name}": parameter for name, parameter in body.items()} | self._head_weights()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that training changes, by name; none once frozen."""
        return {} if self.frozen else self.weights()

    def state(self) -> dict[str, Tensor]:
        """The trainable weights for a checkpoint; views, not copies."""
        return {name: parameter.detach() for name, parameter in self.trainable().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put the weights of a checkpoint back; ValueError where it is one of another model."""
        own = self.state()
        if own.keys() != state.keys():
            raise ValueError(f"the state is another model's: {sorted(own.keys() ^ state.keys())[:4]} on one side only")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def freeze(self) -> None:
        """Train this role no more."""
        for parameter in self.trainable().values():
            parameter.requires_grad_(False)
        if self.adapter is not None and not self.frozen:
            self.backbone.freeze(self.adapter)
        self.frozen = True

    def _head_weights(self) -> dict[str, nn.Parameter]:
        return {}


def context_length(config: Any, tokenizer: Any) -> int:
    """The longest sequence, in tokens, that the tokenizer and a model of this configuration are made for.

    LongRoPE takes other angles for a whole batch once one of its rows is longer than those of the first training: up to there alone does no
    row depend on the others, nor a key on when it was computed.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    scales = [each for each in (rope, *rope.values()) if isinstance(each, Mapping) and each.get("rope_type") == "longrope"]
    trained = [each["original_max_position_embeddings"] for each in scales]
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, sys.maxsize, *trained)
    return min(int(limit) for limit in limits if limit)


def micro_batch_tokens(device: str, layers: int, width: int) -> int:
    """Tokens in a micro-batch that a device does best; on a CPU fewer for larger models."""
    return GPU_TOKENS if device != "cpu" else max(CPU_TOKENS // 2, min(CPU_TOKENS, CPU_ACTIVATIONS // (layers * width)))


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    told = (getattr(model, "generation_config", None) or model.config).eos_token_id
    ids = told if isinstance(told, list) else [told]
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None}))
