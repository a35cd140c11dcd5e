"""What `evaluate` says of policies whose true numbers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from heed.pipeline.recipe import load_recipe
from heed.pipeline.runner import run
from tests.pipeline.conftest import write_rows

SCORES = """
from random import Random

def score(prompt, response):
    return Random(f"{prompt}: {response}").random()

def gold(prompt, response):
    return {"utility": score(prompt, response)}
"""
WORDS = ("alpha", "beta", "gamma", "delta", "red", "green", "blue", "one")
LATER = 4


@pytest.fixture
def measured(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """An evaluation of the base model by scores that are as good as drawn for each response anew, and its folder."""
    (tmp_path / "scores.py").write_text(SCORES)
    write_rows(tmp_path / "many.jsonl", [{"prompt": " ".join(words)} for words in product(WORDS, repeat=3)])

    def measure(n: int) -> tuple[dict[str, Any], Path]:
        settings = f"{{best_of_n: {n}, responses_per_prompt: {LATER}, max_new_tokens: 12}}"
        output = tmp_path / f"best-of-{n}"
        recipe = write_recipe(
            stages=f"[evaluate: {settings}]",
            data=f"{{eval_prompts: {tmp_path}/many.jsonl}}",
            gold=f"{tmp_path}/scores.py:gold",
            reward=f"{tmp_path}/scores.py:score",
            output=str(output),
        )
        return run(load_recipe(recipe), display=False), output / "stages" / "01-evaluate"

    return measure


@pytest.mark.parametrize("n", [2, 4])
def test_the_best_of_n_is_compared_with_responses_it_was_not_chosen_from(measured: Callable[..., Any], n: int) -> None:
    summary, folder = measured(n)
    assert summary["win_rate"]["best_of_n_vs_base"]["mean"] == pytest.approx(n / (n + 1), abs=0.04)
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    base, best, fresh = ([r for r in rows if r["policy"] == name] for name in ("base", "best_of_n", "base_fresh"))
    first = [[row["proxy"] for row in base[i : i + n]] for i in range(0, len(base), LATER)]
    assert [row["proxy"] for row in best] == [max(scores) for scores in first]
    assert [row["prompt_id"] for row in fresh] == [row["prompt_id"] for row in base]
    again = sum(one["response"] == other["response"] for one, other in zip(fresh, base, strict=True))
    assert again < len(base) / 10, "the same draws a second time"
    assert len((folder / "best_of_n.jsonl").read_text().splitlines()) == n


def test_later_responses_leave_the_other_numbers_alone(measured: Callable[..., Any]) -> None:
    plain, with_best = (measured(n)[0]["policies"] for n in (1, 2))
    assert list(plain) == ["base"]
    assert list(with_best) == ["base", "best_of_n"]
    assert with_best["base"] == plain["base"]
    assert with_best["base"]["num_responses"] == len(WORDS) ** 3 * LATER
    assert with_best["best_of_n"]["num_responses"] == len(WORDS) ** 3
