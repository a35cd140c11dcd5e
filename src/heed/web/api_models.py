"""What the JSON API takes and gives. Where a record of the program says it already, the record itself is taken or given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PlainValidator, with_config

from heed.config import load_config
from heed.data.formats import PROMPT, parse
from heed.feedback.accounts import INVITATION_DAYS, MOST_A_DAY, Account, Role
from heed.feedback.annotators import AnnotatorQuality
from heed.feedback.categories import as_spelt
from heed.feedback.learning_curve import Forecast, Point
from heed.feedback.ordering import Reason
from heed.feedback.projects import Project, ProjectSettings
from heed.feedback.quality import Estimate, Progress, Quality, RatingAgreement
from heed.feedback.reward_agreement import ModelAgreement
from heed.feedback.tasks import Answer, Task
from heed.records import Message, Prompt, Response

T = TypeVar("T")
MAX_ITEMS = 1000
"""Items in one request: nobody else can save anything while they are added."""
LARGEST = 2**63 - 1
"""Readers of JSON differ in what becomes of a larger whole number."""
DEEPEST = 20
"""Lists and objects within each other."""

for _record in (ProjectSettings, Answer, Message, Response, Quality, Progress, RatingAgreement, AnnotatorQuality):
    with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))(_record)


def unkeepable(value: JsonValue) -> str | None:
    """What in a JSON value some database would refuse to keep, if anything."""
    left: list[tuple[JsonValue, int]] = [(value, 0)]
    while left:
        part, depth = left.pop()
        if isinstance(part, dict | list):
            if depth == DEEPEST:
                return f"lists and objects more than {DEEPEST} deep"
            parts = [*part, *part.values()] if isinstance(part, dict) else part
            left += [(each, depth + 1) for each in parts]
        elif isinstance(part, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in part):
            return "text with a NUL or half a character"
        elif isinstance(part, float) and not math.isfinite(part):
            return "a number that is not finite"
        elif isinstance(part, int) and not -LARGEST <= part <= LARGEST:
            return "a whole number beyond 64 bits"
    return None


def _strictly(record: type[T]) -> PlainValidator:
    """Reads a record as configuration is read: no unknown key, no value of another type; raises UserError."""

    def read(value: JsonValue) -> T:
        if not isinstance(value, Mapping):
            raise ValueError("expected an object")
        return load_config(record, value, "the request")

    return PlainValidator(read, json_schema_input_type=record)


def _prompt(value: JsonValue) -> Prompt:
    """Reads a prompt as files of data are read; raises ValueError."""
    found = parse({"prompt": value}, PROMPT)
    assert isinstance(found, Prompt)
    return found


_Something = Annotated[str, Field(pattern=r"\S")]
Text = str | tuple[Message, ...]
"""Of a prompt: plain text, or the messages of a conversation."""
Utc = Annotated[datetime, AfterValidator(lambda at: at.replace(tzinfo=UTC))]
GivenSettings = Annotated[ProjectSettings, _strictly(ProjectSettings)]
AnswerToTask = Annotated[Answer, _strictly(Answer)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Problem(_Model):
    """Why a request came to nothing."""

    error: str
    """What was found, what was expected, and what to do."""


class Page(_Model, Generic[T]):
    """Some entries of a long list."""

    entries: list[T]
    next: int | None
    """Gives the next page, as `after` (or `before`, where the newest come first); null on the last."""


class Person(_Model):
    """Someone with an account."""

    id: int
    name: str
    role: Role
    daily_cap: int | None
    """Answers a day at most; null: any number."""
    avoid: list[str]
    """Categories of content that this person is not shown."""
    created_at: Utc

    @classmethod
    def of(cls, account: Account) -> Person:
        return cls(
            id=account.id,
            name=account.name,
            role=account.role,
            daily_cap=account.daily_cap,
            avoid=list(account.avoid),
            created_at=account.created_at,
        )


class Limits(_Model):
    """What a person is asked to see."""

    daily_cap: int | None = Field(ge=1, le=MOST_A_DAY)
    """Answers a day at most; null: any number."""
    avoid: list[str] = Field(max_length=100)
    """Categories of content that are not shown to this person."""


class DailyCap(_Model):
    """How much a person may do."""

    daily_cap: int | None = Field(ge=1, le=MOST_A_DAY)
    """Answers a day at most; null: any number."""


class NewRole(_Model):
    """What a person may do from now on."""

    role: Role


class Pseudonym(_Model):
    """Of someone whose account was deleted."""

    pseudonym: str
    """What signs the judgements, which stay."""


class NewInvitation(_Model):
    """Whom a link invites."""

    role: Role
    days: float = Field(INVITATION_DAYS, gt=0, le=90)
    """How long the link is good."""


class Invitation(_Model):
    """A link that makes one account."""

    path: str
    """The link, within this server; told only now."""
    role: Role


class Counts(_Model):
    """How far a project is."""

    items: int
    gold: int
    """Items whose right answer is known."""
    waiting: int
    """Answers that are still wanted of items that are not gold."""
    waiting_prompts: int
    """Prompts that no policy has answered yet."""
    open: int
    """Tasks that annotators have before them."""
    answers: int
    """That stand."""
    skips: int


class ProjectState(_Model):
    """A project as it stands."""

    id: int
    name: str
    settings: ProjectSettings
    revision: int
    """To be named by whoever changes the settings."""
    archived: bool
    """Whether it gives out no more tasks."""
    counts: Counts | None = None
    """Where one project is asked for, by someone who may see it all."""

    @classmethod
    def of(cls, project: Project, counts: Counts | None = None) -> ProjectState:
        return cls(
            id=project.id,
            name=project.name,
            settings=project.settings,
            revision=project.revision,
            archived=project.archived,
            counts=counts,
        )


class NewProject(_Model):
    """What a team is to judge."""

    name: str
    """1 to 80 characters."""
    settings: GivenSettings = ProjectSettings()


class ChangedSettings(_Model):
    """Settings that take the place of a project's."""

    settings: GivenSettings
    revision: int
    """Of the settings that were changed; where someone else has changed them since, nothing happens."""


