from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heed.models import TokenBatch, collate
from heed.models.batch import micro_batches
from heed.records import TokenSequence

tokens = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6)


@given(rows=st.lists(tokens, min_size=1, max_size=4), pad_id=st.integers(0, 5))
def test_collate_keeps_every_token_whatever_the_padding_id(rows: list[list[tuple[int, bool]]], pad_id: int) -> None:
    sequences = [TokenSequence(tuple(i for i, _ in row), tuple(m for _, m in row)) for row in rows]
    batch = collate(sequences, pad_id)
    for i, sequence in enumerate(sequences):
        length = len(sequence.ids)
        assert batch.ids[i, :length].tolist() == list(sequence.ids)
        assert batch.response_mask[i, :length].tolist() == list(sequence.response_mask)
        assert batch.attention_mask[i].sum() == length
        assert batch.attention_mask[i, :length].all()
        assert not batch.response_mask[i, length:].any()
        assert (batch.ids[i, length:] == pad_id).all()
    assert batch.num_tokens == sum(m for row in rows for _, m in row)


def test_dtypes_are_those_that_models_and_masks_want() -> None:
    batch = collate([TokenSequence((1, 2), (False, True))], 0)
    assert (batch.ids.dtype, batch.attention_mask.dtype, batch.response_mask.dtype) == (torch.long, torch.bool, torch.bool)


def test_last_response_index_skips_holes_padding_and_what_follows_the_response() -> None:
    batch = collate(
        [
            TokenSequence((4, 4, 4, 4, 4), (False, True, False, True, False)),
            TokenSequence((4, 4), (False, True)),
        ],
        pad_id=4,
    )
    assert batch.last_response_index.tolist() == [3, 1]


def test_a_row_without_response_has_no_last_token() -> None:
    batch = collate([TokenSequence((4, 4), (False, True)), TokenSequence((4,), (False,))], pad_id=0)
    with pytest.raises(ValueError, match="no response token"):
        _ = batch.last_response_index


def test_to_moves_all_three() -> None:
    batch = collate([TokenSequence((1,), (True,))], 0).to("meta")
    assert isinstance(batch, TokenBatch)
    assert {batch.ids.device.type, batch.attention_mask.device.type, batch.response_mask.device.type} == {"meta"}


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(1, 300),
    rows=st.integers(1, 5),
)
def test_micro_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int, rows: int) -> None:
    groups = micro_batches(lengths, budget, [rows] * len(lengths))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or rows * len(group) * max(lengths[i] for i in group) <= budget


@given(rows=st.lists(tokens, min_size=1, max_size=4))
def test_a_batch_gives_back_the_sequences_that_it_was_made_of(rows: list[list[tuple[int, bool]]]) -> None:
    sequences = [TokenSequence(tuple(i for i, _ in row), tuple(m for _, m in row)) for row in rows]
    assert collate(sequences, 0).sequences() == sequences
    for sequence in sequences:
        assert not any(sequence.response_mask[: sequence.prompt_length])
