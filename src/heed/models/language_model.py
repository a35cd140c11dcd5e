"""The policy and its frozen reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from heed.core.kl import sequence_exact_kl
from heed.core.logprobs import sequence_logprobs
from heed.models.batch import TokenBatch
from heed.models.role import Role
from heed.models.saving import save_role


class LanguageModel(Role):
    """A causal language model: the policy, or the reference that it is held near."""

    @property
    def hf(self) -> Any:
        """The transformers model with this role's adapter active, in evaluation mode: for generation with a cache."""
        self.backbone.activate(self.adapter, training=False)
        return self.model

    def head(self) -> tuple[Tensor, Tensor | None]:
        """The language-model head: weight `[V, D]` and bias `[V]` or None."""
        head = self.model.get_output_embeddings()
        return head.weight, head.bias

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """log pi(token | tokens before it) of each response token and, on request, the entropy it was drawn at: `[B, T]` nats each.

        Aligned with the target token; zeros off the response.
        """
        return self.logprobs_of(self.hidden(batch, batch.before_response), batch, temperature, with_entropy)

    def logprobs_of(
        self, hidden: Tensor, batch: TokenBatch, temperature: float = 1.0, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`logprobs`, where the hidden states `[B, T, D]` are there."""
        weight, bias = self.head()
        return sequence_logprobs(
            hidden, weight, batch.ids, batch.response_mask, bias=bias, temperature=temperature, with_entropy=with_entropy
        )

    def exact_kl_of(
        self, hidden: Tensor, reference: LanguageModel, ref_hidden: Tensor, batch: TokenBatch, temperature: float = 1.0
    ) -> Tensor:
        """KL(self || reference) over the whole vocabulary at each response token, `[B, T]` nats, from the hidden states of both.

        Aligned with the target token; zeros off the response. Gradients reach `hidden` and the head.
        """
        (weight, bias), (ref_weight, ref_bias) = self.head(), reference.head()
        return sequence_exact_kl(
            hidden, weight, ref_hidden, ref_weight, batch.response_mask, bias=bias, ref_bias=ref_bias, temperature=temperature
        )

    def reference(self) -> LanguageModel:
        """The policy as it is now, frozen.

        With LoRA it shares the backbone: the base with adapters off, or, where the adapter has already learned, a frozen
        copy of the adapter. Without LoRA it is a frozen copy of the whole model.
        """
        if self.backbone.lora is None:
            (backbone, model), adapter = copy.deepcopy((self.backbone, self.model)), None
        else:
            model, backbone, adapter = self.model, self.backbone, None
            if self.adapter is not None and backbone.has_learned(self.adapter):
                adapter = backbone.copy(self.adapter, "reference")
        reference = LanguageModel(model, self.tokenizer, backbone, adapter=adapter, source=self.source)
        reference.version = self.version
        reference.freeze()
        return reference

    def save(self, folder: str | Path) -> None:
        """Write a model folder that `AutoModelForCausalLM` loads, with the tokenizer and every end-of-sequence id.

        With LoRA the adapter is merged there, in a copy, and also stands apart in `adapter/`, for `peft` to put on the base.
        """
        save_role(self, Path(folder))
