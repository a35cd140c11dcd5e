"""A tiny random model, a little data and a recipe over them, small enough to run whole in a test."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from shutil import copytree

import pytest

from tests.tiny import WORDS, save_tiny_llama

GOLD = """
def gold(prompt, response):
    words = response.split()
    return {"utility": float(words.count("good") - words.count("bad")), "helpful": float("good" in words)}
"""
STAGES = """
- sft: {lr: 1e-2, batch_size: 16, epochs: 2}
- sample: {max_new_tokens: 6}
- judge:
- reward_model: {lr: 3e-3}
- ppo: {iterations: 4, prompts_per_iteration: 8, batch_size: 8, epochs: 1, max_new_tokens: 6, lr: 3e-3, checkpoint_every: 2}
- evaluate: {best_of_n: 2, max_new_tokens: 6}
- report:
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), initializer_range=0.02)


@pytest.fixture
def chat_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template."""
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    (copytree(tiny_model, tmp_path / "chat") / "chat_template.jinja").write_text(template)
    return tmp_path / "chat"


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Write data and a recipe over the tiny model; keywords replace top-level keys by YAML text."""
    texts = [f"{a} {b}" for a in WORDS for b in WORDS]
    random.Random(0).shuffle(texts)
    write_rows(tmp_path / "demonstrations.jsonl", [{"prompt": p, "response": f"good {p}"} for p in texts[:32]])
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in texts[:24]])
    write_rows(tmp_path / "eval_prompts.jsonl", [{"prompt": p} for p in texts[40:50]])
    (tmp_path / "gold.py").write_text(GOLD)
    data = ", ".join(f"{name}: {tmp_path}/{name}.jsonl" for name in ("demonstrations", "prompts", "eval_prompts"))

    def write(**changes: str) -> Path:
        values = {"name": "tiny", "model": str(tiny_model), "output": f"{tmp_path}/out", "data": f"{{{data}}}"}
        values |= {"gold": f"{tmp_path}/gold.py:gold", "max_length": "32", "stages": STAGES}
        path = tmp_path / "recipe.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in (values | changes).items()))
        return path

    return write
