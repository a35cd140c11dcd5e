"""What a row of data means: the formats people have, told apart by their fields, and read strictly into records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeAlias

from heed.data.sources import Malformed
from heed.data.transcripts import ASSISTANT, HUMAN
from heed.records import Demonstration, Message, PreferencePair, Prompt, Ranking

Record: TypeAlias = Prompt | Demonstration | PreferencePair | Ranking
Layout: TypeAlias = tuple[str, ...]
"""The fields a row must have, by which its format is known."""
Fields: TypeAlias = Mapping[str, Any]

RANKING = ("prompt", "responses", "ranks")
PAIR = ("prompt", "chosen", "rejected")
IMPLICIT_PAIR = ("chosen", "rejected")
MESSAGES = ("messages",)
RESPONSE = ("prompt", "response")
COMPLETION = ("prompt", "completion")
LABELLED = (("prompt", "response", "label"), ("prompt", "completion", "label"))
"""A response that is good (true) or bad (false): read for its texts, and never as a demonstration, for many are bad."""
PROMPT = ("prompt",)
HALVES = (
    ("responses", "ranks", "a row with one `response` for each"),
    ("chosen", "rejected", "`response` where nothing is compared"),
    ("rejected", "chosen", "the prompt alone"),
)
"""What says nothing without the other, which is misspelt or empty where the row passes for a prompt."""

PREFERENCES = (RANKING, PAIR, IMPLICIT_PAIR)
DEMONSTRATIONS = (MESSAGES, RESPONSE, COMPLETION, PAIR, IMPLICIT_PAIR)
ANY = (RANKING, PAIR, IMPLICIT_PAIR, MESSAGES, *LABELLED, RESPONSE, COMPLETION, PROMPT)

_ROLES = ("system", "user", "assistant", "tool")


class Uninformative(Exception):
    """A well-formed row that says nothing a model could learn: it is skipped and counted."""


def layout_of(fields: object, layouts: Sequence[Layout]) -> Layout:
    """The first of `layouts` whose fields a row has; raises `Malformed` where there is none."""
    if not isinstance(fields, Mapping):
        raise Malformed(f"{_kind(fields)}", "an object with fields")
    found = next((layout for layout in layouts if _has(fields, layout)), None)
    # Good and bad go by many names (true, 1, "chosen"), and what cannot be told apart from them must not be imitated.
    if found in (RESPONSE, COMPLETION) and not set(LABELLED) <= set(layouts) and fields.get("label") is not None:
        raise Malformed(
            f"a response with the `label` {fields['label']!r:.40}",
            "demonstrations, which have none: keep the good responses alone, and remove or rename the column",
        )
    for here, missing, otherwise in HALVES if found == PROMPT else ():
        if _has(fields, (here,)) and not _has(fields, (missing,)):
            raise Malformed(f"`{here}` without `{missing}`", f"`{missing}` too, or {otherwise}")
    if found is None:
        names = ", ".join(f"{name} (null)" if value is None else str(name) for name, value in fields.items())
        raise Malformed(f"the fields {names or '(none)'}", " or ".join(" + ".join(layout) for layout in layouts))
    return found


def _has(fields: Fields, layout: Layout) -> bool:
    """Whether all fields are there; a `label` that is not true or false names no format."""
    there = all(fields.get(name) is not None for name in layout)
    return there and (layout not in LABELLED or isinstance(fields["label"], bool))


def describe(layout: Layout, prompt: Prompt) -> str:
    """The format of a row in words, such as `prompt + chosen + rejected (conversations)`."""
    if prompt.is_conversation:
        style = "conversations"
    else:
        style = "transcripts" if layout == IMPLICIT_PAIR and str(prompt.text).endswith(ASSISTANT) else "text"
    return f"{' + '.join(layout)} ({style})"


def parse(fields: Any, layout: Layout) -> Record:
    """The record that a row of this layout holds; raises `Malformed` or `Uninformative`."""
    return _PARSERS[layout](fields)


def _ranking(fields: Fields) -> Ranking:
    values, ranks = fields["responses"], fields["ranks"]
    if not isinstance(values, list) or len(values) < 2:
        raise Malformed(f"`responses` is {_kind(values)}", "a list of 2 or more responses")
    if not isinstance(ranks, list):
        raise Malformed(f"`ranks` is {_kind(ranks)}", "a list with one rank per response")
    if len(ranks) != len(values):
        raise Malformed(f"{len(ranks)} `ranks` for {len(values)} `responses`", "one rank per response")
    wrong = next((rank for rank in ranks if type(rank) is not int or rank < 1), None)
    if wrong is not None:
        raise Malformed(f"the rank {wrong!r}", "whole numbers from 1, which is best; equal ranks are ties")
    # That a model said nothing at all is a response, and people rank it.
    prompt, responses = _answers(fields, {f"responses[{i}]": value for i, value in enumerate(values)}, empty=True)
    if len(set(responses)) == 1:
        raise Uninformative("all responses are identical")
    return Ranking(prompt, responses, tuple(ranks), weight=_number(fields, "weight", 1.0))


def _pair(fields: Fields) -> PreferencePair:
    prompt, (chosen, rejected) = _answers(fields, {"chosen": fields["chosen"], "rejected": fields["rejected"]}, blank=True)
    return _preference(fields, prompt, chosen, rejected)


def _implicit_pair(fields: Fields) -> PreferencePair:
    if isinstance(fields["chosen"], list) or isinstance(fields["rejected"], list):
        return _pair(fields)
    chosen, rejected = _text(fields["chosen"], "chosen"), _text(fields["rejected"], "rejected")
    if chosen == rejected:
        raise Uninformative("chosen and rejected are identical")
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    end = _end_of_prompt(shared, transcript=ASSISTANT in chosen)
    answers = chosen[end:], rejected[end:]
    if not all(answers):
        raise Uninformative("a response is empty")
    if any(HUMAN in answer for answer in answers):
        raise Uninformative("the transcripts part before their last turn")
    return _preference(fields, Prompt(shared[:end], _tags(fields)), *answers)


def _end_of_prompt(shared: str, *, transcript: bool) -> int:
    """Where two texts that begin alike stop being their prompt: after the last `Assistant:`, or before the last space."""
    if transcript:
        end = shared.rfind(ASSISTANT)
        if end >= 0:
            return end + len(ASSISTANT)
        raise Malformed("`chosen` and `rejected` answer different prompts", f"the same transcript up to {ASSISTANT!r}")
    end = max(shared.rfind(space) for space in " \n\t")
    if shared[: max(end, 0)].strip():
        return end
    raise Malformed("no `prompt`, and `chosen` and `rejected` begin differently", "a `prompt`, or two texts that begin with it")


def _preference(fields: Fields, prompt: Prompt, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise Uninformative("chosen and rejected are identical")
    return PreferencePair(
        prompt,
        chosen,
        rejected,
        label=_number(fields, "label", 1.0, high=1.0),
        margin=_number(fields, "margin", 0.0),
        weight=_number(fields, "weight", 1.0),
    )


def _messages_row(fields: Fields) -> Demonstration | Prompt:
    messages = _messages(fields["messages"], "messages")
    if messages[-1].role != "assistant":
        return Prompt(messages, _tags(fields))
    return Demonstration(_conversation(messages[:-1], "messages", fields), messages[-1].content)


def _demonstration(name: str) -> Callable[[Fields], Demonstration]:
    def parse_demonstration(fields: Fields) -> Demonstration:
        prompt, (response,) = _answers(fields, {name: fields[name]})
        return Demonstration(prompt, response)

    return parse_demonstration


def _prompt(fields: Fields) -> Prompt:
    value = fields["prompt"]
    if isinstance(value, list):
        return _conversation(_messages(value, "prompt"), "prompt", fields)
    return Prompt(_text(value, "prompt"), _tags(fields))


_PARSERS: dict[Layout, Callable[[Fields], Record]] = {
    RANKING: _ranking,
    PAIR: _pair,
    IMPLICIT_PAIR: _implicit_pair,
    MESSAGES: _messages_row,
    RESPONSE: _demonstration("response"),
    COMPLETION: _demonstration("completion"),
    **{layout: _demonstration(layout[1]) for layout in LABELLED},
    PROMPT: _prompt,
}


def _answers(fields: Fields, named: Mapping[str, object], **allowed: bool) -> tuple[Prompt, tuple[str, ...]]:
    """The prompt and the responses of a row, where every response is text or every one is a conversation that ends in it."""
    if not any(isinstance(value, list) for value in named.values()):
        prompt = _prompt(fields)
        responses = tuple(_text(value, name, **allowed) for name, value in named.items())
        # Some copies of the HH data give the prompt and repeat it in every transcript.
        repeated = isinstance(prompt.text, str) and prompt.text.endswith(ASSISTANT) and all(r.startswith(prompt.text) for r in responses)
        return prompt, tuple(r[len(prompt.text) :] for r in responses) if repeated else responses
    conversations = [_messages(value, name) for name, value in named.items()]
    for name, messages in zip(named, conversations, strict=True):
        if messages[-1].role != "assistant":
            raise Malformed(f"the last message of `{name}` is of role {messages[-1].role}", "one of the assistant")
    before = conversations[0][:-1]
    if any(messages[:-1] != before for messages in conversations):
        raise Uninformative("the conversations part before their last message")
    return _shared_prompt(fields, before, next(iter(named))), tuple(messages[-1].content for messages in conversations)


def _shared_prompt(fields: Fields, before: tuple[Message, ...], name: str) -> Prompt:
    """The prompt of responses that are conversations: the messages `before` the last, which a `prompt` may repeat."""
    if fields.get("prompt") is None:
        return _conversation(before, name, fields)
    prompt = _prompt(fields)
    given = (Message("user", prompt.text),) if isinstance(prompt.text, str) else prompt.text
    if not before:
        return Prompt(given, prompt.tags)
    repeated = any(m.content.strip() == given[0].content.strip() for m in before) if isinstance(prompt.text, str) else before == given
    if repeated:
        return _conversation(before, name, fields)
    raise Malformed(f"`{name}` begins with other messages than `prompt`", "the messages of `prompt` there, or only the response")


def _conversation(messages: tuple[Message, ...], name: str, fields: Fields) -> Prompt:
    if not messages:
        raise Malformed(f"`{name}` has nothing before the response", "what the user says first")
    if messages[-1].role == "assistant":
        raise Malformed(f"`{name}` has the assistant speak last before its response", "the user, or a tool")
    return Prompt(messages, _tags(fields))


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Malformed(f"`{name}` is {_kind(value)}", "a list of messages")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            found = f"an object with {', '.join(map(str, message))}" if isinstance(message, Mapping) and message else _kind(message)
            raise Malformed(f"`{name}[{i}]` is {found}", "a message with `role` and `content`")
        if message["role"] not in _ROLES:
            raise Malformed(f"`{name}[{i}]` has the role {message['role']!r}", ", ".join(_ROLES))
        messages.append(Message(message["role"], _text(message["content"], f"{name}[{i}].content")))
    return tuple(messages)


def _text(value: object, name: str, *, blank: bool = False, empty: bool = False) -> str:
    """A text that says something, or may be `blank`, of spaces only, or even `empty`."""
    if not isinstance(value, str):
        raise Malformed(f"`{name}` is {_kind(value)}", "text")
    if not (value.strip() or (blank and value) or empty):
        raise Malformed(f"`{name}` is empty", "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"`{name}` holds half a character ({value[error.start]!a})", "text in Unicode") from None
    return value


def _number(fields: Fields, name: str, default: float, *, high: float = math.inf) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= high:
        raise Malformed(f"`{name}` is {value!r}", "a number from 0" + (f" to {high:g}" if math.isfinite(high) else ""))
    return float(value)


def _tags(fields: Fields) -> dict[str, str]:
    """What the row says of its prompt; a column of that name with anything but names and texts is another data set's affair."""
    tags = fields.get("tags")
    said = {str(k): v for k, v in tags.items() if isinstance(v, str)} if isinstance(tags, Mapping) else {}
    for text in (*said, *said.values()):
        _text(text, "tags", empty=True)
    return said


def _kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    if isinstance(value, list | Mapping) and not value:
        return "an empty list" if isinstance(value, list) else "an empty object"
    if isinstance(value, list) and len(value) == 1:
        return "a list of 1"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