class Turn(_Model):
    """A message of a conversation to be answered."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(pattern=r"\S")


class NewPrompt(_Model):
    """A prompt that a policy is to answer."""

    prompt: Annotated[Prompt, PlainValidator(_prompt, json_schema_input_type=_Something | list[Turn])]
    """Plain text, or the messages of a conversation in which the assistant speaks next."""
    tags: dict[str, str] = {}
    """What is known of the prompt; `categories`, split at commas, says what it may hold that people asked not to see."""

    def tagged_prompt(self) -> Prompt:
        return replace(self.prompt, tags=self.tags)


class NewItem(NewPrompt):
    """A prompt with responses to it; where there are more than are shown together, they become several items."""

    responses: list[Response] = Field(min_length=1, max_length=100)
    gold: list[int] | None = None
    """The right ranks, where they are known: 1 is best, equal ranks are ties."""


class NewItems(_Model):
    """Items to be judged."""

    items: list[NewItem] = Field(min_length=1, max_length=MAX_ITEMS)


class NewPrompts(_Model):
    """Prompts that a policy is to answer."""

    prompts: list[NewPrompt] = Field(min_length=1, max_length=MAX_ITEMS)


class AddedPrompts(_Model):
    """What came of adding prompts."""

    new: int
    known: int
    """Prompts that waited already, were answered before, or came twice."""
    waiting: int
    """Prompts of the project that wait for a policy now."""


class ClearedPrompts(_Model):
    """What came of clearing prompts."""

    cleared: int
    """Prompts that waited, and wait no more."""


class AddedItems(_Model):
    """What came of adding items."""

    new: int
    known: int
    """Items that the project had, and that are left as they are."""
    too_few: int
    """Prompts with fewer different responses than are compared."""
    left_over: int
    """Responses that were alone after the others of their prompt had been put together."""


class Source(_Model):
    """Where a response came from."""

    model: str
    sampling: Mapping[str, Any]
    run: str


class SourcedResponse(_Model):
    """A response of an item."""

    text: str
    sources: list[Source]
    """More than one where several models wrote the same."""


class Decision(_Model):
    """A lead's own ranking of an item."""

    id: int
    by: str
    ranks: list[int]
    """Responses in the item's order."""
    note: str
    created_at: Utc


