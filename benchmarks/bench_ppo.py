"""PPO: heed against the PPOTrainer of TRL 1.12, the last version that has one.

    python benchmarks/bench_ppo.py [--quick] [--repetitions 3] [--steps 2] [--shape 7m] [--only LoRA]

One step is an iteration in fp32: 32 HH prompts (the same in each step on both sides), one response of 64 tokens to each, sampled at
temperature 1 without truncation, scored by a reward model of the policy's size, a k1 KL of 0.05 in the reward, and 4 passes over them
with one AdamW update each. `full fine-tuning` has a policy, a frozen reference, a critic and a reward model with the same weights on both
sides, and prompts of at most 256 tokens. `shared trunk` is the same for the peer, which has no such mode; heed's critic is a head on the
policy's trunk (`critic: shared`). `LoRA` is the shape of GPT-2 small, rank 16 on all linear layers, 8 openings of at most 128 tokens: heed
has policy, critic and reward model as adapters on one body, with the reference as that body alone; on a shared trunk its critic is a
head on the policy's adapter. TRL's own LoRA mode (`peft_config`) gives the policy an adapter and the reference for free, but trains the
critic whole and holds a whole reward model, as there is no setting for more. TRL accumulates gradients over micro-batches of 8;
activations are not checkpointed, which makes it faster than its default and larger. heed runs with its defaults, which also measure the
exact KL and the entropy of every iteration. Tokens are response tokens; TRL samples 64 for every prompt, heed stops at EOS, which random
weights hardly ever sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from flops import TRAINING, Flops
from heed_side import TimedRun, in_heeds_order
from inputs import hh_prompts, model_folder, policy_of, renderer, reward_model_folder
from measure import Comparison, Measured, Meter, main
from trl_side import LEARNING_RATE, Clock, quieten, settings, trl

from heed.models import LoRAConfig, critic_from, load_reward_model, new_scalar_model, value_head
from heed.records import Prompt, Rollout
from heed.rewards.model import ModelReward
from heed.training.ppo import PPOConfig, train_ppo

EPOCHS = 4
KL = 0.05
RANK, ALPHA = 16, 32


def prompts_of(case: dict[str, Any], tokenizer: Any) -> list[Prompt]:
    count = case["prompts"] * (case["steps"] + 1)
    return hh_prompts(tokenizer, count, first_turn=case["lora"], max_length=128 if case["lora"] else 256)


def result(
    case: dict[str, Any], meter: Meter, config: Any, prompts: Sequence[int], responses: Sequence[int], *, shared: bool = False
) -> Measured:
    """From the lengths of all prompts and responses in the order they were taken; those of the first step do not count."""
    flops, total = Flops.of(config), 0.0
    # Frozen weights need no gradient of their own: a backward through them costs one forward, not two.
    training = EPOCHS * (TRAINING - 1 if case["lora"] else TRAINING)
    counted = range(case["prompts"], len(prompts))
    for i in counted:
        body, whole = flops.body(prompts[i], [responses[i]]), flops.language_model(prompts[i], [responses[i]])
        critic = 0 if shared else training * body
        reward = flops.body(prompts[i], [responses[i]], scores=True)
        total += 2 * whole + reward + body + training * whole + critic  # sampling, reference; reward; values; updates
    return meter.result(tokens=sum(responses[i] for i in counted), items=EPOCHS * case["steps"], flops=total)


def heed(case: dict[str, Any], meter: Meter) -> Measured:
    lora = LoRAConfig(rank=RANK, alpha=ALPHA) if case["lora"] else None
    policy = policy_of(case["shape"], lora=lora)
    reward_model = new_scalar_model(policy, "reward", 0) if lora else load_reward_model(reward_model_folder(case["shape"]), device="cpu")
    critic = value_head(policy) if case["shared"] else critic_from(reward_model, policy)
    reference = policy.reference()
    prompts, rendering = prompts_of(case, policy.tokenizer), renderer(policy.tokenizer)
    scores = ModelReward(reward_model)
    seen: list[Rollout] = []

    def reward(rollouts: Sequence[Rollout]) -> torch.Tensor:
        seen.extend(rollouts)
        return scores(rollouts)

    config = PPOConfig(
        lr=LEARNING_RATE,
        batch_size=case["prompts"],
        precision="fp32",
        schedule="constant",
        warmup_fraction=0,
        iterations=case["steps"] + 1,
        prompts_per_iteration=case["prompts"],
        max_new_tokens=case["new_tokens"],
        epochs=EPOCHS,
        kl_coef=KL,
        missing_eos_penalty=0,
        critic="shared" if case["shared"] else "separate",
    )
    run = TimedRun(meter)
    meter.ready(policy.model, reference.model, reward_model.model, critic.model)
    with run:
        train_ppo(policy, reference, critic, rendering, reward, prompts, config, run)
    lengths = [len(r.prompt_ids) for r in seen], [len(r.response_ids) for r in seen]
    return result(case, meter, policy.model.config, *lengths, shared=case["shared"])


def models_of(case: dict[str, Any]) -> dict[str, Any]:
    """The peer's models; with LoRA its reference is the policy without its adapter."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder, reward_folder = model_folder(case["shape"]), reward_model_folder(case["shape"])
    return {
        "model": AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        "ref_model": None if case["lora"] else AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        "reward_model": AutoModelForSequenceClassification.from_pretrained(reward_folder, dtype="float32"),
        "value_model": AutoModelForSequenceClassification.from_pretrained(reward_folder, dtype="float32"),
    }


