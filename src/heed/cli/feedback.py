"""`heed feedback`: export, import, add, status, and what works on a project beside its annotators."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from heed.cli.label import tell_added
from heed.cli.learning_curve import MeasureCurve
from heed.cli.sample_prompts import SamplePrompts
from heed.cli.score import ScoreProject
from heed.data.writers import write_jsonl
from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.export import Export, Filters, annotators_of, label_weights, read_time
from heed.feedback.imported import add_rankings
from heed.feedback.projects import Projects
from heed.feedback.transfer import import_project, project_rows
from heed.records import Ranking
from heed.web.uploads import add_data, read_data

Where = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATABASE")]
Names = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, slots=True)
class ExportProject:
    """Write what people said of a project's responses: as training data, or all of it."""

    database: Where
    """A file, or a URL such as postgresql+psycopg://..."""
    project: str
    """The project's name."""
    kind: Literal["pairs", "rankings", "kto", "demonstrations", "full"]
    """Training data of a kind, or `full`: the whole project, to be kept or imported elsewhere."""
    output: str
    """A .jsonl file, or .jsonl.gz; it appears whole or not at all."""
    card: str | None = None
    """Also write a data card: a Markdown file that tells what the data is, and what was left out."""
    annotator: Names = ()
    """Only what this annotator said; may be repeated."""
    since: str | None = None
    """Only answers from this date or time on (UTC)."""
    until: str | None = None
    """Only answers before this date or time (UTC)."""
    without_flag: Names = ()
    """Leave out responses that an answer flags so; may be repeated."""
    min_agreement: float = 0.0
    """Leave out what annotators agree on less, and what only one of them judged; what a lead decided stays."""
    checks: bool = False
    """Also answers to gold items and repetitions."""
    weights: bool = False
    """Weigh each annotator's labels by their reliability, estimated from what several annotators compared."""

    def __call__(self) -> None:
        filters = Filters(
            annotators=self.annotator,
            since=_time(self.since),
            until=_time(self.until),
            without_flags=self.without_flag,
            min_agreement=self.min_agreement,
            checks=self.checks,
        )
        database = _existing(self.database)
        if self.kind == "full":
            if filters != Filters() or self.card or self.weights:
                raise UserError("filters, weights or a card for kind full", expected="none: it holds all of the project")
            print(f"{write_jsonl(self.output, project_rows(database, self.project)):,} lines: {self.output}")
        else:
            self._write(Export(database, self.project, self.kind, filters, label_weights if self.weights else None))
        database.close()

    def _write(self, export: Export) -> None:
        rows = list(export.rows())
        left_out = "".join(f"; left out: {count:,} {what}" for what, count in export.left_out.most_common())
        if not rows:
            raise UserError(f"there are no {self.kind} to export{left_out}", expected="answers that the filters let through")
        write_jsonl(self.output, rows)
        print(f"{len(rows):,} {self.kind}: {self.output}{left_out}")
        if self.card:
            try:
                Path(self.card).write_text(export.card(), encoding="utf-8")
            except OSError as error:
                raise UserError(f"cannot be written: {error.strerror}", file=self.card) from None
            print(f"card: {self.card}")


@dataclass(frozen=True, slots=True)
class ImportProject:
    """Read a whole project, as `export --kind full` wrote it, into a database; all of it or nothing."""

    database: Where
    """A file (made where there is none), or a URL such as postgresql+psycopg://..."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A .jsonl file, or .jsonl.gz."""

    def __call__(self) -> None:
        try:
            with gzip.open(self.file) if self.file.endswith(".gz") else open(self.file, "rb") as lines:
                database = Database(self.database)
                project = import_project(database, lines, self.file)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=self.file) from None
        print(f"{project.name}: {_progress(database, project.id)}")
        database.close()


@dataclass(frozen=True, slots=True)
class AddData:
    """Add the prompts and responses of a file to a project; with --annotator, its rankings too."""

    database: Where
    """A file, or a URL such as postgresql+psycopg://..."""
    project: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROJECT")]
    """The project's name."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Any file that `heed data check` accepts; prompts without responses wait for `heed feedback sample`."""
    annotator: str | None = None
    """Who ranked the responses as the file does; a name that the project does not know is added."""

    def __call__(self) -> None:
        data = read_data(Path(self.file))
        ranked = [Ranking(f.prompt, tuple(f.responses), tuple(f.ranks)) for f in data.found if f.ranks and len(f.responses) > 1]
        if self.annotator is not None and not ranked:
            raise UserError(f"rows of {data.format} rank nothing", file=self.file, expected="preferences or rankings with --annotator")
        database = _existing(self.database)
        project = Projects(database).get(self.project)
        tell_added(project, data, *add_data(database, project.id, data, None))
        if self.annotator is not None:
            said = add_rankings(database, project.id, ranked, self.annotator, None)
            left = {"known": said.known, "of responses that are no item": said.without_item}
            print(f"{self.annotator}: {said.new:,} answers" + "".join(f", {n:,} {what}" for what, n in left.items() if n))
        database.close()


@dataclass(frozen=True, slots=True)
class Status:
    """Say which projects a database has, and how far they have come."""

    database: Where
    """A file, or a URL such as postgresql+psycopg://..."""

    def __call__(self) -> None:
        database = _existing(self.database)
        projects = Projects(database).all()
        for project in projects:
            print(f"{project.name}{' (archived)' if project.archived else ''}: {_progress(database, project.id)}")
        if not projects:
            print("no projects")
        database.close()


Feedback: TypeAlias = (
    Annotated[ExportProject, tyro.conf.subcommand("export")]
    | Annotated[ImportProject, tyro.conf.subcommand("import")]
    | Annotated[AddData, tyro.conf.subcommand("add")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[SamplePrompts, tyro.conf.subcommand("sample")]
    | Annotated[MeasureCurve, tyro.conf.subcommand("curve")]
    | Annotated[ScoreProject, tyro.conf.subcommand("score")]
)


def _existing(location: str) -> Database:
    """An open database; UserError where there is none, for opening would make one."""
    if "://" not in location and not Path(location).is_file():
        raise UserError("there is no such file", file=location, expected="a feedback database")
    return Database(location)


def _progress(database: Database, project_id: int) -> str:
    done = Projects(database).progress().get(project_id)
    if done is None:
        return "no items"
    names = annotators_of(database, project_id)
    gold = f", gold items: {done.gold:,}" if done.gold else ""
    return f"answers: {done.wanted - done.waiting:,} of {done.wanted:,}, items: {done.items:,}{gold}, annotators: {len(names)}"


def _time(text: str | None) -> datetime | None:
    return None if text is None else read_time(text)
