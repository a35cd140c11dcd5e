"""Prompts and responses as token ids: chat templates, exact response masks, truncation that is counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from heed.errors import UserError, require
from heed.records import Message, Prompt, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHOR = "\n"
_PROBE = "RESPONSE"
_BATCH = 1024  # texts per call of the tokenizer, which holds hundreds of bytes for every token of a call


class Renderer:
    """Turns prompts and responses into token ids, the same way in training and in sampling.

    The ids of a response follow the ids of its prompt, whatever the response is: the prompt's ids are those a policy is sampled from.
    A plain prompt is tokenised as the tokenizer does it (with its BOS), and the response ends with EOS. A conversation goes through the
    chat template with its generation prompt, and the response ends as the template ends an assistant's turn, up to the first EOS.
    Prompts longer than `max_prompt_length` (default: three quarters of `max_length`) lose their oldest tokens but keep BOS; responses
    lose what does not fit into `max_length`, and with it their end.

    `counts` holds `prompts`, `truncated_prompts`, `responses` and `truncated_responses` of everything rendered so far.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, eos_ids: Sequence[int], max_length: int, max_prompt_length: int | None = None
    ) -> None:
        require(max_length >= 2, "max_length", max_length, "2 tokens or more")
        self.tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.max_length = max_length
        self.max_prompt_length = max_length * 3 // 4 if max_prompt_length is None else max_prompt_length
        require(1 <= self.max_prompt_length < max_length, "max_prompt_length", max_prompt_length, f"from 1 to {max_length - 1}")
        self.counts: Counter[str] = Counter()
        self._start, end = self._special_tokens()
        self._end = end or self._eos()
        # What eos_ids look like when a data set spells them out at the end of its responses.
        self._eos_texts = tuple(t for t in cast(list[str], tokenizer.convert_ids_to_tokens(list(eos_ids))) if t)
        self._anchor = self._find_anchor()
        self._anchor_text = self._text(self._anchor)
        self._turn: tuple[str, tuple[int, ...]] | None = None

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids a policy continues; raises `UserError` for a conversation where the tokenizer has no chat template."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """`encode_prompt` of many prompts at once, each distinct one tokenised once."""
        distinct = list(dict.fromkeys(prompts))
        encoded = dict(zip(distinct, self._tokenize([self._prompt_text(p) for p in distinct]), strict=True))
        return [self._cut_prompt(prompt, encoded[prompt]) for prompt in prompts]

    def encode(self, prompt: Prompt, response: str, *, ended: bool = True) -> TokenSequence:
        """Prompt and response as one sequence whose mask covers the response and, where it has `ended`, its end."""
        return self.encode_all([(prompt, response)], ended=ended)[0]

    def encode_all(self, items: Iterable[tuple[Prompt, str]], *, ended: bool = True) -> list[TokenSequence]:
        """`encode` of many responses at once, which is several times faster."""
        items = list(items)
        prompt_ids = self.encode_prompts([prompt for prompt, _ in items])
        response_ids = self._continue([self._response_text(prompt, response) for prompt, response in items])
        return [
            self._join(before, tuple(ids) + (self._ending(prompt) if ended else ()))
            for (prompt, _), before, ids in zip(items, prompt_ids, response_ids, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response ids without special tokens or end, spaces at its start included."""
        ids = list(ids)
        while ids and ids[-1] in self.eos_ids:
            ids.pop()
        return self._text([*self._anchor, *ids]).removeprefix(self._anchor_text)

    def is_byte(self, token: int) -> bool:
        """Whether a token stands for one byte of a character that has no token of its own, written `<0x0A>`."""
        return re.fullmatch("<0x[0-9A-F]{2}>", cast(str | None, self.tokenizer.convert_ids_to_tokens(token)) or "") is not None

    def truncations(self) -> str:
        """What was cut so far, in one line; empty where nothing was."""
        cut = [
            f"{self.counts[f'truncated_{name}']} of {self.counts[name]} {name} cut to {limit} tokens"
            for name, limit in (("prompts", f"their last {self.max_prompt_length}"), ("responses", f"fit {self.max_length}"))
            if self.counts[f"truncated_{name}"]
        ]
        return "; ".join(cut)

    # Text

    def _prompt_text(self, prompt: Prompt) -> str:
        if isinstance(prompt.text, str):
            return prompt.text
        return self._template(prompt.text, add_generation_prompt=True)

    def _response_text(self, prompt: Prompt, response: str) -> str:
        for text in self._eos_texts:
            response = response.removesuffix(text)
        lead = self._assistant_turn()[0] if prompt.is_conversation else ""
        return response if response.startswith(lead) else lead + response

    def _template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise UserError(
                "the data holds conversations but the model's tokenizer has no chat template",
                fix="name a model with a chat template, or use plain-text prompts",
            )
        from jinja2 import TemplateError

        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return cast(str, self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))
        except TemplateError as error:
            roles = ", ".join(m.role for m in messages)
            raise UserError(f"the model's chat template refuses a conversation of {roles}: {error}") from None

    def _assistant_turn(self) -> tuple[str, tuple[int, ...]]:
        """What the template puts between its generation prompt and a response if that is only space, and how it ends the turn."""
        if self._turn is None:
            user, assistant = Message("user", "Hello"), Message("assistant", _PROBE)
            before = self._template([user], add_generation_prompt=True)
            lead, found, end = self._template([user, assistant], add_generation_prompt=False).rpartition(_PROBE)
            if not found:
                raise UserError("the model's chat template leaves out what the assistant says", fix="name a model with another template")
            # Anything but space, such as an empty block of thoughts, is not what a policy is asked to continue.
            lead = lead.removeprefix(before) if lead.startswith(before) else ""
            ids = self._continue([end], control=True)[0]
            stop = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
            ending = tuple(ids) + self._eos() if stop is None else tuple(ids[: stop + 1])
            self._turn = (lead if lead.isspace() else "", ending)
        return self._turn

    # Token ids

    def _tokenize(self, texts: list[str], *, control: bool = True) -> list[list[int]]:
        """Ids of texts as they stand; with `control`, text that spells a special token is that token."""
        options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        ids: list[list[int]] = []
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            ids += self.tokenizer(batch, add_special_tokens=False, split_special_tokens=not control, **options)["input_ids"]
        return ids

    def _continue(self, texts: list[str], *, control: bool = False) -> list[list[int]]:
        """Ids of texts that continue another, without the space some tokenizers put before the start of every text."""
        if not self._anchor:
            return self._tokenize(texts, control=control)
        size = len(self._anchor)
        joint = self._tokenize([_ANCHOR + text for text in texts], control=control)
        apart = [ids[size:] if ids[:size] == self._anchor else None for ids in joint]
        return [self._tokenize([text], control=control)[0] if ids is None else ids for text, ids in zip(texts, apart, strict=True)]

    def _find_anchor(self) -> list[int]:
        """Ids of a line break where the tokenizer treats the start of a text differently; nothing where it does not."""
        anchor, alone, joint = self._tokenize([_ANCHOR, "a", _ANCHOR + "a"])
        return anchor if joint != anchor + alone and joint[: len(anchor)] == anchor else []

    def _special_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer itself puts before and after a text."""
        bare = self._tokenize(["a"])[0]
        dressed = cast(list[int], self.tokenizer("a")["input_ids"])
        starts = [i for i in range(len(dressed)) if bare and dressed[i : i + len(bare)] == bare]
        if not starts:
            raise UserError("the model's tokenizer cannot encode the letter a", expected="a tokenizer of text")
        return tuple(dressed[: starts[0]]), tuple(dressed[starts[0] + len(bare) :])

    def _eos(self) -> tuple[int, ...]:
        preferred = self.tokenizer.eos_token_id
        return (preferred,) if preferred in self.eos_ids else self.eos_ids[:1]

    def _ending(self, prompt: Prompt) -> tuple[int, ...]:
        return self._assistant_turn()[1] if prompt.is_conversation else self._end

    def _cut_prompt(self, prompt: Prompt, ids: Sequence[int]) -> tuple[int, ...]:
        ids = tuple(ids)
        start = self._start
        if ids[: len(start)] == start:
            ids = ids[len(start) :]
        elif prompt.is_conversation:
            start = ()
        self.counts["prompts"] += 1
        room = max(0, self.max_prompt_length - len(start))
        if len(ids) > room:
            self.counts["truncated_prompts"] += 1
            ids = ids[len(ids) - room :]
        return (start + ids)[: self.max_prompt_length] or self._opening()

    def _opening(self) -> tuple[int, ...]:
        """What stands for a prompt of no tokens, since a policy cannot continue nothing: BOS, or else EOS."""
        bos = self.tokenizer.bos_token_id
        opening = self._eos() if bos is None else (cast(int, bos),)
        if not opening:
            raise UserError("a prompt without a single token", fix="use prompts that say something, or a tokenizer with BOS or EOS")
        return opening

    def _join(self, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> TokenSequence:
        self.counts["responses"] += 1
        room = self.max_length - len(prompt_ids)
        if len(response_ids) > room:
            self.counts["truncated_responses"] += 1
            response_ids = response_ids[:room]
        return TokenSequence(prompt_ids + response_ids, (False,) * len(prompt_ids) + (True,) * len(response_ids))

    def _text(self, ids: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
