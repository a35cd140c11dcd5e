"""Rendering with tokenizers of every habit: where they put BOS, EOS and spaces, and what their chat templates do to a message."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from heed.data.readers import read_preferences
from heed.data.render import Renderer
from heed.errors import UserError
from heed.records import Message, PreferencePair, Prompt, TokenSequence

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_, BOS, EOS, _, IM_END, *_ = range(len(SPECIAL))
CORPUS = (
    "the cat sat on the mat",
    " and said: why not?\n\nHuman: because\n\nAssistant: Hello user, Hello assistant.",
    "system user assistant\n",
) * 3

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant speak here') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "thinking": THINKING, "llama": LLAMA, "zephyr": ZEPHYR, "endless": ENDLESS}


@cache
def byte_level(*, prefix_space: bool = False, start: tuple[str, ...] = (), end: tuple[str, ...] = ()) -> Any:
    """GPT-2's kind: bytes, no unknown text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet))
    return _dressed(backend, start, end)


@cache
def sentence_piece(*, start: tuple[str, ...] = ("<s>",), end: tuple[str, ...] = ()) -> Any:
    """Llama's kind: a space before every text, spaces shown as a bar, unknown characters as bytes."""
    vocabulary = {text: i for i, text in enumerate(SPECIAL)}
    for text in (*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "he", "▁t", "▁the", "▁▁"):
        vocabulary.setdefault(text, len(vocabulary))
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("▁", "▁")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return _dressed(backend, start, end)


def _dressed(backend: Tokenizer, start: Sequence[str], end: Sequence[str]) -> Any:
    if start or end:
        pieces = [(text, backend.token_to_id(text)) for text in {*start, *end}]
        backend.post_processor = processors.TemplateProcessing(single=[*start, "$A", *end], special_tokens=pieces)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def chatting(tokenizer: Any, template: str) -> Any:
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    copy.chat_template = TEMPLATES[template]
    return copy


def render(tokenizer: Any, *, eos_ids: Sequence[int] = (EOS, IM_END), max_length: int = 4096, **options: Any) -> Renderer:
    return Renderer(tokenizer, eos_ids=eos_ids, max_length=max_length, **options)


