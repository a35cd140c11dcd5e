"""A prompt run once for all of its responses gives what running every row by itself gives, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heed.models import LoRAConfig, TokenBatch, attention, collate, load_policy, new_scalar_model
from heed.models.sharing import prompt_runs, room, share_prompts, shared_rows
from heed.records import TokenSequence

END, LARGE = 2, 10**9
PROMPTS = st.lists(st.integers(3, 9), min_size=0, max_size=5)
RESPONSES = st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=4), min_size=1, max_size=4)
GROUPS = st.lists(st.tuples(PROMPTS, RESPONSES), min_size=1, max_size=4)


def sequences_of(groups: list[tuple[list[int], list[list[int]]]]) -> list[TokenSequence]:
    return [
        TokenSequence((1, *prompt, *response), (False,) * (1 + len(prompt)) + (True,) * len(response))
        for prompt, responses in groups
        for response in responses
    ]


def ragged() -> TokenBatch:
    """Two prompts with several responses, one with one, and two rows of one prompt that do not stand together."""
    groups = [
        ([11, 12, 13, 14], [[5, 6, END], [7], [8, 9, 10, 5]]),
        ([21, 22], [[6, 6]]),
        ([31], [[5, END], [9, 8, 7]]),
        ([21, 22], [[4, END]]),
    ]
    return collate(sequences_of(groups), pad_id=END)


@given(groups=GROUPS)
def test_every_token_is_laid_out_once_and_found_again(groups: list[tuple[list[int], list[list[int]]]]) -> None:
    sequences = sequences_of(groups)
    batch = collate(sequences, pad_id=END)
    shared = share_prompts(batch, LARGE)
    rows = [row for start, run in prompt_runs(sequences) for row in shared_rows(start, [len(sequences[i].ids) for i in run], LARGE)]
    widths = [width for _, width in rows]
    if shared is None:
        assert len(rows) * max(widths) >= batch.ids.numel()
        return
    assert shared.ids.shape == (len(rows), max(widths))
    real = batch.attention_mask
    assert torch.equal(shared.unpack(shared.ids[..., None])[..., 0][real], batch.ids[real])
    columns = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    assert torch.equal(shared.unpack(shared.positions[..., None])[..., 0][real], columns[real])
    assert len(set(shared.place[real].tolist())) == sum(widths)


@given(groups=GROUPS)
def test_a_token_sees_the_tokens_before_it_in_its_own_sequence_and_nothing_else(groups: list[tuple[list[int], list[list[int]]]]) -> None:
    batch = collate(sequences_of(groups), pad_id=END)
    shared = share_prompts(batch, LARGE)
    if shared is None:
        return
    rows, width = shared.ids.shape
    for b, length in enumerate(batch.attention_mask.sum(1).tolist()):
        places = shared.place[b, :length].tolist()
        for t, place in enumerate(places):
            seen = shared.visible[place // width, 0, place % width].nonzero()[:, 0] + place // width * width
            assert sorted(seen.tolist()) == sorted(places[: t + 1])
    assert shared.visible.any(-1).all(), f"a row of attention is empty in {rows} rows"
    assert torch.equal(shared.mask(torch.float32) == 0, shared.visible)


def naive_hidden(body: Any, batch: TokenBatch) -> Tensor:
    """Each row alone and unpadded; zeros on padding."""
    rows = []
    for ids, length in zip(batch.ids, batch.attention_mask.sum(1).tolist(), strict=True):
        hidden = body(ids[None, :length], use_cache=False).last_hidden_state[0]
        rows.append(torch.cat([hidden, hidden.new_zeros(len(ids) - length, hidden.shape[1])]))
    return torch.stack(rows)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("block", [attention.BLOCK, 5], ids=["whole", "blocks"])
def test_hidden_states_and_gradients_are_those_of_rows_by_themselves(
    folder: Path, lora: LoRAConfig | None, checkpointing: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    policy = load_policy(folder, device="cpu", lora=lora, gradient_checkpointing=checkpointing)
    assert policy.backbone.shares_prompts
    batch = ragged()
    assert share_prompts(batch, LARGE) is not None
    with torch.no_grad():
        for i, parameter in enumerate(policy.trainable().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    weights = torch.randn(*batch.ids.shape, 32, generator=torch.Generator().manual_seed(0)) * batch.attention_mask[..., None]

    def gradients(hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss = (hidden * weights).sum()
        found = torch.autograd.grad(loss, list(policy.trainable().values()), allow_unused=True)
        return loss.detach(), [g for g in found if g is not None]

    loss, fast = gradients(policy.hidden(batch))
    expected, slow = gradients(naive_hidden(policy.backbone.body, batch))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert len(fast) == len(slow) > 0
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-6)


def test_log_probabilities_values_and_scores_do_not_depend_on_sharing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(folder, device="cpu")
    value = new_scalar_model(policy, "value", seed=1)
    batch = ragged()

    def measured() -> list[Tensor]:
        logprobs, entropy = policy.logprobs(batch, with_entropy=True)
        assert entropy is not None
        return [x.detach() for x in (logprobs, entropy, value.values(batch) * batch.response_mask, value.scores(batch))]

    fast = measured()
    for backbone in (policy.backbone, value.backbone):
        monkeypatch.setitem(backbone.__dict__, "shares_prompts", False)
    for mine, theirs in zip(fast, measured(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_sharing_under_bf16_autocast_is_as_near_as_bf16_is(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    exact = policy.hidden(ragged()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        near = policy.hidden(ragged()).detach().float()
    real = ragged().attention_mask
    torch.testing.assert_close(near[real], exact[real], rtol=0.1, atol=0.1)


def test_windows_of_attention_keep_rows_apart(make_folder: Callable[..., Path]) -> None:
    windowed = load_policy(make_folder("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0), device="cpu")
    assert not windowed.backbone.shares_prompts
    batch = ragged()
    real = batch.attention_mask
    torch.testing.assert_close(windowed.hidden(batch)[real], naive_hidden(windowed.backbone.body, batch)[real], rtol=1e-4, atol=1e-5)


def test_a_body_that_does_not_obey_masks_keeps_rows_apart(make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(make_folder("llama"), device="cpu")
    body = policy.backbone.body
    forward = body.forward

    def deaf(input_ids: Tensor, position_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any) -> Any:
        return forward(input_ids=input_ids, position_ids=position_ids, **options)

    monkeypatch.setattr(body, "forward", deaf)
    assert not policy.backbone.shares_prompts


@given(start=st.integers(1, 300), length=st.integers(1, 60), count=st.integers(1, 80), hidden_size=st.sampled_from([64, 256, 4096]))
def test_as_many_responses_share_a_row_as_make_the_arithmetic_least(start: int, length: int, count: int, hidden_size: int) -> None:
    def cost(responses: int) -> float:
        """Operations of a layer per response token, as the docstring of `room` counts them."""
        width = start + responses * length
        return width * (24 * hidden_size**2 + 4 * hidden_size * width) / (responses * length)

    best = min(range(1, 2000), key=cost) if length > room(start, hidden_size) / 1000 else None
    sizes = [len(members) for members, _ in shared_rows(start, [start + length] * count, hidden_size)]
    assert sum(sizes) == count
    if best is not None:
        assert sizes[0] == count or abs(sizes[0] - best) <= 1 or cost(sizes[0]) <= 1.02 * cost(best)
    assert sizes == sorted(sizes, reverse=True)
