"""Models that give a number: reward models at the end of a response, value models before each of its tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from heed.core.logprobs import before_targets
from heed.errors import UserError
from heed.models.backbone import Backbone
from heed.models.batch import TokenBatch
from heed.models.language_model import LanguageModel
from heed.models.role import Role
from heed.models.saving import save_role


class ScalarModel(Role):
    """A body with one output: a decoder read at single tokens through a linear head, or an encoder with its own pooling."""

    offset: float = 0.0
    """What the reference responses score before the shift; subtracted, so that they average 0."""

    @property
    def is_encoder(self) -> bool:
        return not is_decoder(self.model)

    @property
    def shares_prompts(self) -> bool:
        return not self.is_encoder and super().shares_prompts

    @property
    def head(self) -> nn.Linear:
        """The linear head of a decoder, `D -> 1`, without bias."""
        return self.model.score

    def scores(self, batch: TokenBatch) -> Tensor:
        """Each response's score, `[B]`: read at its last response token, or pooled as the encoder does."""
        if self.is_encoder:
            return self._encoded(batch)
        last = F.one_hot(batch.last_response_index, batch.ids.shape[1]).bool()
        return self._read(self.hidden(batch, last)[last])

    def values(self, batch: TokenBatch) -> Tensor:
        """The value before each response token, `[B, T]`, read where the token is predicted; ValueError for an encoder.

        Those before other tokens mean nothing.
        """
        if self.is_encoder:
            raise ValueError("an encoder sees the whole response at once and has no value before a token")
        return self.values_of(self.hidden(batch, batch.before_response))

    def values_of(self, hidden: Tensor) -> Tensor:
        """The value before each token from the hidden states of a batch that were computed already: `[B, T, D]` -> `[B, T]`."""
        return before_targets(self._read(hidden).unsqueeze(-1)).squeeze(-1)

    def save(self, folder: str | Path) -> None:
        """Write a model folder that `AutoModelForSequenceClassification` loads; its logit is the score before `offset`.

        Other tools read a decoder's score at the last token that is not padding, so the tokenizer saved with it pads with a
        token that ends no response. With LoRA the adapter is merged there, in a copy, and also stands apart in `adapter/`.
        """
        save_role(self, Path(folder), offset=self.offset)

    def _read(self, hidden: Tensor) -> Tensor:
        # In float32 also under autocast: bfloat16 has 8 bits of mantissa, too few to tell responses apart.
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight.float()).squeeze(-1) - self.offset

    def _encoded(self, batch: TokenBatch) -> Tensor:
        training = torch.is_grad_enabled() and not self.frozen
        self.backbone.activate(None, training=training)
        with torch.set_grad_enabled(training):
            logits = self.model(input_ids=batch.ids, attention_mask=batch.attention_mask.long()).logits
        return logits.squeeze(-1).float() - self.offset

    def _head_weights(self) -> dict[str, nn.Parameter]:
        return {f"score.{name}": parameter for name, parameter in self.head.named_parameters()}


class ValueHead(ScalarModel):
    """A critic that is a head on the policy's own trunk: one forward and one backward pass serve both.

    It owns the head alone; what its loss asks of the trunk is the policy's to learn.
    """

    def weights(self) -> dict[str, nn.Parameter]:
        return self._head_weights()

    def freeze(self) -> None:
        self.head.requires_grad_(False)
        self.frozen = True


def is_decoder(model: Any) -> bool:
    """Whether a classification model reads one token through a plain linear head, as transformers' decoders do."""
    return isinstance(getattr(model, "score", None), nn.Linear)


def new_scalar_model(policy: LanguageModel, role: Literal["reward", "value"], seed: int) -> ScalarModel:
    """A reward or value model that starts from the policy as it is now, with a fresh head of std 1 / sqrt(D + 1).

    With LoRA it is an adapter on the policy's backbone, otherwise it has its own copy of the body.
    """
    backbone, adapter = policy.backbone, None
    if backbone.lora is None:
        backbone = copy.deepcopy(backbone)
    elif policy.adapter is not None and backbone.has_learned(policy.adapter):
        adapter = backbone.copy(policy.adapter, role)
    else:
        adapter = backbone.add(role, seed)
    width = policy.head()[0].shape[1]
    drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) * (width + 1) ** -0.5
    return on_backbone(policy, backbone, adapter, drawn)


def value_head(policy: LanguageModel) -> ValueHead:
    """A critic on the policy's trunk that begins by foreseeing nothing: its head is 0."""
    zeros = torch.zeros(1, policy.head()[0].shape[1])
    model = on_backbone(policy, policy.backbone, policy.adapter, zeros).model
    return ValueHead(model, policy.tokenizer, policy.backbone, adapter=policy.adapter, source=policy.source)


def critic_from(reward_model: ScalarModel, policy: LanguageModel) -> ScalarModel:
    """A value model for the policy's tokens that starts as the reward model, weights and head.

    Where the policy is whole, so is the critic: a copy. Where it has an adapter, the critic is an adapter on the reward
    model's backbone, be that the policy's own or another: a copy of the reward adapter or, over a whole reward model (frozen
    from then on), a new one. UserError for an encoder, or where the two tokenizers differ.
    """
    if reward_model.is_encoder:
        raise UserError("the reward model is an encoder", expected="a decoder, to start a critic from", fix="start it from the policy")
    if not policy.tokenizer.get_vocab().items() <= reward_model.tokenizer.get_vocab().items():
        raise UserError("the reward model's tokenizer is not the policy's", expected="one for both", fix="start the critic from the policy")
    backbone, adapter = reward_model.backbone, None
    lora = policy.backbone.lora
    if reward_model.adapter is not None:
        adapter = backbone.copy(reward_model.adapter, "value")
    elif lora is None:
        backbone = copy.deepcopy(backbone)
    else:
        reward_model.freeze()
        backbone.lora = lora
        adapter = backbone.add("value", lora.seed)
    if policy.backbone.body.is_activation_checkpointing and not backbone.body.is_activation_checkpointing:
        backbone.checkpoint_activations()
    critic = on_backbone(reward_model, backbone, adapter, reward_model.head.weight)
    critic.offset = reward_model.offset
    return critic


def on_backbone(like: Role, backbone: Backbone, adapter: str | None, head_weight: Tensor) -> ScalarModel:
    """A scalar model made of a body and a head `[1, D]`; UserError where transformers has no such model for the body."""
    config = copy.deepcopy(like.model.config)
    config.num_labels = 1
    config.eos_token_id = list(like.eos_ids)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UserError(f"{config.model_type} has no sequence-classification model", fix="choose another kind of model") from error
    if not is_decoder(model):
        raise UserError(f"{type(model).__name__} has no plain head", expected="one named `score`", fix="choose another kind of model")
    setattr(model, model.base_model_prefix, backbone.body)
    model.score = nn.Linear(head_weight.shape[1], 1, bias=False, device=like.device)
    with torch.no_grad():
        model.score.weight.copy_(head_weight)
    if adapter is None:
        model.requires_grad_(True)
    return ScalarModel(model, like.tokenizer, backbone, adapter=adapter, source=like.source)
