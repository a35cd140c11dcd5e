"""Sampling: heed's engine against transformers' `generate` and its continuous batching, `generate_batch`.

    python benchmarks/bench_rollout.py [--quick] [--repetitions 3] [--steps 3] [--shape 7m]

All sample the exact policy (temperature 1, no truncation) of the same weights in fp32 from the same prompt ids, HH prompts in the tokenizer
of `stories260k`, and stop at the model's end-of-sequence ids or at the same length. Counted are useful tokens: those of a response up to
and with its end. `generate` takes all prompts as one left-padded batch with its default cache. `generate_batch` takes them as lists,
without CUDA graphs; its cache would else be 90 % of the machine's memory, so it gets room for the tokens that can be in flight, in pages
of 32 (the fastest of those tried), and starts afresh with every call, as it must where weights change in between. Several responses to a
prompt are `num_return_sequences` for both. heed returns the log-probability of every token as well; the peers are not asked for it. Each
step is one call; prompts are encoded outside the clock for the peers and inside for heed.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from flops import Flops
from inputs import hh_prompts, left_padded, model_folder, policy_of, renderer
from measure import Comparison, Measured, Meter, main
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from heed.records import Prompt, Sampling
from heed.rollout import LocalEngine


def prompts_of(case: dict[str, Any]) -> list[Prompt]:
    """Ragged openings of conversations, or prompts of at least the length they are cut to."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(case["shape"], case.get("vocabulary")))
    if case["ragged"]:
        return hh_prompts(tokenizer, case["prompts"], first_turn=True, max_length=case["prompt_tokens"])
    return hh_prompts(tokenizer, case["prompts"], min_length=case["prompt_tokens"], max_length=2**13)


def rendering_of(case: dict[str, Any], tokenizer: Any) -> Any:
    return renderer(tokenizer, case["prompt_tokens"], 2**14)


def result(case: dict[str, Any], meter: Meter, config: Any, prompts: list[int], responses: list[list[int]]) -> Measured:
    """What was sampled: for each measured call the lengths of its responses, those to one prompt together."""
    flops, n = Flops.of(config), case["n"]
    total = sum(flops.language_model(length, lengths[i * n : (i + 1) * n]) for lengths in responses for i, length in enumerate(prompts))
    return meter.result(tokens=sum(sum(lengths) for lengths in responses), items=sum(map(len, responses)), flops=total)


def heed(case: dict[str, Any], meter: Meter) -> Measured:
    policy = policy_of(case["shape"], case.get("vocabulary"))
    rendering, prompts = rendering_of(case, policy.tokenizer), prompts_of(case)
    lengths = []
    meter.ready(policy.model)
    engine = LocalEngine(policy, rendering, seed=0)  # from here on the heap keeps what is freed, of which nothing is idle
    for _ in range(case["steps"] + 1):
        rollouts = engine.generate(prompts, Sampling(max_new_tokens=case["new_tokens"]), case["n"])
        lengths.append([len(r.response_ids) for r in rollouts])
        meter.mark()
    return result(case, meter, policy.model.config, [len(ids) for ids in rendering.encode_prompts(prompts)], lengths[1:])


def generation_config(case: dict[str, Any], model: Any) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=case["new_tokens"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
        num_return_sequences=case["n"],
    )


def peer_inputs(case: dict[str, Any]) -> tuple[Any, list[list[int]]]:
    folder = model_folder(case["shape"], case.get("vocabulary"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa").eval()
    rendering = rendering_of(case, AutoTokenizer.from_pretrained(folder))
    return model, [list(ids) for ids in rendering.encode_prompts(prompts_of(case))]


def useful(ids: list[int], model: Any) -> int:
    """Tokens up to and with the first end."""
    told = model.generation_config.eos_token_id
    ends = told if isinstance(told, list) else [told]
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))


def generate(case: dict[str, Any], meter: Meter) -> Measured:
    model, prompts = peer_inputs(case)
    config = generation_config(case, model)
    lengths = []
    meter.ready(model)
    for _ in range(case["steps"] + 1):
        batch = left_padded(prompts, 0)
        found = model.generate(**batch, generation_config=config)
        lengths.append([useful(ids, model) for ids in found[:, batch["input_ids"].shape[1] :].tolist()])
        meter.mark()
    return result(case, meter, model.config, [len(ids) for ids in prompts], lengths[1:])


def generate_batch(case: dict[str, Any], meter: Meter) -> Measured:
    from transformers import ContinuousBatchingConfig

    model, prompts = peer_inputs(case)
    config = generation_config(case, model)
    page = 32
    pages = sum(math.ceil((len(ids) + case["new_tokens"]) / page) for ids in prompts) * case["n"]
    batching = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=pages + 2 * len(prompts),
        max_batch_tokens=max(512, len(prompts) * case["n"]),
        max_requests_per_batch=len(prompts) * case["n"],
        use_cuda_graph=False,
    )
    lengths = []
    meter.ready(model)
    for _ in range(case["steps"] + 1):
        found = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=batching)
        assert len(found) == len(prompts) * case["n"], "continuous batching lost requests"
        lengths.append([useful(output.generated_tokens, model) for output in found.values()])
        meter.mark()
    return result(case, meter, model.config, [len(ids) for ids in prompts], lengths[1:])


def cases(options: argparse.Namespace) -> list[tuple[str, dict[str, Any], tuple[float, ...]]]:
    """Each with the speed wanted against `generate` and, but for a single prompt, against `generate_batch`."""
    steps, small = (1, 4) if options.quick else (options.steps, 1)
    shape = options.shape
    stories = {"shape": "stories260k", "prompts": 128 // small, "ragged": True, "prompt_tokens": 100, "new_tokens": 400 // small, "n": 1}
    ragged = {"shape": shape, "prompts": 64 // small, "ragged": True, "prompt_tokens": 200, "new_tokens": 128 // small, "n": 1}
    shared = {"shape": shape, "prompts": 16 // small, "ragged": False, "prompt_tokens": 256, "new_tokens": 64 // small, "n": 8}
    single = {"shape": shape, "prompts": 1, "ragged": True, "prompt_tokens": 50, "new_tokens": 128 // small, "n": 1}
    natural = [(f"{stories['prompts']} ragged prompts, natural stops, stories260k", stories | {"steps": steps}, (3.0, 2.0))]
    return [
        *(natural if shape == "7m" else []),
        (f"{ragged['prompts']} ragged prompts x {ragged['new_tokens']} tokens, {shape}", ragged | {"steps": steps}, (2.5, 2.5)),
        (
            f"{shared['prompts']} prompts of 256 tokens, n = 8, {shared['new_tokens']} new tokens, {shape}",
            shared | {"steps": steps},
            (5.0, 5.0),
        ),
        (f"1 short prompt x {single['new_tokens']} tokens, {shape}", single | {"steps": 3 * steps}, (1.0,)),
    ]


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Every case against both."""
    model_folder(options.shape)
    return [
        Comparison(f"{name}, {peer}", case, "heed", peer, target=target, memory_target=None if case["prompts"] == 1 else 0.7)
        for name, case, targets in cases(options)[:: 2 if options.quick else 1]
        for peer, target in zip(("generate", "generate_batch"), targets, strict=False)
    ]


SIDES = {"heed": heed, "generate": generate, "generate_batch": generate_batch}

if __name__ == "__main__":
    main(__file__, comparisons, SIDES, __doc__ or "")
