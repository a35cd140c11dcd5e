"""Training a reward model: heed against TRL 1.16's RewardTrainer.

    python benchmarks/bench_reward_model.py [--quick] [--repetitions 3] [--steps 3] [--shape 7m]

Both sides start from the same weights and head, in fp32, and see the same token ids in the same order: HH pairs of at most 1,024 tokens, 8
in a step, and rankings of 4 responses, 2 in a step, which TRL gets as the 12 pairs they stand for (each response encoded three times; heed
encodes it once, beside the others). One update a step with AdamW. The loss of the first step must agree. TRL takes a step as one batch,
padded to its longest sequence, as it does by default; activations are not checkpointed, which makes it faster than its default and larger.
heed trains with its defaults. Tokens are those TRL sees: prompts count with each of their responses.
"""

from __future__ import annotations

import argparse
from typing import Any

from flops import TRAINING, Flops
from heed_side import TimedRun, in_heeds_order
from inputs import hh_pairs, hh_rankings, model_folder, renderer, reward_model_folder
from measure import Comparison, Measured, Meter, main
from transformers import AutoTokenizer
from trl_side import LEARNING_RATE, Clock, quieten, settings, trl

from heed.data.render import Renderer
from heed.models import load_reward_model
from heed.records import PreferencePair, Ranking
from heed.training.reward_model import RewardModelConfig, train_reward_model


def items_of(case: dict[str, Any]) -> tuple[list[PreferencePair | Ranking], Renderer]:
    """One more step than is measured, in the order both sides take them."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(case["shape"]))
    count = case["batch"] * (case["steps"] + 1)
    items = hh_rankings(tokenizer, count, case["responses"]) if case["responses"] > 2 else hh_pairs(tokenizer, count)
    return list(items), renderer(tokenizer)


def pairs_of(item: PreferencePair | Ranking) -> tuple[PreferencePair, ...]:
    return item.pairs() if isinstance(item, Ranking) else (item,)


def work(items: list[PreferencePair | Ranking], rendering: Renderer, case: dict[str, Any], config: Any) -> dict[str, Any]:
    """Tokens, updates and operations of all steps but the first."""
    flops, tokens = Flops.of(config), 0
    total = 0.0
    for item in [items[i] for i in in_heeds_order(len(items), case["batch"])[case["batch"] :]]:
        responses = item.responses if isinstance(item, Ranking) else (item.chosen, item.rejected)
        encoded = [rendering.encode(item.prompt, response) for response in responses]
        prompt = encoded[0].prompt_length
        total += TRAINING * flops.body(prompt, [len(s.ids) - prompt for s in encoded], scores=True)
        tokens += sum(len(rendering.encode(p.prompt, response).ids) for p in pairs_of(item) for response in (p.chosen, p.rejected))
    return {"tokens": tokens, "items": case["steps"], "flops": total}


def heed(case: dict[str, Any], meter: Meter) -> Measured:
    items, rendering = items_of(case)
    model = load_reward_model(reward_model_folder(case["shape"]), device="cpu")
    run = TimedRun(meter)
    config = RewardModelConfig(lr=LEARNING_RATE, batch_size=case["batch"], precision="fp32", schedule="constant", warmup_fraction=0)
    meter.ready(model.model)
    with run:
        train_reward_model(model, rendering, items, config, run)
    return meter.result(**work(items, rendering, case, model.model.config), loss=run.rows[0]["loss"])


def reward_trainer(case: dict[str, Any], meter: Meter) -> Measured:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    items, rendering = items_of(case)
    order = in_heeds_order(len(items), case["batch"])
    pairs = [pair for i in order for pair in pairs_of(items[i])]
    rows = [
        {"chosen_ids": list(rendering.encode(p.prompt, p.chosen).ids), "rejected_ids": list(rendering.encode(p.prompt, p.rejected).ids)}
        for p in pairs
    ]
    folder = reward_model_folder(case["shape"])
    settings_class, trainer_class = trl("RewardConfig"), trl("RewardTrainer")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")
    meter.ready(model)
    clock = Clock(meter)
    config = settings_class(
        **settings(per_device_train_batch_size=len(pairs) // (case["steps"] + 1), train_sampling_strategy="sequential", max_length=None)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = trainer_class(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock])
    quieten(trainer)
    meter.restart()
    trainer.train()
    return meter.result(**work(items, rendering, case, model.config), loss=clock.losses[0])


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Pairs, and rankings of four."""
    common = {"shape": options.shape, "steps": 1 if options.quick else options.steps}
    reward_model_folder(options.shape)
    # Activations of more sequences in the shape of GPT-2 small do not fit the peer into 24 GB.
    small = options.quick or options.shape == "gpt2"
    return [
        Comparison(
            f"reward model, {2 if small else 8} pairs, {options.shape}",
            common | {"batch": 2 if small else 8, "responses": 2},
            "heed",
            "TRL RewardTrainer",
            target=4.0,
            memory_target=0.5,
        ),
        Comparison(
            f"reward model, {1 if small else 2} rankings of 4, {options.shape}",
            common | {"batch": 1 if small else 2, "responses": 4},
            "heed",
            "TRL RewardTrainer",
            target=10.0,
            memory_target=0.4,
        ),
    ]


if __name__ == "__main__":
    main(__file__, comparisons, {"heed": heed, "TRL RewardTrainer": reward_trainer}, __doc__ or "")
