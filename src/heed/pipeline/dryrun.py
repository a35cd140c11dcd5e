"""What a run would take, and whether it can be run at all, found out in seconds: no weights are loaded and nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from heed.models.role import micro_batch_tokens
from heed.pipeline import people, sources
from heed.pipeline.check import SAMPLE_ROWS, Checked, Shape, check, responses
from heed.pipeline.plan import PlannedStage, plan
from heed.pipeline.recipe import Recipe
from heed.pipeline.sources import Record
from heed.records import Prompt

TRAINING_EFFICIENCY = 0.5
"""Share of the bare matrix-product rate that training reaches: the rest is attention, norms, the optimiser and Python."""
STEP_SECONDS_PER_LAYER = 2.5e-4
"""What one layer of one decoding step takes on top of its products: kernel launches and Python."""
PROCESS_GB = 0.6
"""Python, torch and transformers themselves."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much data there is."""

    items: float
    """Prompts, demonstrations or rankings."""
    prompt_tokens: float
    """Mean per item."""
    response_tokens: float = 0.0
    """Mean per response."""
    responses: float = 1.0
    """Per item."""

    @property
    def tokens(self) -> float:
        """Of all responses, each with its prompt."""
        return self.items * self.responses * (self.prompt_tokens + self.response_tokens)


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage computes, in tokens."""

    trained: float = 0.0
    """Forward and backward."""
    read: float = 0.0
    """Forward only."""
    sampled: float = 0.0
    """Decoded one after the other."""
    rows: float = 1.0
    """Responses decoded at a time."""
    models: int = 1
    """Copies of the weights in memory."""
    trainable: int = 0
    """Of these, how many are trained."""


def dry_run(recipe: Recipe, console: Console | None = None) -> None:
    """Check a whole recipe, then print what each stage would read, compute and take; raises `UserError` at the first fault.

    Responses to be sampled are taken to be as long as those in the data or, where there are none, as long as they may be.
    """
    console = console or Console()
    planned = plan(recipe, recipe.rounds.max)
    checked = check(recipe, planned)
    shape = checked.shape
    estimator = Estimator(recipe, checked, Machine.measure(recipe, shape))
    table = Table("stage", "reads", "items", "tokens", "memory", "time", title=f"{recipe.name}: {recipe.model} into {recipe.folder}")
    for column in table.columns[2:]:
        column.justify = "right"
    seconds, memory = 0.0, 0.0
    for each in planned:
        size, work = estimator.work(each)
        taken, held = estimator.seconds(work), estimator.gigabytes(work, each)
        reads = ", ".join(sorted({str(source) for source in each.inputs.values()})) if each.stage.kind != "report" else "every stage"
        tokens = work.trained + work.read + work.sampled
        table.add_row(each.name, reads, f"{size.items:,.0f}", f"{tokens:,.0f}", f"{held:.1f} GB", duration(taken))
        seconds, memory = seconds + taken, max(memory, held)
    table.add_section()
    rounds = f"at most {recipe.rounds.max} rounds" if recipe.rounds.max > 1 else ""
    table.add_row("all", rounds, "", "", f"{memory:.1f} GB", duration(seconds))
    console.print(table)
    for note in checked.notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"{shape.num_parameters / 1e6:,.1f}M parameters; {estimator.machine}. Nothing is wrong; nothing was run.")


@dataclass(frozen=True, slots=True)
class Machine:
    """How fast this machine multiplies matrices of a model's width."""

    training_flops: float
    """Per second, over thousands of tokens at once."""
    decoding_flops: float
    """Per second, over a few dozen rows at once."""
    device: str

    @classmethod
    def measure(cls, recipe: Recipe, shape: Shape) -> Machine:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if recipe.device == "auto" else recipe.device
        dtype = getattr(torch, recipe.dtype)
        training, decoding = (matmul_rate(rows, shape.width, device, dtype) for rows in (2048, 64))
        return cls(training, decoding, device)

    def __str__(self) -> str:
        return f"{self.device} at {self.training_flops / 1e9:,.0f} GFLOP/s in training, {self.decoding_flops / 1e9:,.0f} in sampling"


