"""Attention in blocks of queries is attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from heed.models import LoRAConfig, attention, collate, load_policy
from heed.models.attention import IN_BLOCKS, attending, blocked_attention, fastest_attention
from heed.records import TokenSequence


def left_looking_mask(size: int, width: int, generator: torch.Generator) -> Tensor:
    """Every token sees itself, none a later one, and of those before it half by chance."""
    visible = (torch.rand(size, 1, width, width, generator=generator) < 0.5).tril() | torch.eye(width, dtype=torch.bool)
    return torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)


def naive_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Adjacent heads share keys."""
    group = query.shape[1] // key.shape[1]
    rows = []
    for b in range(len(query)):
        heads = [
            (query[b, h] @ key[b, h // group].T * scaling + mask[b, 0]).softmax(-1) @ value[b, h // group] for h in range(query.shape[1])
        ]
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of every product of attention."""
    found, true = [], F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
        found.append((query.shape[2], key.shape[2]))
        return true(query, key, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return found


@given(width=st.integers(1, 40), block=st.integers(1, 20), group=st.sampled_from([1, 3]), seed=st.integers(0, 9))
def test_outputs_and_gradients_are_those_of_plain_attention(width: int, block: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = inputs = [torch.randn(2, heads, width, 8, generator=generator, requires_grad=True) for heads in (2 * group, 2, 2)]
    mask, weights = left_looking_mask(2, width, generator), torch.randn(2, width, 2 * group, 8, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        found, none = blocked_attention(None, query, key, value, mask, scaling=0.3)
    assert none is None
    expected = naive_attention(query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_no_block_reads_keys_after_its_last_query(widths: list[tuple[int, int]]) -> None:
    query = torch.randn(1, 1, 300, 8)
    blocked_attention(None, query, query, query, left_looking_mask(1, 300, torch.Generator().manual_seed(0)))
    assert sorted(widths) == [(150, 150), (150, 300)]


def test_long_rows_that_share_a_prompt_are_run_in_blocks_and_short_ones_whole(
    make_folder: Callable[..., Path], widths: list[tuple[int, int]]
) -> None:
    policy = load_policy(make_folder("llama", max_position_embeddings=512), device="cpu")
    assert policy.backbone.shares_prompts

    def attended(prompt: int) -> set[tuple[int, int]]:
        sequences = [TokenSequence((1,) * prompt + (5, 6, last), (False,) * prompt + (True,) * 3) for last in (7, 8)]
        widths.clear()
        policy.hidden(collate(sequences, pad_id=2))
        return set(widths)

    assert attended(200) == {(206, 206)}
    assert attended(260) == {(133, 133), (133, 266)}
    with attending(policy.hf.config, "eager"):
        assert attended(260) == set(), "who chose another attention has it"


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_a_checkpointed_layer_is_recomputed_with_the_attention_that_it_ran_with(
    make_folder: Callable[..., Path], lora: LoRAConfig | None, widths: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 4)
    policy = load_policy(make_folder("llama"), device="cpu", lora=lora, gradient_checkpointing=True)
    sequences = [TokenSequence((1, 5, 6, 7, 8, last), (False,) * 4 + (True,) * 2) for last in (7, 8)]
    assert policy.backbone.shares_prompts
    widths.clear()
    hidden = policy.hidden(collate(sequences, pad_id=2))
    forward = list(widths)
    assert set(forward) == {(4, 4), (4, 8)}
    widths.clear()
    hidden.sum().backward()
    assert sorted(widths) == sorted(forward)
    assert policy.hf.config._attn_implementation == "sdpa"


def test_a_mask_on_another_device_is_left_to_its_kernels(make_folder: Callable[..., Path]) -> None:
    body = load_policy(make_folder("llama"), device="cpu").backbone.body
    mask = torch.empty(1, 1, 1024, 1024)
    assert fastest_attention(body, mask) == IN_BLOCKS
    assert fastest_attention(body, mask.to("meta")) == "sdpa"