class Item(_Model):
    """A prompt with the responses to it that are judged together."""

    id: int
    prompt: Text
    tags: dict[str, str]
    responses: list[SourcedResponse]
    gold: list[int] | None
    waiting: int
    """Answers that are still wanted."""
    priority: float
    """How uncertain a reward model is of it."""
    decisions: list[Decision]


class DisputedItem(_Model):
    """An item that two annotators or more have judged."""

    item_id: int
    annotators: int
    disagreement: float
    """From 0, all say the same of every pair of responses, to 1, all say the opposite."""
    decided: bool
    """Whether a lead has ranked it."""


class LearningCurve(_Model):
    """How accurate reward models became from a part of a project's labels and from all of them, and what more would buy."""

    id: int
    model: str
    """What they were trained from."""
    points: list[Point]
    """The fewest labels first."""
    forecasts: list[Forecast]
    """At twice and four times the answers; empty where the points do not determine a curve."""
    created_at: Utc


class AgreementOver(_Model):
    """How far a reward model agrees with people over answers that came one after the other."""

    first: Utc
    last: Utc
    answers: int
    share: Estimate


class ScoredBy(_Model):
    """A reward model that scored responses of the project.

    Shares are of the pairs of which someone preferred one response, and count those in which it has the higher score. They are
    null where there are no such pairs.
    """

    id: int
    name: str
    """Where it was."""
    digest: str
    """Of its weights."""
    scored_at: Utc
    """When it scored the first."""
    answers: int
    """With a preference between responses that it has scored."""
    overall: Estimate | None
    since: Estimate | None
    """Over answers given after it had scored: it cannot have been trained on them."""
    control: Estimate | None
    """Of these later answers, over those to items that came at random."""
    uncertain: Estimate | None
    """And over those to items that came because a reward model was unsure of them."""
    slices: list[AgreementOver]
    """Oldest first, with equal numbers of answers."""

    @classmethod
    def of(cls, found: ModelAgreement) -> ScoredBy:
        return cls(
            id=found.model.id,
            name=found.model.name,
            digest=found.model.digest,
            scored_at=found.model.scored_at,
            answers=found.answers,
            overall=found.overall,
            since=found.since,
            control=found.control,
            uncertain=found.uncertain,
            slices=[AgreementOver(**part._asdict()) for part in found.slices],
        )


class NewDecision(_Model):
    """How a lead ranks an item, beside what the annotators said."""

    ranks: list[int]
    """A rank from 1, the best, for each response in the item's order."""
    note: str = ""


class Id(_Model):
    """What was made."""

    id: int


class GivenTask(_Model):
    """An item for an annotator to answer; who wrote the responses is not told."""

    lease_id: int
    """By which the task is answered or skipped."""
    item_id: int
    prompt: Text
    categories: list[str]
    """What it may hold that some people do not want to see."""
    responses: list[str]
    """In the order in which they are to be shown: answers mean the responses in this order."""
    answer: Answer | None
    """What was answered before it was undone."""

    @classmethod
    def of(cls, task: Task) -> GivenTask:
        categories = as_spelt(task.prompt.tags)
        return cls(
            lease_id=task.lease_id,
            item_id=task.item_id,
            prompt=task.prompt.text,
            categories=categories,
            responses=list(task.responses),
            answer=task.answer,
        )


class Skip(_Model):
    """Why an annotator can say nothing of a task."""

    reason: str
    """A few words."""
    note: str = ""


class GivenAnswer(_Model):
    """What an annotator said of an item, responses in the order shown."""

    id: int
    lease_id: int
    item_id: int
    annotator: str
    """The name, or the pseudonym of a deleted account."""
    prompt: Text
    responses: list[str]
    answer: Answer
    """Empty where the item was skipped."""
    skipped: str
    """Why nothing could be said; empty where something was."""
    seconds: float
    created_at: Utc
    undone_at: Utc | None
    """When the annotator took it back; it counts no more."""
    order: list[int] | None
    """Positions of the item's responses in the order shown; told to leads alone."""
    reason: Reason | None
    """Why the annotator got this item; told to leads alone."""


class Event(_Model):
    """An entry of the audit log."""

    id: int
    at: Utc
    by: str | None
    """The name, or the pseudonym of a deleted account; null where nobody was signed in."""
    action: str
    detail: dict[str, Any]
