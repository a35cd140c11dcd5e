"""The sampler's loop: enough items ahead, always from the newest checkpoint, and nothing lost when it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import pytest

from heed.errors import Interrupted, UserError
from heed.feedback import sampler as module
from heed.feedback.database import Database
from heed.feedback.sampler import TRIES, Checkpoint, Respond, Sampler
from heed.feedback.store import FeedbackStore
from heed.feedback.waiting import WaitingPrompts
from heed.records import Prompt
from tests.feedback.team import Team

PROMPTS = [Prompt(f"{number}?") for number in range(20)]


class Policies:
    """Checkpoints that come and go, and policies that say which one they are."""

    def __init__(self) -> None:
        self.newest = Checkpoint("first", "1", "run")
        self.loaded: list[str] = []
        self.broken: set[str] = set()
        self.during: Callable[[], None] = lambda: None
        """Happens while a policy is loaded or answers."""

    def load(self, checkpoint: Checkpoint) -> Respond:
        self.loaded.append(checkpoint.path)
        self.during()
        if checkpoint.path in self.broken:
            raise UserError(f"{checkpoint.path} does not load")

        def respond(prompts: Sequence[Prompt], num_responses: int) -> list[list[str]]:
            self.during()
            return [[f"{checkpoint.path} {prompt.text} {number}" for number in range(num_responses)] for prompt in prompts]

        return respond


class Desk:
    """A project with prompts that wait, a sampler of it, and what it said."""

    def __init__(self, database: Database) -> None:
        self.team, self.policies, self.told = Team(database), Policies(), list[str]()
        self.project = self.team.project(items=0, responses=3)
        self.waiting = WaitingPrompts(database)
        self.waiting.add(self.project.id, PROMPTS, None)
        self.sampler = Sampler(
            self.waiting, self.project.id, lambda: self.policies.newest, self.policies.load, {"temperature": 1.0}, self.told.append
        )

    def models(self) -> list[str]:
        """Which checkpoint answered each prompt."""
        store = FeedbackStore(self.team.database)
        return ["".join({r.model for r in store.responses(prompt)}) for prompt in PROMPTS]

    def untouched(self) -> int:
        return self.team.projects.progress()[self.project.id].waiting


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens in each pause of the loop; after the last, it is stopped."""
    left: list[Callable[[], None]] = []

    def nap(seconds: float) -> None:
        if not left:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            left.pop(0)()

    monkeypatch.setattr(module.time, "sleep", nap)
    return left


def test_once_answers_all_that_waits_and_returns(desk: Desk) -> None:
    desk.sampler.run(ahead=1, once=True)
    assert desk.waiting.count(desk.project.id) == 0
    assert desk.models() == ["first"] * 20
    response = FeedbackStore(desk.team.database).responses(PROMPTS[0])[0]
    assert (response.text, response.run, response.sampling) == ("first 0? 0", "run", {"temperature": 1.0})
    assert desk.told[-1].endswith("0 prompts wait")


def test_as_many_items_are_ready_as_asked_and_newer_checkpoints_answer_what_comes_after(desk: Desk, naps: list) -> None:
    ann = desk.team.annotator("ann")

    def annotate() -> None:
        assert desk.untouched() == 5
        desk.team.work(desk.project.id, ann, 3)
        desk.policies.newest = Checkpoint("second", "2")

    def look() -> None:
        assert desk.untouched() == 5

    naps += [annotate, look]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        desk.sampler.run(ahead=5)
    assert signal.getsignal(signal.SIGTERM) is before
    assert desk.models() == ["first"] * 5 + ["second"] * 3 + [""] * 12
    assert desk.policies.loaded == ["first", "second"]
    assert sum("as annotators need" in line for line in desk.told) == 2  # once for each pause, however long


def test_a_checkpoint_that_changes_while_it_is_loaded_is_loaded_again(desk: Desk) -> None:
    def replace() -> None:
        desk.policies.newest, desk.policies.during = Checkpoint("second", "2"), lambda: None

    desk.policies.during = replace
    desk.policies.broken = {"first"}  # half written
    desk.sampler.run(ahead=1, once=True)
    assert desk.models() == ["second"] * 20


def test_the_first_checkpoint_must_load_and_a_later_one_is_waited_for(desk: Desk, naps: list) -> None:
    desk.policies.broken = {"first", "second"}
    with pytest.raises(UserError, match="first does not load"):
        desk.sampler.run(ahead=5)
    desk.policies.broken = {"second"}
    desk.policies.newest = Checkpoint("first", "again")

    def appear(name: str) -> Callable[[], None]:
        return lambda: setattr(desk.policies, "newest", Checkpoint(name, name))

    naps += [appear("second"), lambda: None, appear("third")]
    with pytest.raises(Interrupted):
        desk.sampler.run(ahead=5)
    assert desk.policies.loaded == ["first", "first", "second", "third"]
    assert "second does not load; waits for another checkpoint" in desk.told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_policy_answers_gives_its_prompts_back(desk: Desk, number: signal.Signals) -> None:
    def stop() -> None:
        desk.policies.during = lambda: os.kill(os.getpid(), number)

    desk.policies.during = stop  # the first call loads, the second answers
    with pytest.raises(Interrupted):
        desk.sampler.run(ahead=5)
    assert desk.models() == [""] * 20
    batch = desk.waiting.take(desk.project.id, 100)
    assert batch is not None
    assert batch.prompts == tuple(PROMPTS)


