from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from heed.core.head import Head


def head(num_tokens: int, vocabulary: int, width: int = 2) -> Head:
    return Head(torch.empty(num_tokens, width), torch.empty(vocabulary, width), None, 1.0)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 90))
def test_chunks_are_as_few_as_may_be_and_hold_every_token_once(num_tokens: int, vocabulary: int, chunk_elements: int) -> None:
    most = max(1, chunk_elements // vocabulary)
    chunks = [list(range(num_tokens)[rows]) for rows in head(num_tokens, vocabulary).chunks(chunk_elements)]
    assert [token for chunk in chunks for token in chunk] == list(range(num_tokens))
    assert all(1 <= len(chunk) <= most for chunk in chunks)
    assert len(chunks) == -(-num_tokens // most)


def test_chunks_are_about_as_long_as_each_other() -> None:
    assert [rows.stop - rows.start for rows in head(512, 50).chunks(50 * 192)] == [171, 171, 171]
