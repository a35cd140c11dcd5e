"""The stages that say what came of it: evaluation on held-out prompts, and the report."""

from __future__ import annotations

from dataclasses import dataclass

from heed.data.writers import write_jsonl
from heed.errors import require
from heed.evaluation import GradedResponse, PolicyEvaluation, best_of_n, evaluate_policy, summarise, win_rate
from heed.evaluation.intervals import as_dict
from heed.evaluation.policies import first_of_each
from heed.pipeline.collect import drawn
from heed.pipeline.context import Context, Outcome, PatientEngine
from heed.records import Sampling
from heed.report import load_run, write_report
from heed.rollout.local import LocalEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Settings of `evaluate`."""

    responses_per_prompt: int = 2
    """Responses of each policy to each prompt."""
    best_of_n: int = 16
    """Responses of which the reward keeps one, compared with `responses_per_prompt` more that are drawn after; 1 leaves best-of-n out."""
    num_prompts: int | None = None
    """Held-out prompts to ask, drawn at random; none takes all."""
    max_new_tokens: int = 64
    """The longest response."""
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("responses_per_prompt", "best_of_n", "max_new_tokens"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a whole number above 0")
        require(self.num_prompts is None or self.num_prompts > 0, "num_prompts", self.num_prompts, "a whole number above 0, or none")
        require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or above")


def evaluate(ctx: Context) -> Outcome:
    """Measure every policy of the run on the same held-out prompts, against the one that optimisation started from.

    Where no true preference is named, win rates and best-of-n are left out: the reward would be the judge in its own case.
    """
    config: EvaluateConfig = ctx.config
    prompts = drawn(ctx.read("prompts", "prompts"), config.num_prompts, config.seed)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    names = [name.removeprefix("policy.") for name in ctx.inputs if name.startswith("policy.")]
    start = "sft" if "sft" in names else "base"
    reference = ctx.policy(f"policy.{start}")
    renderer = ctx.renderer(reference, config.max_new_tokens)
    reward = ctx.reward(reference)[0] if "reward" in ctx.inputs else None
    gold = ctx.gold()
    draws = config.best_of_n if reward and gold else 1

    measured: dict[str, PolicyEvaluation] = {}
    responses: dict[str, tuple[GradedResponse, ...]] = {}
    fresh: tuple[GradedResponse, ...] = ()
    for name in names:
        policy = reference if name == start else ctx.policy(f"policy.{name}")
        engine = PatientEngine(LocalEngine(policy, renderer, seed=config.seed), ctx.run, name)
        asked = (policy, engine, reference, prompts, gold)
        n = max(config.responses_per_prompt, draws if name == start else 1)
        measured[name], responses[name] = evaluate_policy(name, *asked, n, sampling, reward=reward, seed=config.seed)
        if name == start and draws > 1:
            responses["best_of_n"], curve = best_of_n(first_of_each(responses[name], draws), config.seed)
            measured["best_of_n"] = summarise(responses["best_of_n"], config.seed)
            write_jsonl(ctx.folder / "best_of_n.jsonl", [point.to_dict() for point in curve])
            # The best of N beats those that it was chosen from by choice alone: how often it wins, later draws say.
            later = config.responses_per_prompt
            _, fresh = evaluate_policy(f"{start}_fresh", *asked, later, sampling, reward=reward, seed=config.seed)

    write_jsonl(ctx.folder / "responses.jsonl", [r.to_dict() for graded in (*responses.values(), fresh) for r in graded])
    others = {name: (graded, fresh if name == "best_of_n" else responses[start]) for name, graded in responses.items() if name != start}
    wins = {f"{name}_vs_{start}": as_dict(win_rate(*pair, config.seed)) for name, pair in others.items()} if gold else {}
    policies = {name: evaluation.to_dict() for name, evaluation in measured.items()}
    shown = {name: value for name, value in policies[names[-1]].items() if isinstance(value, float) and not name.startswith("distinct")}
    return ctx.done(renderer, shown, {"reference": start, "policies": policies, "win_rate": wins})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """`report` has no settings."""


def report(ctx: Context) -> Outcome:
    """Write the run's `report.html`, from what all stages left in its folder."""
    run_folder = ctx.folder.parent.parent
    ctx.say(str(write_report(load_run(run_folder), run_folder)))
    return Outcome()
