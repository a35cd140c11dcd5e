"""Whether a recipe can be run at all, found out in seconds: no weights are loaded and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from heed.errors import UserError
from heed.models.backbone import lora_targets
from heed.models.loading import is_meant_as_folder
from heed.models.role import context_length
from heed.pipeline import sources
from heed.pipeline.context import read_json
from heed.pipeline.plan import PlannedStage, Source
from heed.pipeline.recipe import Recipe
from heed.pipeline.sources import Record
from heed.records import Demonstration, PreferencePair, Prompt, Ranking
from heed.rewards.python import load_reward
from heed.training.loop import TrainConfig

SAMPLE_ROWS = 256
"""Rows of a data set that are rendered for the model."""


class Shape:
    """A model as its configuration and tokenizer describe it; weights are neither needed nor loaded."""

    def __init__(self, spec: str) -> None:
        path = sources.model_path(spec)
        if not Path(path).expanduser().is_dir() and is_meant_as_folder(path):
            raise UserError("no such folder", file=path, expected="a model folder or a Hugging Face id")
        try:
            self.config = AutoConfig.from_pretrained(path)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"model {spec}: {reason}", expected="a model folder or a Hugging Face id that can be reached") from None
        text = self.config.get_text_config()
        self.width, self.layers, self.vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
        self.context_length = context_length(text, self.tokenizer)
        if len(self.tokenizer) > self.vocabulary:
            found = f"its tokenizer knows {len(self.tokenizer)} tokens, the model only {self.vocabulary}"
            raise UserError(f"model {spec}: {found}", fix="save the tokenizer that belongs to the model beside it")
        try:
            told = GenerationConfig.from_pretrained(path).eos_token_id
        except OSError:
            told = text.eos_token_id
        ids = (*(told if isinstance(told, list) else [told]), self.tokenizer.eos_token_id)
        self.eos_ids = tuple(sorted({i for i in ids if i is not None}))

    @cached_property
    def empty_model(self) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.empty_model.parameters())


@dataclass(frozen=True, slots=True)
class Checked:
    """What was opened on the way."""

    shape: Shape
    """Of the recipe's model."""
    data: Mapping[tuple[str, str], Sequence[Record]]
    """The records of every data set from outside the run, by what it is read as and its name in the recipe."""
    notes: Sequence[str]
    """What is no fault, and should be known."""


def check(recipe: Recipe, planned: Sequence[PlannedStage]) -> Checked:
    """Open everything that a run takes from outside; raises `UserError` at the first fault.

    Looked at are the output folder, models, data files and their formats, functions, chat templates where there are
    conversations, vocabularies, and whether prompts and responses fit the model's context.
    """
    check_folder(recipe)
    shape = Shape(recipe.model)
    if recipe.lora is not None:
        lora_targets(shape.empty_model.base_model, recipe.lora.target)
    check_trackers(recipe)
    data: dict[tuple[str, str], Sequence[Record]] = {}
    for each in planned:
        check_room(each, shape, recipe)
        if each.stage.kind == "judge":
            check_project(each)
        if isinstance(each.stage.config, TrainConfig) and recipe.lora is None and recipe.dtype != "float32":
            raise each.stage.error(
                f"it trains the whole model, held in {recipe.dtype}, which is too coarse for an optimiser's steps",
                fix="set dtype: float32 (precision: bf16 is for products), or lora",
            )
        for name, source in each.inputs.items():
            kind = name.partition(".")[0]
            if not isinstance(source, Source) or (kind, source.spec) in data:
                continue
            match kind:
                case "policy" | "reference":
                    Shape(source.spec)
                case "reward" | "gold" if source.spec != sources.BUILT_IN:
                    check_scoring(kind, source.spec)
                case "demonstrations" | "prompts" | "preferences":
                    data[kind, source.spec] = records = sources.read(kind, source.spec).records
                    render(records[:SAMPLE_ROWS], shape, recipe)
    notes = {spec: sources.continued(records, shape.tokenizer) for (_, spec), records in data.items()}
    return Checked(shape, data, [f"{spec}: {note}" for spec, note in notes.items() if note])


def check_room(each: PlannedStage, shape: Shape, recipe: Recipe) -> None:
    """Raise `UserError` where what a stage samples would leave no room for a prompt."""
    # Of a stage that trains, `max_tokens` is another thing: the size of a micro-batch.
    setting = "max_tokens" if each.stage.kind == "openings" else "max_new_tokens"
    try:
        sources.make_renderer(shape, recipe.max_length, getattr(each.stage.config, setting, None), setting)
    except UserError as error:
        raise each.stage.error(str(error)) from None


def check_trackers(recipe: Recipe) -> None:
    """Raise `UserError` where an experiment tracker is not installed."""
    for name in recipe.trackers:
        found = find_spec(name)
        # A folder without code counts as a package too, and wandb leaves one of its own name where it has run.
        if found is None or found.origin is None:
            raise UserError(f"tracker {name!r} is not installed", fix="pip install 'heed-rlhf[track]'")


def check_project(judge: PlannedStage) -> None:
    """Raise `UserError` where a stage takes all of a project's answers and there is no database that could hold them."""
    config = judge.stage.config
    from_outside = config.project is not None and "responses" not in judge.inputs
    if from_outside and "://" not in config.database and not Path(config.database).is_file():
        raise judge.stage.error(f"{config.database}: there is no such file", expected="a feedback database")


def check_scoring(kind: str, spec: str) -> None:
    """Raise `UserError` where there is no such function, it cannot be called, or a reward model has other than one label."""
    if sources.names_function(spec):
        (load_reward if kind == "reward" else sources.load_gold)(spec)
    elif (labels := Shape(spec).config.num_labels) != 1:
        raise UserError(f"reward model {spec} has {labels} labels", expected="1")


def render(records: Sequence[Record], shape: Shape, recipe: Recipe) -> None:
    """Raise `UserError` where the model cannot read the records, as conversations without a chat template."""
    renderer = sources.make_renderer(shape, recipe.max_length)
    renderer.encode_prompts([r if isinstance(r, Prompt) else r.prompt for r in records])
    renderer.encode_all([(r.prompt, text) for r in records if not isinstance(r, Prompt) for text in responses(r)])


def responses(record: Record) -> tuple[str, ...]:
    match record:
        case Demonstration(response=response):
            return (response,)
        case PreferencePair(chosen=chosen, rejected=rejected):
            return (chosen, rejected)
        case Ranking(responses=several):
            return several
        case Prompt():
            return ()


def check_folder(recipe: Recipe) -> None:
    """Raise `UserError` where the output folder cannot be written, or holds anything but an earlier part of this very run."""
    folder, other = recipe.folder, "name another folder with --output, or move this one away"
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", file=folder, expected="a folder to write to", fix="name another with --output")
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError("may not be written to", file=parent, expected="a folder to write to", fix="name another with --output")
    started = [*folder.glob("stages/*/stage.json"), *folder.glob("stages/*/checkpoint.safetensors")]
    if (found := read_json(folder / "run.json", "identity", fix=other)) is not None:
        for key, value in recipe.identity.items() if started else ():
            if (old := found["identity"].get(key)) != value:
                raise UserError(f"holds another run, with {key} {old!r}", file=folder, expected=repr(value), fix=other)
    elif folder.is_dir() and {path.name for path in folder.iterdir()} - {"stages", ".lock"}:
        raise UserError("holds files that are no heed run", file=folder, expected="a new or empty folder", fix=other)
