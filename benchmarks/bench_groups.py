"""Policy gradients over groups of responses: heed's REINFORCE against TRL 1.16's RLOOTrainer and GRPOTrainer.

    python benchmarks/bench_groups.py [--quick] [--repetitions 3] [--steps 3] [--shape 7m]

One step is an iteration: 4 HH prompts (at most 256 tokens, the same in each step on both sides), 8 responses of up to 64 tokens to each,
sampled at temperature 1 without truncation, a reward from a Python function, one AdamW update. Full fine-tuning in fp32 from the same
weights. RLOO has the leave-one-out baseline and a KL of 0.05 to a frozen copy on both sides; GRPO the group's baseline scaled by its
spread and, as in TRL's defaults, no KL. TRL samples with `generate`, its default without vLLM, and accumulates gradients over batches of
8, its default and faster than all 32 at once; activations are not checkpointed, which makes it faster than its default and larger. heed
runs with its defaults, which also measure the exact KL and the entropy of every iteration. Tokens are response tokens, which random
weights hardly ever end early.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from flops import TRAINING, Flops
from heed_side import TimedRun, in_heeds_order
from inputs import hh_prompts, model_folder, policy_of, renderer
from measure import Comparison, Measured, Meter, main
from trl_side import LEARNING_RATE, Clock, quieten, settings, trl

from heed.records import Prompt, Rollout
from heed.training.reinforce import ReinforceConfig, train_reinforce

GROUP = 8
KL = {"RLOO": 0.05, "GRPO": 0.0}
BASELINE = {"RLOO": "leave_one_out", "GRPO": "group"}


def prompts_of(case: dict[str, Any], tokenizer: Any) -> list[Prompt]:
    return hh_prompts(tokenizer, case["prompts"] * (case["steps"] + 1), max_length=256)


def score(ids: Sequence[int]) -> float:
    """The share of different tokens in a response."""
    return len(set(ids)) / max(len(ids), 1)


def result(case: dict[str, Any], meter: Meter, config: Any, prompts: list[int], responses: list[int]) -> Measured:
    """From the lengths of all prompts and responses in the order they were taken; those of the first step do not count."""
    flops, total = Flops.of(config), 0.0
    passes = 1 + TRAINING + (KL[case["algorithm"]] > 0)
    for i in range(case["prompts"], len(prompts)):
        total += passes * flops.language_model(prompts[i], responses[i * GROUP : (i + 1) * GROUP])
    counted = responses[case["prompts"] * GROUP :]
    return meter.result(tokens=sum(counted), items=len(counted), flops=total)


def heed(case: dict[str, Any], meter: Meter) -> Measured:
    policy = policy_of(case["shape"])
    rendering, prompts = renderer(policy.tokenizer), prompts_of(case, policy.tokenizer)
    seen: list[Rollout] = []

    def reward(rollouts: Sequence[Rollout]) -> torch.Tensor:
        seen.extend(rollouts)
        return torch.tensor([score(rollout.response_ids) for rollout in rollouts])

    config = ReinforceConfig(
        lr=LEARNING_RATE,
        batch_size=case["prompts"] * GROUP,
        precision="fp32",
        schedule="constant",
        warmup_fraction=0,
        iterations=case["steps"] + 1,
        prompts_per_iteration=case["prompts"],
        samples_per_prompt=GROUP,
        max_new_tokens=case["new_tokens"],
        kl_coef=KL[case["algorithm"]],
        baseline=BASELINE[case["algorithm"]],  # pyright: ignore[reportArgumentType]
        missing_eos_penalty=0,
    )
    run = TimedRun(meter)
    meter.ready(policy.model)
    with run:
        train_reinforce(policy, policy.reference(), rendering, reward, prompts, config, run)
    lengths = [len(rollout.response_ids) for rollout in seen]
    return result(case, meter, policy.model.config, [len(r.prompt_ids) for r in seen[::GROUP]], lengths)


def group_trainer(case: dict[str, Any], meter: Meter) -> Measured:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(case["shape"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = prompts_of(case, tokenizer)
    order = in_heeds_order(len(prompts), 1)
    rows = [{"prompt": prompts[i].text} for i in order]
    settings_class, trainer_class = trl(f"{case['algorithm']}Config"), trl(f"{case['algorithm']}Trainer")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    prompt_lengths: list[int] = []
    lengths: list[int] = []

    def reward(prompts: list[str], completion_ids: list[list[int]], **rest: Any) -> list[float]:
        prompt_lengths.extend(len(tokenizer(prompt)["input_ids"]) for prompt in prompts[::GROUP])
        lengths.extend(len(ids) for ids in completion_ids)
        return [score(ids) for ids in completion_ids]

    meter.ready(model)
    clock = Clock(meter)
    config = settings_class(
        **settings(per_device_train_batch_size=GROUP, gradient_accumulation_steps=case["prompts"]),
        num_generations=GROUP,
        max_completion_length=case["new_tokens"],
        beta=KL[case["algorithm"]],
        shuffle_dataset=False,
    )
    trainer = trainer_class(
        model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock]
    )
    quieten(trainer)
    meter.restart()
    trainer.train()
    expected = [len(ids) for ids in renderer(tokenizer).encode_prompts([prompts[i] for i in order])]
    assert prompt_lengths == expected, "the peer saw other prompts"
    return result(case, meter, model.config, prompt_lengths, lengths)


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """RLOO and GRPO."""
    model_folder(options.shape)
    case = {"shape": options.shape, "steps": options.steps, "prompts": 4, "new_tokens": 64}
    if options.quick:
        case |= {"steps": 1, "prompts": 1, "new_tokens": 16}
    return [
        Comparison(
            f"{name}, {GROUP * case['prompts']} responses x {case['new_tokens']} tokens, {options.shape}",
            case | {"algorithm": name},
            "heed",
            f"TRL {name}Trainer",
            target=7.0,
            memory_target=0.5,
        )
        for name in KL
    ]


SIDES = {"heed": heed, "TRL RLOOTrainer": group_trainer, "TRL GRPOTrainer": group_trainer}

if __name__ == "__main__":
    main(__file__, comparisons, SIDES, __doc__ or "")