def test_a_stop_in_the_middle_of_a_transaction_waits_for_its_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    store = module.WaitingPrompts.answer

    def answer(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return store(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module.WaitingPrompts, "answer", answer)
    with pytest.raises(Interrupted):
        desk.sampler.run(ahead=5)
    assert desk.models() == ["first"] * 5 + [""] * 15


def test_an_answer_that_fails_gives_its_prompts_back(desk: Desk) -> None:
    def fail() -> None:
        raise UserError("the model has no chat template")

    def loaded() -> None:
        desk.policies.during = fail

    desk.policies.during = loaded
    with pytest.raises(UserError, match="chat template"):
        desk.sampler.run(ahead=5)
    batch = desk.waiting.take(desk.project.id, 100)
    assert batch is not None
    assert len(batch.prompts) == 20


def refuses(desk: Desk, *refused: Prompt, checkpoint: str = "first") -> None:
    """Have a checkpoint refuse these prompts, alone or together with others."""
    answers = desk.policies.load

    def load(found: Checkpoint) -> Respond:
        respond = answers(found)

        def picky(prompts: Sequence[Prompt], num_responses: int) -> list[list[str]]:
            if found.path == checkpoint and any(prompt in refused for prompt in prompts):
                raise UserError("a system message")
            return respond(prompts, num_responses)

        return picky

    desk.sampler.load = load


def test_a_prompt_that_the_policy_refuses_is_left_out_and_the_others_of_its_batch_are_answered(desk: Desk) -> None:
    refuses(desk, PROMPTS[0], PROMPTS[12])
    desk.sampler.run(ahead=1, once=True)
    assert desk.models() == [""] + ["first"] * 11 + [""] + ["first"] * 7
    assert desk.waiting.count(desk.project.id) == 0
    assert [line for line in desk.told if line.startswith("left out")] == [f"left out: '{n}?': a system message" for n in (0, 12)]
    assert sum(line.startswith("7 new items, 1 prompts left out: the policy refuses them") for line in desk.told) == 2
    assert desk.waiting.add(desk.project.id, PROMPTS, None).new == 2


def test_a_policy_that_answers_nothing_of_the_first_batch_stops_the_sampler_and_no_prompt_is_lost(desk: Desk) -> None:
    refuses(desk, *PROMPTS[:8])
    with pytest.raises(UserError, match="the policy answers no prompt: a system message; name another policy, or clear the prompts"):
        desk.sampler.run(ahead=20)
    batch = desk.waiting.take(desk.project.id, 100)
    assert batch is not None
    assert batch.prompts == tuple(PROMPTS)


def test_a_batch_that_is_refused_whole_is_left_out_where_the_policy_still_answers_what_was_answered(desk: Desk) -> None:
    refuses(desk, *PROMPTS[8:16])
    desk.sampler.run(ahead=1, once=True)
    assert desk.models() == ["first"] * 8 + [""] * 8 + ["first"] * 4
    assert desk.waiting.count(desk.project.id) == 0


def test_a_sampler_that_starts_anew_leaves_a_lone_prompt_out_as_others_were_answered_before(desk: Desk, naps: list) -> None:
    with pytest.raises(Interrupted):
        desk.sampler.run(ahead=3)
    desk.sampler = Sampler(desk.waiting, desk.project.id, lambda: desk.policies.newest, desk.policies.load, {}, desk.told.append)
    refuses(desk, PROMPTS[3])
    with pytest.raises(Interrupted):
        desk.sampler.run(ahead=4)
    assert desk.models() == ["first"] * 3 + ["", "first"] + [""] * 15


def test_a_later_checkpoint_that_refuses_everything_stops_the_sampler_and_no_prompt_is_lost(desk: Desk, naps: list) -> None:
    refuses(desk, *PROMPTS, checkpoint="second")

    def replace() -> None:
        desk.policies.newest = Checkpoint("second", "2")
        desk.team.work(desk.project.id, desk.team.annotator("ann"), 1)

    naps += [replace]
    with pytest.raises(UserError, match="the policy answers no prompt"):
        desk.sampler.run(ahead=5)
    assert desk.models() == ["first"] * 5 + [""] * 15
    assert desk.waiting.count(desk.project.id) == 15


def test_prompts_are_tried_again_until_responses_differ_and_not_for_ever(desk: Desk) -> None:
    asked: dict[str, int] = {}

    def respond(prompts: Sequence[Prompt], num_responses: int) -> list[list[str]]:
        """The first prompt is always answered alike, the second from the second time on differently."""
        for prompt in prompts:
            asked[prompt.display()] = asked.get(prompt.display(), 0) + 1
        alike = {PROMPTS[0].id: True, PROMPTS[1].id: asked.get("1?", 0) < 2}
        return [["same" if alike.get(p.id) else f"nul \0 {i}" for i in range(num_responses)] for p in prompts]

    desk.sampler.load = lambda _: respond
    desk.sampler.run(ahead=1, once=True)
    assert (asked["0?"], asked["1?"], asked["2?"]) == (TRIES, 2, 1)
    assert desk.waiting.count(desk.project.id) == 0
    store = FeedbackStore(desk.team.database)
    assert {r.text for r in store.responses(PROMPTS[1])} == {"same", "nul \N{REPLACEMENT CHARACTER} 0", "nul \N{REPLACEMENT CHARACTER} 1"}
    assert desk.untouched() == 19
    assert any("1 prompts left out" in line for line in desk.told)
