"""`heed chat`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from heed.errors import UserError
from heed.models.loading import load_policy
from heed.pipeline.device import check_device
from heed.pipeline.newest import trained_policy
from heed.pipeline.sources import make_renderer, model_path
from heed.records import Message, Prompt, Sampling
from heed.rollout.local import LocalEngine


@dataclass(frozen=True, slots=True)
class Chat:
    """Talk to a model: a line is a turn, an empty line begins anew, the end of input ends the talk."""

    model: tyro.conf.Positional[str]
    """A model's folder or that of the run that trained it, a Hugging Face id, or `testbed` for the built-in one."""
    system: str | None = None
    """What the model is told before the first turn."""
    max_new_tokens: int = 256
    """The longest answer."""
    temperature: float = 0.7
    """0 always takes the likeliest token."""
    seed: int = 0
    device: str = "auto"

    def __call__(self) -> None:
        check_device(self.device)
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        policy = load_policy(model_path(trained_policy(self.model)), device=self.device)
        if self.system and not policy.tokenizer.chat_template:
            fix = "leave --system out, or name a model with a chat template"
            raise UserError(f"{self.model} has no chat template, and so no place for what --system says", fix=fix)
        room = min(self.max_new_tokens, policy.context_length // 2)
        engine = LocalEngine(policy, make_renderer(policy, policy.context_length, room), seed=self.seed)
        beginning = (Message("system", self.system),) if self.system else ()
        turns: tuple[Message, ...] = beginning
        interactive = sys.stdin.isatty()
        if interactive:
            print("A line is a turn; an empty line begins anew; Ctrl-D ends the talk.")
        while (line := _ask(interactive)) is not None:
            if not line.strip():
                turns = beginning
                continue
            turns = (*turns, Message("user", line))
            # A model without a template for chats continues a text.
            prompt = Prompt(turns) if policy.tokenizer.chat_template else Prompt(line)
            pieces = []
            for piece in engine.stream(prompt, sampling):
                print(piece, end="", flush=True)
                pieces.append(piece)
            print(flush=True)
            turns = (*turns, Message("assistant", "".join(pieces)))


def _ask(interactive: bool) -> str | None:
    """The next line, or None at the end of input."""
    try:
        line = input("> " if interactive else "")
        line.encode()  # where the locale is not UTF-8, Python lets other bytes in under cover
    except EOFError:
        return None
    except UnicodeError:
        raise UserError("a line of the input is not UTF-8", expected="text in UTF-8") from None
    return line
