"""Whether a model decodes with the caches here as it reads whole texts, tried before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from heed.models.attention import attending, is_replaceable
from heed.models.backbone import PROBE, Backbone, is_same
from heed.models.language_model import LanguageModel
from heed.rollout.cache import Buffers, SlotCache
from heed.rollout.shared import SharedCache

_OF_THE_DEVICE = torch.OutOfMemoryError, torch.AcceleratorError
"""What says nothing of the model."""


def _once(trial: Callable[[LanguageModel], bool]) -> Callable[[LanguageModel], bool]:
    """A trial whose answer is kept for as long as the body that it was made with."""
    answers: WeakKeyDictionary[Backbone, bool] = WeakKeyDictionary()

    def answer(policy: LanguageModel) -> bool:
        if policy.backbone not in answers:
            answers[policy.backbone] = trial(policy)
        return answers[policy.backbone]

    return answer


@_once
def takes_cache(policy: LanguageModel) -> bool:
    """Whether the model decodes at all with a cache of ours and a mask for each row."""
    return _decoded(policy, SlotCache(policy, Buffers([(2, 5)], policy.device))) is not None


def replaces_attention(policy: LanguageModel) -> bool:
    """Whether the model lets its attention be replaced now, and ours comes out as its own did."""
    return is_replaceable(policy.hf.base_model) and _comes_out_alike(policy)


@_once
def _comes_out_alike(policy: LanguageModel) -> bool:
    """Some models change keys and values after the cache, or keep what they are told from their attention."""
    rows, prompt = Buffers([(2, 2)], policy.device), Buffers([(1, 3)], policy.device)
    caches: list[SlotCache] = [SharedCache(policy, rows, prompt)]
    if policy.device.type == "cpu":
        caches.append(SlotCache(policy, Buffers([(2, 5)], policy.device), in_parts=True))
    expected = _read(policy)
    return all((found := _decoded(policy, cache)) is not None and is_same(found, expected) for cache in caches)


def _decoded(policy: LanguageModel, cache: SlotCache) -> Tensor | None:
    """What `_decode` finds; None for a model that takes its cache, masks or attention otherwise than others do."""
    try:
        return _decode(policy, cache)
    except _OF_THE_DEVICE:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None


@torch.inference_mode()
def _decode(policy: LanguageModel, cache: SlotCache) -> Tensor:
    """Last hidden states of two short responses to one prompt, which is read once and they token by token: `[2, 2, D]`."""
    body, ids = policy.hf.base_model, _probe(policy)
    prompt, responses = ids[:1, :3], ids[:, 3:]
    length = torch.tensor([3], device=policy.device)
    cache.read(1, 0, 3)
    body(
        prompt,
        attention_mask=torch.ones_like(prompt),
        position_ids=torch.arange(3, device=policy.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    cache.enter(torch.zeros(2, dtype=torch.long, device=policy.device), length, 3)
    states = []
    for step in (1, 2):
        position = (length + step - 1).expand(2)
        cache.advance()
        mask, options = cache.decode(position, torch.full_like(position, step)), cache.options()
        with attending(body.config, cache.attention) if options else nullcontext():
            output = body(
                responses[:, step - 1 : step],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
                **options,
            )
        states.append(output.last_hidden_state)
    return torch.cat(states, dim=1)


@torch.inference_mode()
def _read(policy: LanguageModel) -> Tensor:
    return policy.hf.base_model(_probe(policy), use_cache=False).last_hidden_state[:, 3:]


def _probe(policy: LanguageModel) -> Tensor:
    """Two short responses to one prompt, in words that the model knows."""
    return PROBE.ids.to(policy.device) % len(policy.head()[0])
