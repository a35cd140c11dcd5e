"""The tables of a feedback store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


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
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC).replace(tzinfo=None))
    """UTC."""


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
