"""The stages that gather judgements: openings, sampled responses, and annotators who rank them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from random import Random
from typing import cast

from heed.data.writers import from_row, to_row, write_jsonl
from heed.errors import UserError, require
from heed.feedback import FeedbackStore, SimulatedAnnotator, judge, krippendorff_alpha, pairwise_agreement
from heed.feedback.database import Database
from heed.pipeline import people, sources
from heed.pipeline.context import Context, Outcome, PatientEngine, hashed, write_json
from heed.records import Judgement, Prompt, Response, Rollout, Sampling
from heed.rollout.local import LocalEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningsConfig:
    """Settings of `openings`: prompts that the model writes itself, the beginnings of its own texts."""

    num_prompts: int = 1000
    """Different openings to train on."""
    num_eval_prompts: int = 100
    """Different openings to evaluate on."""
    min_tokens: int = 16
    """The shortest opening."""
    max_tokens: int = 24
    """The longest opening."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_eval_prompts", "min_tokens"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number above 0")
        require(self.max_tokens >= self.min_tokens, "max_tokens", self.max_tokens, f"{self.min_tokens} (min_tokens) or more")


def openings(ctx: Context) -> Outcome:
    """Let the model begin texts, and cut each at the end of a word after a random number of tokens."""
    config: OpeningsConfig = ctx.config
    policy = ctx.policy()
    renderer = ctx.renderer(policy, config.max_tokens)
    engine, random = LocalEngine(policy, renderer, seed=config.seed), Random(config.seed)
    wanted, found = config.num_prompts + config.num_eval_prompts, dict[str, Prompt]()
    for _ in range(50):
        for rollout in engine.generate([Prompt("")], Sampling(max_new_tokens=config.max_tokens), n=256):
            kept = rollout.response_ids[: random.randint(config.min_tokens, config.max_tokens)]
            text = renderer.decode(kept).rpartition(" ")[0].strip()
            if rollout.finish_reason == "length" and text:
                found.setdefault(text, Prompt(text))
        ctx.run.progress(min(len(found), wanted), wanted)
        ctx.run.checkpoint_if_due(False, lambda: None)
        if len(found) >= wanted:
            prompts = list(found.values())
            write_jsonl(ctx.folder / "eval_prompts.jsonl", prompts[: config.num_eval_prompts])
            write_jsonl(ctx.folder / "prompts.jsonl", prompts[config.num_eval_prompts : wanted])
            return Outcome({"openings": wanted})
    raise UserError(f"the model begins only {len(found)} different texts", expected=f"{wanted}", fix="raise max_tokens or ask for fewer")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Settings of `sample`: the responses that are to be compared."""

    responses_per_prompt: int = 4
    """K, the responses that one annotator ranks."""
    num_prompts: int | None = None
    """Prompts to answer, drawn at random; none takes all."""
    max_new_tokens: int = 64
    """The longest response."""
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.responses_per_prompt > 0, "responses_per_prompt", self.responses_per_prompt, "1 or more")
        require(self.num_prompts is None or self.num_prompts > 0, "num_prompts", self.num_prompts, "a whole number above 0, or none")
        require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or above")
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "a number of tokens above 0")


def sample(ctx: Context) -> Outcome:
    """Answer prompts with K responses each, and keep them token for token."""
    config: SampleConfig = ctx.config
    prompts = drawn(ctx.read("prompts", "prompts"), config.num_prompts, config.seed)
    policy = ctx.policy()
    renderer = ctx.renderer(policy, config.max_new_tokens)
    engine = PatientEngine(LocalEngine(policy, renderer, seed=config.seed), ctx.run)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    rollouts = engine.generate(prompts, sampling, config.responses_per_prompt)
    write_jsonl(ctx.folder / "responses.jsonl", rollouts)
    tokens = sum(len(r.response_ids) for r in rollouts)
    return ctx.done(renderer, {"prompts": len(prompts), "responses": len(rollouts), "mean_length": tokens / len(rollouts)})


def drawn(prompts: list[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """`count` of the prompts at random, or all of them as they are."""
    return prompts if count is None or count >= len(prompts) else Random(seed).sample(prompts, count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """One simulated annotator, with the faults that people have (`heed.feedback.SimulatedAnnotator`)."""

    name: str
    reliability: float = 1.0
    """How often they look at all; otherwise they guess."""
    position_bias: float = 0.0
    """Utility added to the response shown first."""
    tie_threshold: float = 0.0
    """Differences in utility that they call a tie."""
    temperature: float = 1.0
    """Size of their noise, in units of utility."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.judging(lambda prompt, response: 0.0)  # which takes no setting that is out of range

    def judging(self, utility: Callable[[Prompt, str], float]) -> SimulatedAnnotator:
        """The annotator, who values this."""
        return SimulatedAnnotator(utility=utility, **asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Settings of `judge`: people rank responses in a labelling project or, where none is named, simulated annotators do by the
    true preference, imperfectly."""

    project: str | None = None
    """Name of a labelling project (`heed label`); the sampled responses, where there are any, are added to it."""
    database: str = "feedback.db"
    """Where that project is: a file, or the URL of the team's database."""
    wait: bool = True
    """Wait until every item has all its annotators, instead of using what is there."""
    weights: bool = False
    """Weigh each annotator's labels by their reliability, estimated from what several annotators of the project compared."""
    annotators: tuple[Annotator, ...] = (
        Annotator(name="ada", reliability=0.99, position_bias=0.0, tie_threshold=0.4, temperature=0.2, seed=1),
        Annotator(name="ben", reliability=0.98, position_bias=0.05, tie_threshold=0.4, temperature=0.2, seed=2),
        Annotator(name="cleo", reliability=0.97, position_bias=0.1, tie_threshold=0.4, temperature=0.25, seed=3),
        Annotator(name="dan", reliability=0.96, position_bias=0.0, tie_threshold=0.3, temperature=0.25, seed=4),
        Annotator(name="eve", reliability=0.92, position_bias=0.2, tie_threshold=0.3, temperature=0.3, seed=5),
    )
    shared: float = 0.1
    """Share of the prompts that all annotators judge, from which their agreement is known; every other goes to one of them."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.annotators) > 0, "annotators", self.annotators, "one annotator or more")
        names = [annotator.name for annotator in self.annotators]
        require(len(set(names)) == len(names), "annotators", ", ".join(names), "different names")
        require(0 <= self.shared <= 1, "shared", self.shared, "a share from 0 to 1")
        require(self.project is not None or not self.weights, "weights", self.weights, "false: only a project's annotators are weighed")


def collect_judgements(ctx: Context) -> Outcome:
    """Have the responses ranked, and keep the judgements in the store that people's judgements go to as well."""
    config: JudgeConfig = ctx.config
    items = _items(ctx) if "responses" in ctx.inputs else []
    location = ctx.folder / "feedback.db"
    gathered = None
    if config.project is None:
        metrics = _simulated(ctx, config, items, location)
    else:
        metrics = _by_people(ctx, config, config.project, items, location)
        gathered = hashed([to_row(ranking) for ranking in sources.read("preferences", str(location)).records])
    return Outcome(metrics, {"feedback": {**metrics, "simulated": config.project is None}}, gathered)


def _items(ctx: Context) -> list[tuple[Prompt, list[Response]]]:
    """The sampled responses of each prompt."""
    with open(ctx.inputs["responses"], encoding="utf-8") as file:
        rollouts = [cast(Rollout, from_row(json.loads(line))) for line in file]
    return [
        (prompt, [Response(r.text, model=ctx.inputs["responses"], run=ctx.recipe.name) for r in group])
        for prompt, group in groupby(rollouts, key=lambda r: r.prompt)
    ]


def _by_people(
    ctx: Context, config: JudgeConfig, project: str, items: list[tuple[Prompt, list[Response]]], location: Path
) -> dict[str, float]:
    """Copy what a project's annotators say of the items (of all, where none are given) into the stage's own store."""
    asked = {prompt.id: {response.text for response in responses} for prompt, responses in items} or None
    with closing(Database(config.database)) as database:
        if items:
            ctx.say(people.ask(database, project, items))
        if config.wait:
            people.wait(database, project, asked, ctx.run)
    found, weights = people.judged(config.database, project, asked, weights=config.weights)
    if not found:
        raise UserError(f"project {project!r} has no answers", fix="let annotators answer first: heed label, or set judge.wait")
    for left in location.parent.glob(f"{location.name}*"):  # by a try that was cut off
        left.unlink()
    with closing(FeedbackStore(location)) as store:
        store.add_items([(j.prompt, [Response(text) for text in j.responses]) for j in found])
        store.add_judgements(found)
    if config.weights:
        write_json(sources.weights_beside(location), weights)
    return _described(found)


def _described(judgements: list[Judgement]) -> dict[str, float]:
    """How many there are and, where any pair was judged twice, how far annotators agree; leads' decisions are nobody's opinion."""
    own = [judgement for judgement in judgements if judgement.annotator != people.NOBODY]
    metrics = {"judgements": float(len(judgements)), "annotators": float(len({j.annotator for j in own}))}
    try:
        return metrics | {"agreement": pairwise_agreement(own), "alpha": krippendorff_alpha(own)}
    except UserError:
        return metrics


def _simulated(ctx: Context, config: JudgeConfig, items: list[tuple[Prompt, list[Response]]], location: Path) -> dict[str, float]:
    gold = ctx.gold()
    assert gold is not None, "the plan gives every such stage a true preference"

    @cache
    def utility(prompt: Prompt, response: str) -> float:
        return float(gold(prompt, response)["utility"])

    annotators = [annotator.judging(utility) for annotator in config.annotators]
    with closing(FeedbackStore(location)) as store:
        alone = judge(store, annotators, items, seed=config.seed)
        judge(store, annotators, items[: round(config.shared * len(items))], overlap=len(annotators), seed=config.seed)
        judgements = store.judgements()
    if alone.num_unrankable:
        ctx.say(f"{alone.num_unrankable} of {len(items)} prompts left out: all their responses are the same")
    return _described(judgements)