def adapters(case: dict[str, Any]) -> Any:
    from peft import LoraConfig

    if not case["lora"]:
        return None
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", fan_in_fan_out=case["shape"] == "gpt2", task_type="CAUSAL_LM")


def ppo_trainer(case: dict[str, Any], meter: Meter) -> Measured:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    settings_class, trainer_class = trl("PPOConfig"), trl("PPOTrainer")
    tokenizer = AutoTokenizer.from_pretrained(model_folder(case["shape"]), padding_side="left", pad_token="<unk>")
    prompts, rendering = prompts_of(case, tokenizer), renderer(tokenizer)
    ids = rendering.encode_prompts([prompts[i] for i in in_heeds_order(len(prompts), 1)])
    rows = Dataset.from_list([{"input_ids": list(each)} for each in ids])
    models, peft_config = models_of(case), adapters(case)
    config = models["model"].config
    meter.ready(*filter(None, models.values()))
    micro_batch = min(case["prompts"], case["micro_batch"])
    args = settings_class(
        **settings(per_device_train_batch_size=micro_batch, gradient_accumulation_steps=case["prompts"] // micro_batch),
        total_episodes=len(ids),
        num_ppo_epochs=EPOCHS,
        num_mini_batches=1,
        response_length=case["new_tokens"],
        temperature=1.0,
        kl_coef=KL,
        num_sample_generations=0,
    )
    clock = Clock(meter)
    trainer = trainer_class(args, processing_class=tokenizer, **models, train_dataset=rows, peft_config=peft_config, callbacks=[clock])
    quieten(trainer)
    # Its own loader shuffles; in this order both sides take the same prompts in each step.
    trainer.dataloader = DataLoader(rows, batch_size=case["prompts"], collate_fn=trainer.data_collator, drop_last=True)  # pyright: ignore
    meter.restart()
    trainer.train()
    assert len(meter.times) == case["steps"] + 2, "the peer did another number of iterations"
    return result(case, meter, config, [len(each) for each in ids], [case["new_tokens"]] * len(ids))


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Whole models, with a critic apart and on the policy's trunk; and adapters in the shape of GPT-2 small."""
    lora_shape = "7m" if options.quick else "gpt2"
    for shape in (options.shape, lora_shape):
        reward_model_folder(shape)
    case = {
        "shape": options.shape,
        "steps": options.steps,
        "prompts": 32,
        "new_tokens": 64,
        "lora": False,
        "micro_batch": 8,
        "shared": False,
    }
    if options.quick:
        case |= {"steps": 1, "prompts": 4, "new_tokens": 16}
    # With 32 prompts an iteration of the peer takes seven minutes in the shape of GPT-2 small.
    lora = case | {"shape": lora_shape, "steps": 1, "lora": True, "prompts": case["prompts"] // 4}
    return [
        Comparison(f"PPO, full fine-tuning, {options.shape}", case, "heed", "TRL PPOTrainer", "ppo", target=2.5, memory_target=0.4),
        Comparison(
            f"PPO, shared trunk, {options.shape}", case | {"shared": True}, "heed", "TRL PPOTrainer", "ppo", target=4.0, memory_target=0.4
        ),
        Comparison(f"PPO, LoRA, {lora_shape}", lora, "heed", "TRL PPOTrainer", "ppo", target=2.0, total_memory_target=0.35),
        Comparison(
            f"PPO, LoRA, shared trunk, {lora_shape}",
            lora | {"shared": True},
            "heed",
            "TRL PPOTrainer",
            "ppo",
            target=2.0,
            total_memory_target=0.35,
        ),
    ]


if __name__ == "__main__":
    main(__file__, comparisons, {"heed": heed, "TRL PPOTrainer": ppo_trainer}, __doc__ or "")
