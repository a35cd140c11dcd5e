"""The transcripts of the HH data sets: `\\n\\nHuman: ...\\n\\nAssistant: ...` in one text (Bai et al. 2022, arXiv:2204.05862)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

from heed.records import Demonstration, Message, PreferencePair, Prompt, Ranking

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

R = TypeVar("R", Prompt, Demonstration, PreferencePair, Ranking)


def to_conversation(record: R) -> R:
    """The record with its plain-text prompt as messages: a transcript turn by turn, any other text as what the user says.

    Spaces around turns and responses go. What a transcript says before its first turn becomes a system message.
    """
    if isinstance(record, Prompt):
        return record if record.is_conversation else replace(record, text=_messages(str(record.text)))
    prompt = to_conversation(record.prompt)
    if isinstance(record, Demonstration):
        return replace(record, prompt=prompt, response=record.response.strip())
    if isinstance(record, PreferencePair):
        return replace(record, prompt=prompt, chosen=record.chosen.strip(), rejected=record.rejected.strip())
    return replace(record, prompt=prompt, responses=tuple(r.strip() for r in record.responses))


def _messages(text: str) -> tuple[Message, ...]:
    before, *turns = _TURN.split(text.removesuffix(ASSISTANT))
    if not turns:
        return (Message("user", text),)
    system = (Message("system", before.strip()),) if before.strip() else ()
    return system + tuple(Message(_ROLES[who], said.strip()) for who, said in zip(turns[::2], turns[1::2], strict=True))