def parts(sequence: TokenSequence) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of prompt and of response; the mask must cover the end and nothing before it."""
    start = sequence.response_mask.index(True)
    assert sequence.response_mask == (False,) * start + (True,) * (len(sequence.ids) - start)
    return sequence.ids[:start], sequence.ids[start:]


PLAIN = {
    "bytes": byte_level,
    "bytes with bos": lambda: byte_level(start=("<s>",)),
    "bytes with bos and eos": lambda: byte_level(start=("<s>",), end=("</s>",)),
    "bytes with a space before": lambda: byte_level(prefix_space=True),
    "pieces": sentence_piece,
    "pieces without bos": lambda: sentence_piece(start=()),
}
TALK = Prompt((Message("user", "Why?"), Message("assistant", "Because."), Message("user", "And then?")))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30)


@pytest.mark.parametrize("kind", PLAIN)
@given(prompt=TEXTS, response=TEXTS)
def test_plain_text_is_kept_exactly(kind: str, prompt: str, response: str) -> None:
    tokenizer = PLAIN[kind]()
    renderer = render(tokenizer)
    before, after = parts(renderer.encode(Prompt(prompt), response))
    assert before == renderer.encode_prompt(Prompt(prompt))
    assert after[-1] == EOS
    assert not {BOS, EOS} & set(after[:-1])
    adds_bos = kind in ("bytes with bos", "bytes with bos and eos", "pieces")
    assert before.count(BOS) == (adds_bos or not prompt)
    assert EOS not in before
    assert renderer.decode(after) == response
    assert parts(renderer.encode(Prompt(prompt), response + "!", ended=False))[1][-1] != EOS


@pytest.mark.parametrize("make", [byte_level, sentence_piece], ids=["bytes", "pieces"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(response=TEXTS)
def test_conversations_keep_the_response_and_end_the_turn(make: Any, template: str, response: str) -> None:
    renderer = render(chatting(make(), template))
    before, after = parts(renderer.encode(TALK, response))
    assert before == renderer.encode_prompt(TALK)
    ends = {"chatml": IM_END, "thinking": IM_END}
    assert after[-1] == ends.get(template, EOS)
    assert not {BOS, EOS, IM_END} & set(after[:-1])
    lead = {"llama": " ", "zephyr": "\n"}.get(template, "")
    tail = {"llama": " ", "endless": "\n"}.get(template, "")
    said = response if response.startswith(lead) else lead + response
    assert renderer.decode(after) == said + tail
    assert renderer.encode(TALK, said) == renderer.encode(TALK, response)


@pytest.mark.parametrize("make", [byte_level, sentence_piece], ids=["bytes", "pieces"])
@pytest.mark.parametrize("template", ["chatml", "llama", "zephyr"])
def test_conversations_equal_the_templates_own_rendering(make: Any, template: str) -> None:
    tokenizer = chatting(make(), template)
    renderer = render(tokenizer)
    turns = [{"role": m.role, "content": m.content} for m in TALK.text if isinstance(m, Message)]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Hello."}], return_dict=False)
    sequence = renderer.encode(TALK, "Hello.")
    assert list(renderer.encode_prompt(TALK)) == prompt
    last = max(i for i, token in enumerate(whole) if token in renderer.eos_ids)
    assert tokenizer.decode(sequence.ids) == tokenizer.decode(whole[: last + 1])
    if make is byte_level:
        assert list(sequence.ids) == whole[: last + 1]
    assert sequence.ids.count(BOS) == (template == "llama")


def test_the_end_of_a_turn_is_the_first_stop_that_the_model_knows() -> None:
    tokenizer = chatting(byte_level(), "chatml")
    assert render(tokenizer, eos_ids=(IM_END,)).encode(TALK, "x").ids[-1] == IM_END
    # A model that stops only at </s> is taught to say it after the template's own end.
    assert render(tokenizer, eos_ids=(EOS,)).encode(TALK, "x").ids[-3:] == (IM_END, *tokenizer("\n")["input_ids"], EOS)
    assert render(tokenizer, eos_ids=()).encode(Prompt("a"), "b").ids == tuple(tokenizer("ab")["input_ids"])


def test_several_stops_and_a_pad_that_is_one() -> None:
    tokenizer = sentence_piece()
    renderer = render(tokenizer, eos_ids=(BOS, EOS))
    sequence = renderer.encode(Prompt("the"), " the")
    assert sequence.ids == (BOS, *tokenizer("the the", add_special_tokens=False)["input_ids"], EOS)
    assert tokenizer.pad_token_id == EOS
    assert sequence.response_mask[-2:] == (True, True)
    assert renderer.decode((*sequence.ids[2:], BOS, EOS)) == " the"
    tokenizer = byte_level()
    assert render(tokenizer, eos_ids=(IM_END,)).encode(Prompt("a"), "b").ids[-1] == IM_END


def test_a_prompt_of_no_tokens_opens_with_bos_or_else_eos() -> None:
    assert render(byte_level()).encode_prompt(Prompt("")) == (BOS,)
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, eos_token="</s>")
    assert render(bare).encode_prompt(Prompt("")) == (EOS,)
    with pytest.raises(UserError, match="a prompt without a single token"):
        render(bare, eos_ids=()).encode_prompt(Prompt(""))


def test_an_end_spelt_out_in_the_data_is_not_doubled() -> None:
    for tokenizer in (byte_level(start=("<s>",)), sentence_piece()):
        renderer = render(tokenizer)
        assert renderer.encode(Prompt("a"), "b</s>") == renderer.encode(Prompt("a"), "b")
        assert renderer.encode(Prompt("<s>a"), "b").ids.count(BOS) == 1
        # Anywhere else it is what somebody wrote about, never a token that would end the response.
        after = parts(renderer.encode(Prompt("a"), "b</s><s>c"))[1]
        assert [i for i in after if i in (BOS, EOS)] == [EOS]
        assert renderer.decode(after) == "b</s><s>c"


def test_encoders_close_with_their_separator() -> None:
    vocabulary = {text: i for i, text in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    assert parts(render(tokenizer, eos_ids=()).encode(Prompt("a cat"), " sat")) == ((2, 4, 5), (6, 3))


def test_prompts_are_cut_on_the_left_and_responses_on_the_right() -> None:
    tokenizer = byte_level(start=("<s>",))
    words = tokenizer("".join(f"{i % 10}" for i in range(50)), add_special_tokens=False)["input_ids"]
    assert len(words) == 50
    long, short = Prompt("0123456789" * 5), Prompt("01")
    renderer = render(tokenizer, max_length=20, max_prompt_length=8)
    assert renderer.encode_prompt(long) == (BOS, *words[-7:])
    assert renderer.truncations() == "1 of 1 prompts cut to their last 8 tokens"
    sequences = renderer.encode_all([(long, "0123456789" * 5), (long, "012"), (short, "0123456789"), (short, "0123456789" * 5)])
    assert [len(s.ids) for s in sequences] == [20, 12, 14, 20]
    assert [s.ids[-1] == EOS for s in sequences] == [False, True, True, False]
    assert sequences[0].ids[:8] == sequences[1].ids[:8] == (BOS, *words[-7:])
    assert sequences[0].ids[8:] == tuple(words[:12])
    assert sequences[3].ids == (BOS, *words[:2], *words[:17])
    assert renderer.counts == {"prompts": 5, "truncated_prompts": 3, "responses": 4, "truncated_responses": 2}
    assert renderer.truncations() == "3 of 5 prompts cut to their last 8 tokens; 2 of 4 responses cut to fit 20 tokens"
    assert render(tokenizer, max_length=20).max_prompt_length == 15
    assert render(tokenizer, max_length=2).encode(long, "012").ids == (BOS, words[0])
    assert render(tokenizer).truncations() == ""
    for length, prompt_length in ((1, None), (8, 8), (8, 0)):
        with pytest.raises(UserError, match="max_"):
            render(tokenizer, max_length=length, max_prompt_length=prompt_length)


def test_a_cut_conversation_keeps_bos_only_where_the_template_has_it() -> None:
    llama = render(chatting(sentence_piece(), "llama"), max_length=20, max_prompt_length=10).encode_prompt(TALK)
    assert (len(llama), llama[0], llama.count(BOS)) == (10, BOS, 1)
    chatml = render(chatting(byte_level(start=("<s>",)), "chatml"), max_length=20, max_prompt_length=10).encode_prompt(TALK)
    assert (len(chatml), BOS in chatml) == (10, False)


def test_what_a_model_cannot_render_is_a_users_error() -> None:
    with pytest.raises(UserError, match="no chat template; name a model with a chat template"):
        render(byte_level()).encode_prompt(TALK)
    with pytest.raises(UserError, match="refuses a conversation of system, user: Only user and assistant speak here"):
        render(chatting(byte_level(), "llama")).encode_prompt(Prompt((Message("system", "x"), Message("user", "y"))))
    mute = chatting(byte_level(), "chatml")
    mute.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="leaves out what the assistant says"):
        render(mute).encode(TALK, "x")


def test_batches_equal_single_calls_and_share_prompts() -> None:
    tokenizer = chatting(sentence_piece(), "chatml")
    items = [(TALK, "Hello."), (Prompt("the"), " cat"), (TALK, ""), (Prompt("the"), " cat"), (Prompt(""), "the")]
    assert render(tokenizer).encode_all(items) == [render(tokenizer).encode(*item) for item in items]
    assert render(tokenizer).encode_all(iter(())) == []
    assert render(tokenizer).encode_prompts([TALK, Prompt("x"), TALK]) == [
        render(tokenizer).encode_prompt(p) for p in (TALK, Prompt("x"), TALK)
    ]


def test_a_real_model_reads_real_preferences(stories260k: Path, hh_harmless: Path) -> None:
    """A tokenizer without chat template, whose BOS ends a story and whose pad is EOS, on all of the HH transcripts."""
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    renderer = render(tokenizer, eos_ids=(1, 2), max_length=10_000)
    pairs = [pair for pair in read_preferences(hh_harmless).records if isinstance(pair, PreferencePair)]
    items = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    for (prompt, response), sequence in zip(items, renderer.encode_all(items), strict=True):
        before, after = parts(sequence)
        assert before == tuple(tokenizer(prompt.text)["input_ids"])
        assert (before.count(1), after[-1], renderer.decode(after)) == (1, 2, response)
        assert not {1, 2} & set(after[:-1])
    assert renderer.truncations() == ""
    assert renderer.counts["responses"] == 3000
