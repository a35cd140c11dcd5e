"""Live sampling: a policy answers the prompts that wait, so that annotators always judge what the newest checkpoint says."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from heed.errors import Interrupted, UserError
from heed.feedback.waiting import Batch, WaitingPrompts, opening
from heed.records import Prompt, Response

POLL_SECONDS = 2.0
"""Between two looks at what annotators need, and at whether there is a newer checkpoint."""
AT_ONCE = 8
"""Prompts in a batch: few, so that responses are there soon, and are those of the newest checkpoint."""
TRIES = 3
"""Times that a prompt is answered until it has different responses."""

Respond = Callable[[Sequence[Prompt], int], list[list[str]]]
"""Samples that many responses to each prompt."""


class Checkpoint(NamedTuple):
    """A policy as it lies on disk."""

    path: str
    """A model folder or id."""
    version: str
    """Changes whenever the weights do."""
    run: str = ""
    """The run that made it."""


class Sampler:
    """Answers the waiting prompts of one project with the newest checkpoint.

    `newest` finds that checkpoint and `load` makes a policy of it; `sampling` is kept with the responses as how they were drawn.
    """

    def __init__(
        self,
        waiting: WaitingPrompts,
        project_id: int,
        newest: Callable[[], Checkpoint],
        load: Callable[[Checkpoint], Respond],
        sampling: Mapping[str, object],
        say: Callable[[str], None] = print,
    ) -> None:
        self.waiting, self.project_id = waiting, project_id
        self.newest, self.load = newest, load
        self.sampling, self.say = sampling, say
        self._checkpoint: Checkpoint | None = None
        """What was loaded last, or did not load."""
        self._respond: Respond | None = None

    def run(self, *, ahead: int, once: bool = False) -> None:
        """Keep `ahead` items waiting that no annotator has begun, until a signal; with `once`, answer all that waits and return.

        SIGINT and SIGTERM give a batch that is under way back and raise Interrupted. A prompt that the policy refuses is left out.
        UserError where the first checkpoint does not load, or where one refuses all of a batch and what was answered before it.
        """
        resting = False
        with _stoppable() as stop:
            while True:
                with stop.allowed():
                    ready = self._load_newest()
                batch = self.waiting.take(self.project_id, AT_ONCE, None if once else ahead) if ready else None
                if batch is not None:
                    self._answer(batch, stop)
                elif once and ready:
                    return
                elif not resting:
                    self.say(f"{self._told()}; they are answered as annotators need them")
                resting = batch is None
                if resting:
                    with stop.allowed():
                        time.sleep(POLL_SECONDS)

    def _load_newest(self) -> bool:
        """Load the newest checkpoint unless it is loaded; False where it does not load, so that a newer one has to be waited for."""
        while (found := self.newest()) != self._checkpoint:
            first, self._checkpoint, self._respond = self._checkpoint is None, found, None  # never two of them in memory
            self.say(f"loading {found.path}")
            try:
                self._respond = self.load(found)
            except UserError as error:
                if self.newest() != found:  # it was being written, or taken away
                    continue
                if first:
                    raise
                self.say(f"{error}; waits for another checkpoint")
        return self._respond is not None

    def _answer(self, batch: Batch, stop: _Stop) -> None:
        try:
            with stop.allowed():
                sampled = self._sample(batch)
            refused = [(prompt, found) for prompt, found in zip(batch.prompts, sampled, strict=True) if isinstance(found, UserError)]
            if len(refused) == len(batch.prompts):
                self._check_policy(refused[0][1], stop)
            added = self.waiting.answer(batch, sampled)
        finally:
            self.waiting.give_back(batch)  # nothing, where all was answered
        for prompt, error in refused:
            self.say(f"left out: {opening(prompt)!r}: {error}")
        few = f", {added.too_few} prompts left out: their responses are all alike" if added.too_few else ""
        refusals = f", {len(refused)} prompts left out: the policy refuses them" if refused else ""
        self.say(f"{added.new} new items{few}{refusals}; {self._told()}")

    def _check_policy(self, error: UserError, stop: _Stop) -> None:
        """Raise UserError unless a policy that refuses all of a batch answers what was answered last: then the prompts are at fault."""
        answered = self.waiting.last_answered(self.project_id)
        with stop.allowed():
            if answered is None or isinstance(self._ask([answered], 1)[0], UserError):
                raise UserError(
                    f"the policy answers no prompt: {error}", fix="name another policy, or clear the prompts on the import page"
                )

    def _sample(self, batch: Batch) -> list[list[Response] | UserError]:
        """Responses to each prompt, or why the policy refuses it; where they are too much alike, others are tried."""
        assert self._checkpoint is not None
        texts: list[list[str] | UserError] = [[] for _ in batch.prompts]
        for _ in range(TRIES):
            alike = [(i, found) for i, found in enumerate(texts) if isinstance(found, list) and len(set(found)) < batch.num_different]
            if not alike:
                break
            answers = self._ask([batch.prompts[index] for index, _ in alike], batch.num_responses)
            for (index, before), new in zip(alike, answers, strict=True):
                texts[index] = new if isinstance(new, UserError) else before + new
        source = {"model": self._checkpoint.path, "sampling": self.sampling, "run": self._checkpoint.run}

        def kept(found: Sequence[str]) -> list[Response]:
            return [Response(text, **source) for text in list(dict.fromkeys(found))[: batch.num_responses]]

        return [found if isinstance(found, UserError) else kept(found) for found in texts]

    def _ask(self, prompts: Sequence[Prompt], num_responses: int) -> list[list[str] | UserError]:
        """Texts for each prompt, or why the policy refuses it: where it refuses several, one at a time tells which."""
        assert self._respond is not None
        try:
            responses = self._respond(prompts, num_responses)
        except UserError as error:
            return [error] if len(prompts) == 1 else [self._ask([prompt], num_responses)[0] for prompt in prompts]
        # A model may write any character, and databases keep all but one.
        return [[text.replace("\0", "\N{REPLACEMENT CHARACTER}") for text in texts] for texts in responses]

    def _told(self) -> str:
        return f"{self.waiting.count(self.project_id):,} prompts wait"


class _Stop:
    """A signal to stop, which is obeyed where that does no harm: in the middle of a transaction it waits."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._allowed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if self._allowed:
            raise Interrupted(number)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        try:
            if self._number is not None:
                raise Interrupted(self._number)
            yield
        finally:
            self._allowed = False


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
