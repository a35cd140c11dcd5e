"""`heed feedback sample`."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Annotated, Literal

import tyro

from heed.errors import Interrupted, UserError, require
from heed.feedback.database import Database
from heed.feedback.projects import Projects
from heed.feedback.sampler import POLL_SECONDS, Checkpoint, Respond, Sampler
from heed.feedback.waiting import WaitingPrompts
from heed.pipeline.device import check_device
from heed.pipeline.newest import newest_policy
from heed.records import Prompt, Sampling

PARENT = "HEED_PARENT"
"""In the environment: the process to end with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePrompts:
    """Answer a project's waiting prompts with a policy as annotators need them, always with the newest checkpoint."""

    database: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATABASE")]
    """A file, or a URL such as postgresql+psycopg://..."""
    project: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROJECT")]
    """The project's name."""
    policy: str
    """A model folder or Hugging Face id, `testbed` for the built-in one, or the folder of a run, of which the newest policy is taken."""
    ahead: int = 20
    """Items that are kept ready: answered prompts that no annotator has begun."""
    temperature: float = 1.0
    max_new_tokens: int = 64
    """The longest response."""
    prompts: str | None = None
    """First let these prompts wait: a file, a Hugging Face data set id, or `testbed:prompts`."""
    once: bool = False
    """Answer all that waits, and end."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How weights are held in memory."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""

    def __call__(self) -> None:
        parent = os.environ.get(PARENT)
        if parent is not None:
            _end_with(int(parent))
        with nullcontext() if parent is None else suppress(Interrupted):  # whoever stops it then knows of that
            self._run()

    def _run(self) -> None:
        check_device(self.device)
        require(self.ahead > 0, "ahead", self.ahead, "1 or more")
        require(self.temperature > 0, "temperature", self.temperature, "above 0: responses to one prompt are to differ")
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        if "://" not in self.database and not Path(self.database).is_file():
            raise UserError("there is no such file", file=self.database, expected="a feedback database")
        newest_policy(self.policy)  # before anything that takes long
        with closing(Database(self.database)) as database:
            project, waiting = Projects(database).get(self.project), WaitingPrompts(database)
            if self.prompts is not None:
                added = waiting.add(project.id, _read(self.prompts), None)
                print(f"{added.new:,} new prompts wait{f', {added.known:,} known' if added.known else ''}", flush=True)
            source = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
            sampler = Sampler(
                waiting, project.id, lambda: newest_policy(self.policy), lambda found: self._load(found, sampling), source, _say
            )
            sampler.run(ahead=self.ahead, once=self.once)

    def _load(self, checkpoint: Checkpoint, sampling: Sampling) -> Respond:
        from transformers.utils import logging

        from heed.models.loading import load_policy
        from heed.pipeline.runner import free_memory
        from heed.pipeline.sources import make_renderer, model_path
        from heed.rollout.local import LocalEngine

        logging.disable_progress_bar()  # it would tear the lines apart
        free_memory()
        policy = load_policy(model_path(checkpoint.path), device=self.device, dtype=self.dtype)
        renderer = make_renderer(policy, policy.context_length, sampling.max_new_tokens)
        # A seed of its own, as two samplers, or one that starts again, are not to say the same.
        engine = LocalEngine(policy, renderer, seed=secrets.randbits(32))

        def respond(prompts: Sequence[Prompt], num_responses: int) -> list[list[str]]:
            rollouts = engine.generate(prompts, sampling, num_responses)
            if renderer.truncations():
                _say(renderer.truncations())
                renderer.counts.clear()
            texts = [rollout.text for rollout in rollouts]
            return [texts[start : start + num_responses] for start in range(0, len(texts), num_responses)]

        return respond


def _say(line: str) -> None:
    print(line, flush=True)


def _read(spec: str) -> list[Prompt]:
    from heed.pipeline.sources import read

    loaded = read("prompts", spec)
    _say(f"{spec}: {loaded.summary()}")
    return loaded.records


def _end_with(parent: int) -> None:
    """Stop this process when the one that started it has ended, however that did."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()
