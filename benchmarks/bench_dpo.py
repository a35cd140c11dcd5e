"""Direct preference optimisation: heed against TRL 1.16's DPOTrainer.

    python benchmarks/bench_dpo.py [--quick] [--repetitions 3] [--steps 3] [--shape 7m]

Both sides start from the same weights, in fp32, and see the same token ids of HH pairs (at most 1,024 tokens each, 8 pairs in a step, one
AdamW update a step) in the same order. The loss of the first step is log 2 whatever the data; that of the second step depends on the first
update and must agree. `reference included`: TRL runs its frozen copy in every step, heed runs the reference over all pairs before the first
step, and what that took, tokenising included, is spread over the steps. `reference cached`: TRL has `precompute_ref_log_probs`, and for
both only the steps are timed. TRL takes a step as one batch, padded to its longest sequence, as it does by default; activations are not
checkpointed, which makes it faster than its default and larger. heed trains with its defaults. Tokens are those TRL sees: prompts count
with each of their responses.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from flops import TRAINING, Flops
from heed_side import TimedRun, in_heeds_order
from inputs import hh_pairs, model_folder, policy_of, renderer
from measure import Comparison, Measured, Meter, main
from transformers import AutoTokenizer
from trl_side import LEARNING_RATE, Clock, quieten, settings, trl

from heed.records import TokenSequence
from heed.training.dpo import DPOConfig, train_dpo

BETA = 0.1
Encoded = list[tuple[TokenSequence, TokenSequence]]


def encoded_pairs(case: dict[str, Any]) -> Encoded:
    """One more step than is measured, in the order both sides take them."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(case["shape"], case.get("vocabulary")))
    count = case["batch"] * (case["steps"] + 1)
    pairs, rendering = hh_pairs(tokenizer, count), renderer(tokenizer)
    return [
        (rendering.encode(pairs[i].prompt, pairs[i].chosen), rendering.encode(pairs[i].prompt, pairs[i].rejected))
        for i in in_heeds_order(count, case["batch"])
    ]


def work(case: dict[str, Any], config: Any, *, reference: bool) -> dict[str, Any]:
    """Tokens, updates and operations of all steps but the first."""
    flops, total, tokens = Flops.of(config), 0.0, 0
    for pair in encoded_pairs(case)[case["batch"] :]:
        prompt = pair[0].prompt_length
        total += (TRAINING + reference) * flops.language_model(prompt, [len(s.ids) - prompt for s in pair])
        tokens += sum(len(s.ids) for s in pair)
    return {"tokens": tokens, "items": case["steps"], "flops": total}


def heed(case: dict[str, Any], meter: Meter) -> Measured:
    included = case["reference"] == "included"
    policy = policy_of(case["shape"], case.get("vocabulary"))
    pairs = hh_pairs(policy.tokenizer, case["batch"] * (case["steps"] + 1))
    run = TimedRun(meter)
    config = DPOConfig(lr=LEARNING_RATE, batch_size=case["batch"], precision="fp32", schedule="constant", warmup_fraction=0, beta=BETA)
    meter.ready(policy.model)
    with run:
        train_dpo(policy, renderer(policy.tokenizer), pairs, config, run)
    loss = run.rows[1]["loss"]
    found = meter.result(**work(case, policy.model.config, reference=included), loss=loss)
    if not included:
        return found
    # What came before the first update's end, but for the update itself, is spread over all of them.
    before = meter.times[1] - meter.times[0] - found.seconds
    return replace(found, seconds=found.seconds + max(before, 0) / (case["steps"] + 1))


def given_ids(trainer: Any) -> Any:
    """The trainer, taking token ids as they are: its own tokenising joins prompt and response, which may merge tokens across the seam."""
    return type(trainer.__name__, (trainer,), {"_prepare_dataset": lambda self, dataset, *rest: dataset})


def dpo_trainer(case: dict[str, Any], meter: Meter) -> Measured:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    included = case["reference"] == "included"
    rows = []
    for chosen, rejected in encoded_pairs(case):
        start = chosen.prompt_length
        rows.append(
            {"prompt_ids": list(chosen.ids[:start]), "chosen_ids": list(chosen.ids[start:]), "rejected_ids": list(rejected.ids[start:])}
        )
    folder = model_folder(case["shape"], case.get("vocabulary"))
    settings_class, trainer_class = trl("DPOConfig"), given_ids(trl("DPOTrainer"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    meter.ready(model)
    clock = Clock(meter)
    config = settings_class(
        **settings(per_device_train_batch_size=case["batch"], train_sampling_strategy="sequential"),
        beta=BETA,
        max_length=None,
        precompute_ref_log_probs=not included,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = trainer_class(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock])
    quieten(trainer)
    meter.restart()
    trainer.train()
    return meter.result(**work(case, model.config, reference=included), loss=clock.losses[1])


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """The reference pass included, and cached."""
    # Logits of GPT-2's vocabulary for 8 pairs do not fit the peer into 24 GB.
    batch = 2 if options.quick or options.shape == "gpt2" else 8
    case = {"shape": options.shape, "steps": 1 if options.quick else options.steps, "batch": batch}
    model_folder(options.shape)
    targets = {"included": 7.0, "cached": 8.0}
    return [
        Comparison(
            f"DPO, {batch} pairs, reference {reference}, {options.shape}",
            case | {"reference": reference},
            "heed",
            "TRL DPOTrainer",
            target=target,
            memory_target=0.4,
        )
        for reference, target in targets.items()
    ]


if __name__ == "__main__":
    main(__file__, comparisons, {"heed": heed, "TRL DPOTrainer": dpo_trainer}, __doc__ or "")