def matmul_rate(rows: int, width: int, device: str, dtype: torch.dtype, seconds: float = 0.25) -> float:
    """FLOP per second of `[rows, width] @ [width, 4 width]`, tried for a quarter of a second."""
    x, w, out = (torch.ones(shape, device=device, dtype=dtype) for shape in ((rows, width), (width, 4 * width), (rows, 4 * width)))

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(x, w, out=out)
        out[0, 0].item()  # waits for the device
        return time.perf_counter() - start

    products(3)
    count = max(1, int(seconds / max(products(3) / 3, 1e-6)))
    return count * 2 * rows * width * 4 * width / products(count)


class Estimator:
    """Follows the sizes of data from stage to stage."""

    def __init__(self, recipe: Recipe, checked: Checked, machine: Machine) -> None:
        self.recipe, self.shape, self.machine = recipe, checked.shape, machine
        self.given = {source: self.rendered(records) for source, records in checked.data.items()}
        self.sizes = dict(self.given)

    def work(self, each: PlannedStage) -> tuple[Size, Work]:
        """What a stage reads and computes; notes the size of what it writes."""
        config: Any = each.stage.config
        match each.stage.kind:
            case "openings":
                count = config.num_prompts + config.num_eval_prompts
                opening = Size(config.num_prompts, (config.min_tokens + config.max_tokens) / 2)
                self.sizes |= {
                    ("prompts", f"{each.name}/prompts.jsonl"): opening,
                    ("prompts", f"{each.name}/eval_prompts.jsonl"): replace(opening, items=config.num_eval_prompts),
                }
                return Size(count, 1, config.max_tokens), Work(sampled=2 * count * config.max_tokens, rows=256)
            case "sft":
                size = self.size(each, "demonstrations")
                return size, Work(trained=config.epochs * size.tokens, trainable=1)
            case "sample":
                size = self.sampled(each, config, config.responses_per_prompt)
                self.sizes["responses", f"{each.name}/responses.jsonl"] = size
                return size, Work(read=size.items * size.prompt_tokens, sampled=generated(size), rows=256)
            case "judge":
                if "responses" in each.inputs:
                    size = self.size(each, "responses")
                else:
                    size = self.rendered([j.ranking() for j in people.judged(config.database, config.project).judgements])
                judged = size.items * (1 if config.project else 1 + config.shared * (len(config.annotators) - 1))
                self.sizes["preferences", f"{each.name}/feedback.db"] = replace(size, items=judged)
                return size, Work(models=0)
            case "reward_model":
                size = self.preferences(each)
                learned = (1 - config.held_out) * size.tokens
                return size, Work(trained=config.epochs * learned, read=size.tokens - learned, trainable=1)
            case "dpo":
                size = self.preferences(each)
                # K responses make K (K - 1) / 2 pairs, and every pair is read anew.
                tokens = size.tokens * (size.responses - 1)
                return size, Work(trained=config.epochs * tokens, read=tokens, trainable=1)
            case "ppo" | "reinforce":
                return self.policy_gradient(each, config)
            case "evaluate":
                draws = [max(config.responses_per_prompt, config.best_of_n if "reward" in each.inputs else 1)]
                draws += [config.responses_per_prompt] * (sum(name.startswith("policy.") for name in each.inputs) - 1)
                if {"reward", "gold"} <= each.inputs.keys() and config.best_of_n > 1:
                    draws.append(config.responses_per_prompt)  # those that the best of n is compared with
                size = self.sampled(each, config, sum(draws))
                return size, Work(read=3 * size.tokens, sampled=generated(size), rows=256, models=3)
            case _:
                return Size(0, 0), Work(models=0)

    def policy_gradient(self, each: PlannedStage, config: Any) -> tuple[Size, Work]:
        """Each rollout is read by reference and reward, and with PPO by the critic, which is trained too, on its own or with the policy."""
        prompts = self.size(each, "prompts")
        count = config.iterations * config.prompts_per_iteration
        size = Size(count, prompts.prompt_tokens, self.response_tokens(config), config.samples_per_prompt)
        has_critic = each.stage.kind == "ppo"
        roles, readers = 2 if has_critic and config.critic == "separate" else 1, 3 if has_critic else 2
        with_lora = 2 if "reward" in each.inputs else 1
        return size, Work(
            trained=roles * config.epochs * size.tokens,
            read=readers * size.tokens,
            sampled=generated(size),
            rows=min(256, config.prompts_per_iteration * config.samples_per_prompt),
            models=with_lora if self.recipe.lora else roles + 2,
            trainable=roles,
        )

    def size(self, each: PlannedStage, name: str) -> Size:
        return self.sizes[name.partition(".")[0], str(each.inputs[name])]

    def sampled(self, each: PlannedStage, config: Any, responses: float) -> Size:
        prompts = self.size(each, "prompts")
        items = min(prompts.items, config.num_prompts or prompts.items)
        return Size(items, prompts.prompt_tokens, self.response_tokens(config), responses)

    def response_tokens(self, config: Any) -> float:
        """How long a sampled response is likely to be."""
        written = [size.response_tokens for size in self.given.values() if size.response_tokens]
        return min(config.max_new_tokens, *written) if written else config.max_new_tokens

    def preferences(self, each: PlannedStage) -> Size:
        sizes = [self.size(each, name) for name in each.inputs if name.startswith("preferences")]
        items = sum(size.items for size in sizes)
        if not items:  # annotators are yet to begin
            return Size(0, 0)
        responses = sum(size.items * size.responses for size in sizes) / items
        tokens = sum(size.tokens for size in sizes) / (items * responses)
        prompt = sum(size.items * size.prompt_tokens for size in sizes) / items
        return Size(items, prompt, tokens - prompt, responses)

    def rendered(self, records: Sequence[Record]) -> Size:
        """The size of a data set; mean lengths are those of its first rows."""
        renderer = sources.make_renderer(self.shape, self.recipe.max_length)
        items = [(r, ()) if isinstance(r, Prompt) else (r.prompt, responses(r)) for r in records[:SAMPLE_ROWS]]
        prompt_tokens = [len(ids) for ids in renderer.encode_prompts([prompt for prompt, _ in items])]
        sequences = renderer.encode_all([(prompt, text) for prompt, texts in items for text in texts])
        response_tokens = [sum(s.response_mask) for s in sequences]
        if not records:
            return Size(0, 0)
        return Size(len(records), fmean(prompt_tokens), fmean(response_tokens or [0]), fmean(len(texts) or 1 for _, texts in items))

    def seconds(self, work: Work) -> float:
        """Products at the measured rates, plus what every decoding step costs by itself."""
        n = self.shape.num_parameters
        backward = 4 if self.recipe.lora else 6
        training = n * (backward * work.trained + 2 * work.read) / (self.machine.training_flops * TRAINING_EFFICIENCY)
        decoding = 2 * n * work.sampled / self.machine.decoding_flops
        return training + decoding + work.sampled / work.rows * self.shape.layers * STEP_SECONDS_PER_LAYER

    def gigabytes(self, work: Work, each: PlannedStage) -> float:
        """The process, the weights, gradients and AdamW's two moments of what is trained, and activations of one micro-batch."""
        n, size = self.shape.num_parameters, 2 if self.recipe.dtype == "bfloat16" else 4
        trained = lora_parameters(self.recipe, self.shape) if self.recipe.lora else n
        weights = n * size * work.models + trained * 3 * size * work.trainable
        told = getattr(each.stage.config, "max_tokens", None)
        tokens = (told or micro_batch_tokens(self.machine.device, self.shape.layers, self.shape.width)) if work.trained else 0
        per_token = self.shape.width * (2 if self.recipe.gradient_checkpointing else 24 * self.shape.layers) * size
        return PROCESS_GB + (weights + tokens * per_token) / 1e9


def generated(size: Size) -> float:
    return size.items * size.responses * size.response_tokens


def lora_parameters(recipe: Recipe, shape: Shape) -> float:
    """About: seven matrices in a layer, the widest four times the model's width."""
    assert recipe.lora is not None
    return recipe.lora.rank * shape.layers * shape.width * (4 * 2 + 3 * 5)


def duration(seconds: float) -> str:
    """A length of time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
