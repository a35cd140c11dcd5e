"""The tables of a feedback store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import DDL, JSON, ForeignKey, Index, String, Text, UniqueConstraint, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def utc_now() -> datetime:
    """Without a zone, as databases keep it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class PromptRow(Base):
    """A prompt, known by the identity of its content."""

    __tablename__ = "prompts"

    number: Mapped[int] = mapped_column(primary_key=True)
    """Prompts in the order they were added."""
    id: Mapped[str] = mapped_column(String(16), unique=True)
    content: Mapped[Any] = mapped_column(JSON)
    """The text, or `[role, content]` of each message."""
    tags: Mapped[dict[str, str]] = mapped_column(JSON)


class ResponseRow(Base):
    """A response text; the same text to the same prompt is one response, whoever wrote it."""

    __tablename__ = "responses"
    __table_args__ = (UniqueConstraint("prompt_id", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    digest: Mapped[str] = mapped_column(String(64))
    """Hash of the text: databases do not index long texts."""
    text: Mapped[str]


class SourceRow(Base):
    """Where a response came from; two models that wrote the same text are two sources of one response."""

    __tablename__ = "sources"
    __table_args__ = (UniqueConstraint("response_id", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    response_id: Mapped[int] = mapped_column(ForeignKey("responses.id"))
    digest: Mapped[str] = mapped_column(String(64))
    """Hash of the columns below."""
    model: Mapped[str]
    sampling: Mapped[dict[str, Any]] = mapped_column(JSON)
    run: Mapped[str]


class JudgementRow(Base):
    """One annotator's ranking of some responses to one prompt."""

    __tablename__ = "judgements"

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), index=True)
    annotator: Mapped[str]
    seconds: Mapped[float | None]
    note: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    """UTC."""
    withdrawn_at: Mapped[datetime | None]
    """When its annotator took it back; it counts no more."""


class RankRow(Base):
    """The rank of one response in one judgement."""

    __tablename__ = "judgement_ranks"

    judgement_id: Mapped[int] = mapped_column(ForeignKey("judgements.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    """Index of the response in the judgement."""
    response_id: Mapped[int] = mapped_column(ForeignKey("responses.id"))
    rank: Mapped[int]
    shown: Mapped[int | None]
    """Its place on the annotator's screen, 0 first; empty where that was not recorded."""


class AccountRow(Base):
    """Someone who signs in, or whom a file named."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    """As signed in with, and as judgements are signed; a pseudonym once the account is deleted."""
    password: Mapped[str | None]
    """An argon2 hash; none for someone whom a file named, and once the account is deleted."""
    role: Mapped[str] = mapped_column(String(16))
    """`owner`, `lead`, `annotator` or `viewer`."""
    daily_cap: Mapped[int | None]
    """Answers a day at most."""
    avoid: Mapped[list[str]] = mapped_column(JSON)
    """Categories of content that are not shown to this person."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    deleted_at: Mapped[datetime | None]
    """When its name was forgotten."""

    @property
    def can_sign_in(self) -> bool:
        return self.password is not None and self.deleted_at is None


class SessionRow(Base):
    """Someone's being signed in, in one browser."""

    __tablename__ = "sessions"

    token: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the cookie."""
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    csrf: Mapped[str] = mapped_column(String(64))
    """What every form of this session must hold."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class ApiTokenRow(Base):
    """A key to the JSON API."""

    __tablename__ = "api_tokens"

    token: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the token."""
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    label: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class InvitationRow(Base):
    """A link that makes one account."""

    __tablename__ = "invitations"

    token: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of what the link holds."""
    role: Mapped[str] = mapped_column(String(16))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]
    accepted_by: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))


class ProjectRow(Base):
    """What a team judges, and how."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The fields of `labelling.ProjectSettings`."""
    revision: Mapped[int] = mapped_column(default=1)
    """Rises with every change, so that of two who edit at once the second is told."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    archived_at: Mapped[datetime | None]


# Written out, without parameters: databases use an index over some of the rows only where a query says so in the same words.
WAITING = text("remaining > 0")
"""Of items: annotators are still to be found."""
GOLD = text("gold IS NOT NULL")
"""Of items: the right answer is known."""
OPEN = text("state = 'open'")
"""Of leases: an annotator is at it."""
FIRST_TIME = text("reason <> 'again'")
"""Of leases: the annotator has not seen the item before."""
REPEATED = text("reason = 'again'")
"""Of leases: the annotator has."""


class ItemRow(Base):
    """A prompt with the responses to it that are judged together."""

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("project_id", "prompt_id", "digest"),
        Index("items_waiting", "project_id", "shuffle", sqlite_where=WAITING, postgresql_where=WAITING),
        Index("items_urgent", "project_id", "priority", "shuffle", sqlite_where=WAITING, postgresql_where=WAITING),
        Index("items_gold", "project_id", "shuffle", sqlite_where=GOLD, postgresql_where=GOLD),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    digest: Mapped[str] = mapped_column(String(64))
    """Of the responses' ids in the item's order."""
    remaining: Mapped[int]
    """Annotators that it still waits for; 0 for a gold item, which is given out beside the others."""
    shuffle: Mapped[float]
    """Its place in the random order."""
    priority: Mapped[float] = mapped_column(default=0.0)
    """How uncertain a reward model is of it; the highest comes first."""
    gold: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    """The right ranks, where they are known."""
    categories: Mapped[list[str]] = mapped_column(JSON)
    """What it may hold that people asked not to see, such as `violence`; case-folded."""


class ItemResponseRow(Base):
    """One of an item's responses."""

    __tablename__ = "item_responses"

    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    response_id: Mapped[int] = mapped_column(ForeignKey("responses.id"))


class LeaseRow(Base):
    """An item given to one annotator: open, or closed by an answer, a skip, or time."""

    __tablename__ = "leases"
    # No two people hold the same slot of an item, nobody holds two, and nobody is asked a third time: the database refuses it.
    __table_args__ = (
        UniqueConstraint("item_id", "slot"),
        Index("leases_once", "item_id", "account_id", unique=True, sqlite_where=FIRST_TIME, postgresql_where=FIRST_TIME),
        Index("leases_again", "item_id", "account_id", unique=True, sqlite_where=REPEATED, postgresql_where=REPEATED),
        Index("leases_open", "account_id", sqlite_where=OPEN, postgresql_where=OPEN),
        Index("leases_of_account", "account_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    slot: Mapped[int | None]
    """Which of the item's annotators this is; none for gold items, repetitions, and leases that came to nothing."""
    reason: Mapped[str] = mapped_column(String(16))
    """Why this item came next: `random`, `uncertain`, `gold` or `again`; `imported` where a file had the answer, and the order shown
    and the time taken are not known."""
    order: Mapped[list[int]] = mapped_column(JSON)
    """Positions of the item's responses in the order shown."""
    state: Mapped[str] = mapped_column(String(16), default="open")
    """`open`, `answered`, `skipped` or `expired`."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class AnswerRow(Base):
    """What an annotator said of an item: a judgement and all that goes beyond ranks, or why there is none."""

    __tablename__ = "answers"
    __table_args__ = (Index("answers_of_account", "account_id", "created_at"), Index("answers_in_order", "account_id", "id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    lease_id: Mapped[int] = mapped_column(ForeignKey("leases.id"), index=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    judgement_id: Mapped[int | None] = mapped_column(ForeignKey("judgements.id"))
    strength: Mapped[int | None]
    """Of a preference between two: 1 slightly to 4 far better; 0 a tie."""
    ratings: Mapped[dict[str, list[int | None]]] = mapped_column(JSON)
    """Per attribute, 1 to 7 for each response of the item."""
    flags: Mapped[dict[str, list[int]]] = mapped_column(JSON)
    """Per flag, the positions of the responses that have it."""
    ideal: Mapped[str] = mapped_column(default="")
    """The response that the annotator would have given."""
    skipped: Mapped[str] = mapped_column(default="")
    """Why nothing could be said."""
    note: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    undone_at: Mapped[datetime | None]


class DecisionRow(Base):
    """A lead's ranking of a disputed item, beside those of the annotators."""

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"))
    ranks: Mapped[list[int]] = mapped_column(JSON)
    note: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class WaitingPromptRow(Base):
    """A prompt of a project that a policy is to answer."""

    __tablename__ = "waiting_prompts"
    __table_args__ = (UniqueConstraint("project_id", "prompt_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    """Prompts are answered in this order."""
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    taken_until: Mapped[datetime | None]
    """When another sampler may take it; none where nobody has."""
    answered_at: Mapped[datetime | None]
    """When its responses were sampled."""


class RewardModelRow(Base):
    """A reward model that scored a project's responses."""

    __tablename__ = "reward_models"
    __table_args__ = (UniqueConstraint("project_id", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    """Where it was."""
    digest: Mapped[str] = mapped_column(String(64))
    """Hash of its weights: a folder may come to hold another model."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class RewardScoreRow(Base):
    """What a reward model gives a response."""

    __tablename__ = "reward_scores"

    reward_model_id: Mapped[int] = mapped_column(ForeignKey("reward_models.id"), primary_key=True)
    response_id: Mapped[int] = mapped_column(ForeignKey("responses.id"), primary_key=True)
    score: Mapped[float]


class LearningCurveRow(Base):
    """How accurate reward models became from a part of a project's labels, and from all of them."""

    __tablename__ = "learning_curves"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    model: Mapped[str]
    """What they were trained from."""
    points: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """Of each: how many answers and pairs it was trained on, and its accuracy on those held out, with an interval."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class AuditRow(Base):
    """Who changed what; the database refuses to change or delete a row."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    action: Mapped[str] = mapped_column(String(40))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


# A trigger and not a rule of the program: whoever reaches the database by another way cannot rewrite the log either.
APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("update", "delete")
    ]
    + [
        "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()",
        "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()",
    ],
}
for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(AuditRow.__table__, "after_create", DDL(_statement.replace("%", "%%")).execute_if(dialect=_dialect))
