"""The world's tokenizer: every word of the corpus is one token, and anything else is its bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, END, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")

PIECES = r" ?\w+|[^\w\s]|\s+"
"""A word with the space before it, one punctuation mark, or other space."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}{{ raise_exception('only user and assistant speak here') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(texts: Iterable[str], context_length: int) -> PreTrainedTokenizerFast:
    """A lossless tokenizer whose words are those of the texts, the most frequent first."""
    words = Counter(piece for text in texts for piece in re.findall(PIECES, text))
    spelt = [_in_byte_letters(word) for word in sorted(words, key=lambda word: (-words[word], word))]
    tokens = dict.fromkeys((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *spelt))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # Without merges a piece is one token if the vocabulary has it whole, else one token for each byte.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def _in_byte_letters(piece: str) -> str:
    """The piece as byte-level models spell it: one printable letter for each byte."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece)[0][0]
