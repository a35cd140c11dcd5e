"""A prompt is on one side of a split only."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heed.data.split import split_by_prompt
from heed.errors import UserError
from heed.records import Message, PreferencePair, Prompt


@given(st.lists(st.integers(0, 30), min_size=2), st.floats(0.01, 0.99), st.integers(0, 5))
def test_no_prompt_is_on_both_sides(numbers: list[int], fraction: float, seed: int) -> None:
    pairs = [PreferencePair(Prompt(str(n)), f"a{i}", f"b{i}") for i, n in enumerate(numbers)]
    distinct = len(set(numbers))
    if distinct < 2:
        with pytest.raises(UserError, match="1 distinct prompts cannot be split"):
            split_by_prompt(pairs, fraction, seed)
        return
    train, held_out = split_by_prompt(pairs, fraction, seed)
    sides = [{pair.prompt.id for pair in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sorted(p.chosen for p in [*train, *held_out]) == sorted(p.chosen for p in pairs)
    assert all(sides)
    assert abs(len(sides[1]) - fraction * distinct) <= 1
    shuffled = Random(seed).sample(pairs, len(pairs))
    assert {pair.prompt.id for pair in split_by_prompt(shuffled, fraction, seed)[1]} == sides[1]


def test_seeds_differ_and_a_share_of_none_holds_none_out() -> None:
    prompts = [Prompt((Message("user", str(i)),)) for i in range(100)]
    assert split_by_prompt(prompts, 0.2, 0)[1] != split_by_prompt(prompts, 0.2, 1)[1]
    assert split_by_prompt(prompts, 0.2, 0) == split_by_prompt(prompts, 0.2, 0)
    assert split_by_prompt(prompts, 0.0, 0) == (prompts, [])
    with pytest.raises(UserError, match="held_out_fraction is 1"):
        split_by_prompt(prompts, 1, 0)
    more = [*prompts, Prompt("new")]
    kept = {p.id for p in split_by_prompt(prompts, 0.2, 0)[1]}
    assert len(kept - {p.id for p in split_by_prompt(more, 0.2, 0)[1]}) <= 1
