"""A dry run counts what a run would compute, and finds its faults without loading or writing anything."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig

from heed.errors import UserError
from heed.feedback import FeedbackStore
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.pipeline.check import Shape, check
from heed.pipeline.dryrun import Estimator, Machine, Size, dry_run
from heed.pipeline.plan import plan
from heed.pipeline.recipe import Recipe, load_recipe
from heed.pipeline.runner import run
from tests.pipeline.conftest import write_rows

WriteRecipe = Callable[..., Path]
REAL_CHAT = Path(__file__).parents[2] / "recipes" / "real-chat.yaml"


def test_tokens_are_counted_as_by_hand(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe())
    planned = plan(recipe)
    estimator = Estimator(recipe, check(recipe, planned), Machine(1e9, 1e9, "cpu"))
    work = {each.stage.kind: estimator.work(each) for each in planned}
    # A prompt is 2 words, a demonstration "good" and those 2 words and EOS.
    assert work["sft"][0] == Size(32, 2, 4)
    assert work["sft"][1].trained == 2 * 32 * (2 + 4)
    # Sampled responses are taken to be as long as the demonstrations: 4 tokens, though 6 are allowed.
    assert work["sample"][0] == Size(24, 2, 4, 4)
    assert work["sample"][1].sampled == 24 * 4 * 4
    # 10 % of the prompts go to all five annotators, the others to one; 20 % are held out.
    assert work["judge"][0].items == 24
    assert work["reward_model"][0].items == pytest.approx(24 * 1.4)
    assert work["reward_model"][1].trained == pytest.approx(0.8 * 24 * 1.4 * 4 * (2 + 4))
    # 4 iterations of 8 rollouts, trained on by policy and critic, read by reference, critic and reward model.
    assert work["ppo"][1].trained == 2 * 32 * (2 + 4)
    assert work["ppo"][1].read == 3 * 32 * (2 + 4)
    assert work["ppo"][1].sampled == 32 * 4


def test_the_parameters_of_a_configuration_are_counted_without_weights(tiny_model: Path) -> None:
    shape = Shape(str(tiny_model))
    width, inner, layers, vocabulary = 32, 64, 2, 15
    attention = width * width * 2 + width * width // 2 * 2  # two key-value heads of four
    expected = layers * (attention + 3 * width * inner + 2 * width) + width + 2 * vocabulary * width
    assert shape.num_parameters == expected


def test_a_tokenizer_larger_than_the_model_is_a_fault(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "odd")
    LlamaConfig.from_pretrained(tiny_model).save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match="its tokenizer knows 16 tokens, the model only 15"):
        Shape(str(tmp_path / "odd"))


def test_the_real_chat_recipe_with_a_local_stand_in(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    LlamaConfig.from_pretrained(tiny_model, max_position_embeddings=2048).save_pretrained(tmp_path / "chat")
    said = [{"role": "user", "content": "red"}]
    answers = {name: [*said, {"role": "assistant", "content": text}] for name, text in (("chosen", "good"), ("rejected", "bad"))}
    write_rows(tmp_path / "pairs.jsonl", [answers])
    (tmp_path / "gold.py").write_text("def gold(prompt, response):\n    return 0.0\n")
    local = [f"data.{name}={tmp_path}/pairs.jsonl" for name in ("preferences", "prompts", "eval_prompts")]
    local += [f"model={tmp_path}/chat", f"gold={tmp_path}/gold.py:gold", f"output={tmp_path}/out"]
    console = Console(file=io.StringIO(), record=True, width=200)
    recipe = load_recipe(REAL_CHAT, local)
    assert recipe.lora is not None
    dry_run(recipe, console)
    told = console.export_text()
    assert all(name in told for name in ("01-reward_model", "02-ppo", "03-evaluate", "04-report", "Nothing is wrong"))
    assert not (tmp_path / "out").exists()

    (tmp_path / "chat" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        dry_run(recipe, console)


def test_openings_are_counted_by_the_stages_that_read_them(write_recipe: WriteRecipe) -> None:
    stages = """
- openings: {num_prompts: 20, num_eval_prompts: 5, min_tokens: 2, max_tokens: 4}
- sample: {max_new_tokens: 6}
- evaluate: {max_new_tokens: 6, best_of_n: 1}
"""
    recipe = load_recipe(write_recipe(data="{}", stages=stages))
    planned = plan(recipe)
    estimator = Estimator(recipe, check(recipe, planned), Machine(1e9, 1e9, "cpu"))
    sizes = [estimator.work(each)[0] for each in planned]
    assert sizes[1] == Size(20, 3, 6, 4)
    assert (sizes[2].items, sizes[2].prompt_tokens) == (5, 3)
    assert "02-sample" in told_by(recipe)


def told_by(recipe: Recipe) -> str:
    console = Console(file=io.StringIO(), record=True, width=300)
    dry_run(recipe, console)
    return console.export_text()


def test_a_store_that_is_absent_or_empty_is_a_fault_and_none_is_made(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    absent = tmp_path / "nowhere" / "people.db"
    recipe = load_recipe(write_recipe(data=f"{{preferences: {absent}}}", stages="[dpo]"))
    for look in (dry_run, partial(run, display=False)):
        with pytest.raises(UserError, match=r"people\.db: there is no such file; expected a feedback store"):
            look(recipe)
    assert not absent.parent.exists()
    FeedbackStore(tmp_path / "empty.db").close()
    with pytest.raises(UserError, match=r"empty\.db: it holds no judgement"):
        dry_run(load_recipe(write_recipe(data=f"{{preferences: {tmp_path}/empty.db}}", stages="[dpo]")))


def test_the_project_of_a_database_that_is_absent_is_a_fault_and_one_without_answers_is_none(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(stages=f"[judge: {{project: tone, database: {tmp_path}/team.db}}, dpo]"))
    with pytest.raises(UserError, match=r"stage judge: .*team\.db: there is no such file; expected a feedback database"):
        dry_run(recipe)
    assert not (tmp_path / "team.db").exists()
    with closing(Database(str(tmp_path / "team.db"))) as database:
        Projects(database).create("tone", ProjectSettings(), None)
    assert "Nothing is wrong" in told_by(recipe)


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder that it left"])
def test_a_tracker_that_is_not_installed_is_a_fault(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, found: ModuleSpec | None
) -> None:
    monkeypatch.setattr("heed.pipeline.check.find_spec", lambda name: found)
    with pytest.raises(UserError, match="tracker 'wandb' is not installed; pip install"):
        dry_run(load_recipe(write_recipe(trackers="[wandb]", stages="[sft]")))


def test_plain_prompts_to_a_chat_model_are_told(write_recipe: WriteRecipe, chat_model: Path) -> None:
    note = 'prompts are plain texts, which the model continues; to have it answer as a chat model, write them as [{"role": "user", '
    assert f"prompts.jsonl: {note}" in told_by(load_recipe(write_recipe(model=str(chat_model))))
    assert note not in told_by(load_recipe(write_recipe()))
