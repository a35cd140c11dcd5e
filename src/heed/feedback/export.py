"""What people said of a project's responses, as rows of training data, and a card that tells what the rows are.

A lead's decision settles its item: it stands for all that the annotators said of it, except in data of chosen
annotators, where everyone speaks for themselves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Literal

from sqlalchemy import select

import heed
from heed.errors import UserError, require
from heed.feedback.agreement import krippendorff_alpha, pairwise_agreement
from heed.feedback.annotators import LEAST
from heed.feedback.answers import GivenAnswer, Item, Standing, standing_answers
from heed.feedback.database import Database
from heed.feedback.projects import SCALE, STRENGTHS, Projects
from heed.feedback.quality import reliabilities
from heed.feedback.schema import AccountRow, AnswerRow, DecisionRow, ItemRow, utc_now
from heed.records import Judgement, Message, Prompt

Kind = Literal["pairs", "rankings", "kto", "demonstrations"]
KINDS: Mapping[Kind, str] = {
    "pairs": "A row for each pair of responses that was compared, better response first. `label` is the share of annotators who "
    "prefer `chosen` (a tie counts for half; 0.5 is a draw), `weight` how many they are (or the sum of their weights), `margin` how "
    "far better they found it, from 0 (slightly, or not asked) to 1 (far), `annotators` who said so, and `agreement` how probably two "
    "annotators say the same.",
    "rankings": "A row for each annotator's ranking: `responses` with their `ranks`, 1 for the best and equal ranks for ties, the "
    "annotator's `weight`, and `agreement` over all pairs of the responses.",
    "kto": "A row for each response with `label` true where it is good and false where it is bad. To an annotator a response that "
    "they flagged is bad; any other is good that they prefer to more of the others than they prefer to it, and bad the other way "
    f"round; where nothing is compared, good is rated above the middle of the scale (over {(SCALE + 1) // 2} on average), and bad below. "
    "The majority decides; responses in the middle are left out, and empty ones.",
    "demonstrations": "A row for each ideal response that annotators wrote: `prompt`, `response`, and `annotators` who wrote it.",
}
Row = dict[str, Any]
WEIGHED = (
    "each annotator's labels by how far they are better than a coin, from 0 to 1 (the one-coin model of Dawid and Skene, over all "
    f"answers of the project); who compared fewer than {LEAST} items that others compared too weighs as much as the others on average; "
    "a lead's decision weighs 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which answers become training data; by default all but those to gold items and repetitions, which check the annotators."""

    annotators: tuple[str, ...] = ()
    """Only what these say; all where none is named."""
    since: datetime | None = None
    """Only answers from this time on (UTC)."""
    until: datetime | None = None
    """Only answers before this time (UTC)."""
    without_flags: tuple[str, ...] = ()
    """Leave out responses that one of the answers flags so."""
    min_agreement: float = 0.0
    """Leave out what annotators agree on less, and what only one of them judged; what a lead decided stays."""
    checks: bool = False
    """Also answers to gold items and repetitions; of an annotator who answered an item twice, the last counts."""

    def __post_init__(self) -> None:
        require(0 <= self.min_agreement <= 1, "min_agreement", self.min_agreement, "a share from 0 to 1")
        ordered = self.since is None or self.until is None or self.since < self.until
        require(ordered, "since", self.since, f"a time before {self.until}")


@dataclass(frozen=True, slots=True)
class _Judged:
    """An item with the answers that count."""

    item: Item
    answers: Sequence[GivenAnswer]
    decision: Sequence[int] | None
    """A lead's ranks, where they settle it."""
    places: Sequence[int]
    """Of the responses that no filter leaves out."""

    @property
    def prompt(self) -> Prompt:
        assert self.item.prompt is not None, "items are read with their texts"
        return self.item.prompt

    @property
    def ranked(self) -> dict[str, Sequence[int]]:
        """What each annotator's ranks are, where they compared."""
        return {a.annotator: a.ranks for a in self.answers if a.ranks is not None}


@dataclass
class Export:
    """A project's answers as rows of one kind; what the rows leave out is counted while they are read.

    Raises NotFound for an unknown project, and UserError for filters that make no sense of it. `weights` gives each
    annotator's weight, or says how to find it from all that stands in the project (`label_weights`); all count alike without it.
    """

    database: Database
    project: int | str
    kind: Kind
    filters: Filters = field(default_factory=Filters)
    weights: Mapping[str, float] | Callable[[Standing], Mapping[str, float]] | None = None
    left_out: Counter[str] = field(init=False, default_factory=Counter)
    _counted: list[GivenAnswer] = field(init=False, default_factory=list)
    _num_rows: int = field(init=False, default=0)
    _weights: Mapping[str, float] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "kind", self.kind, f"one of {', '.join(KINDS)}")
        self.found = Projects(self.database).get(self.project)
        ideal = self.kind == "demonstrations" and self.filters.min_agreement > 0
        require(not ideal, "min_agreement", self.filters.min_agreement, "none for demonstrations: nobody agrees on them or not")
        weighed = self.kind == "demonstrations" and self.weights is not None
        require(not weighed, "weights", "given", "none for demonstrations: each is imitated as it is")
        unknown = set(self.filters.without_flags) - set(self.found.settings.flags)
        require(not unknown, "without_flags", ", ".join(sorted(unknown)), f"one of {', '.join(self.found.settings.flags) or 'no flags'}")

    def rows(self) -> Iterator[Row]:
        """The rows, in the order of the project's items; `heed.data` reads pairs, rankings and demonstrations back."""
        self.left_out.clear()
        self._counted.clear()
        self._num_rows = 0
        make = {"pairs": self._pairs, "rankings": self._rankings, "kto": self._kto, "demonstrations": self._demonstrations}
        for judged in self._judged():
            for row in make[self.kind](judged):
                self._num_rows += 1
                yield {**_prompt(judged.prompt), **row}

    def card(self) -> str:
        """What the rows are, in Markdown; they must have been read before."""
        return _card(self)

    def _judged(self) -> Iterator[_Judged]:
        standing = standing_answers(self.database, self.found.id, texts=True)
        self._weights = self.weights(standing) if callable(self.weights) else self.weights
        self._check_names({answer.annotator for answer in standing.answers})
        self._leave_out("skipped items", len(standing.skips))
        kept: dict[int, dict[str, GivenAnswer]] = defaultdict(dict)
        for answer in standing.answers:
            why = _why_not(answer, self.filters)
            if why is not None:
                self._leave_out(why)
                continue
            self._leave_out("earlier answers of the same annotator", answer.annotator in kept[answer.item.id])
            kept[answer.item.id][answer.annotator] = answer
        decisions = {} if self.filters.annotators else self._decisions()
        for item in standing.items:
            answers = list(kept[item.id].values())
            decision = decisions.get(item.id)
            if not answers and decision is None:
                continue
            self._counted += answers
            flagged = {place for a in answers for flag in self.filters.without_flags for place in a.flags.get(flag, ())}
            self._leave_out("flagged responses", len(flagged))
            yield _Judged(item, answers, decision, [place for place in range(len(item.texts)) if place not in flagged])

    def _check_names(self, known: set[str]) -> None:
        unknown = set(self.filters.annotators) - known
        names = ", ".join(sorted(known)) or "nobody, for nobody has answered"
        require(not unknown, "annotator", ", ".join(sorted(unknown)), f"one of {names}")
        unweighed = known - set(self._weights) if self._weights is not None else ()
        require(not unweighed, "weights", sorted(self._weights or ()), f"also {', '.join(sorted(unweighed))}")

    def _decisions(self) -> dict[int, Sequence[int]]:
        """Of each item that a lead decided, the last decision's ranks."""
        query = select(DecisionRow.item_id, DecisionRow.ranks, DecisionRow.created_at).join(ItemRow, ItemRow.id == DecisionRow.item_id)
        own = ItemRow.project_id == self.found.id, *([] if self.filters.checks else [ItemRow.gold.is_(None)])
        with self.database.read() as session:
            found = session.execute(query.where(*own).order_by(DecisionRow.id)).tuples().all()
        return {item_id: ranks for item_id, ranks, at in found if _within(at, self.filters)}

    def _leave_out(self, what: str, count: int = 1) -> None:
        if count:
            self.left_out[what] += count

    def _weight(self, annotator: str) -> float:
        return 1.0 if self._weights is None else self._weights[annotator]

    def _share(self, votes: Mapping[str, float]) -> tuple[float, float]:
        """The weighted mean of votes from 0 to 1, and their weight together."""
        total = sum(map(self._weight, votes))
        return (sum(self._weight(name) * vote for name, vote in votes.items()) / total if total else 0.5), total

    def _disputed(self, agreement: float | None, judged: _Judged) -> bool:
        return self.filters.min_agreement > 0 and judged.decision is None and (agreement or 0.0) < self.filters.min_agreement

    def _pairs(self, judged: _Judged) -> Iterator[Row]:
        texts = judged.item.texts
        for first, second in combinations(judged.places, 2):
            votes = {name: _preference(ranks, first, second) for name, ranks in judged.ranked.items()}
            if not votes and judged.decision is None:
                continue
            agreement = _agreement(votes)
            share, weight = self._share(votes)
            if judged.decision is not None:
                share, weight = _preference(judged.decision, first, second), max(weight, 1.0)
            better, worse, said = (first, second, votes) if share >= 0.5 else (second, first, {n: 1 - v for n, v in votes.items()})
            label = max(share, 1 - share)
            if self._disputed(agreement, judged):
                self._leave_out("disputed pairs")
            elif not weight:
                self._leave_out("pairs of annotators without weight")
            elif not (texts[better] and texts[worse]):
                self._leave_out("pairs with an empty response")
            else:
                yield {
                    "chosen": texts[better],
                    "rejected": texts[worse],
                    "label": label,
                    "margin": 0.0 if label == 0.5 else self._margin(judged, better),
                    "weight": weight,
                    "annotators": sorted(n for n, vote in said.items() if (vote > 0.5 if label > 0.5 else vote == 0.5)),
                    "num_annotators": len(said),
                    "agreement": agreement,
                    **_decided(judged),
                }

    def _margin(self, judged: _Judged, better: int) -> float:
        """How far better annotators found the better of two, on average; what the others said counts against it."""
        said = [(a, _preference(a.ranks, better, 1 - better)) for a in judged.answers if a.strength is not None and a.ranks is not None]
        total = sum(self._weight(a.annotator) for a, _ in said)
        parts = [self._weight(a.annotator) * (2 * vote - 1) * ((a.strength or 1) - 1) / (STRENGTHS - 1) for a, vote in said]
        return max(0.0, sum(parts) / total) if total else 0.0

    def _rankings(self, judged: _Judged) -> Iterator[Row]:
        texts, places = [judged.item.texts[i] for i in judged.places], judged.places
        agreement = _ranked_agreement(list(judged.ranked.values()), places)
        rankings = judged.ranked if judged.decision is None else {"": judged.decision}
        for annotator, ranks in rankings.items():
            weight = self._weight(annotator) if annotator else 1.0
            if len(texts) < 2:
                self._leave_out("rankings of fewer than 2 responses")
            elif self._disputed(agreement, judged):
                self._leave_out("disputed rankings")
            elif not weight:
                self._leave_out("rankings of annotators without weight")
            else:
                best = min(ranks[i] for i in places)
                row = {"responses": texts, "ranks": [ranks[i] - best + 1 for i in places], "weight": weight}
                yield {**row, "annotator": annotator or None, "agreement": agreement, **_decided(judged)}

    def _kto(self, judged: _Judged) -> Iterator[Row]:
        for place in judged.places:
            votes = {a.annotator: vote for a in judged.answers if (vote := _liked(a, place)) is not None}
            agreement = _agreement(votes)
            share, _ = self._share(votes)
            if judged.decision is not None:
                share = _standing(judged.decision, place)
            if self._disputed(agreement, judged):
                self._leave_out("disputed responses")
            elif share == 0.5:
                self._leave_out("responses neither good nor bad")
            elif not judged.item.texts[place].strip():
                self._leave_out("empty responses")
            else:
                said = sorted(name for name, vote in votes.items() if vote == float(share > 0.5))
                row = {"response": judged.item.texts[place], "label": share > 0.5, "annotators": said, "num_annotators": len(votes)}
                yield {**row, "agreement": agreement, **_decided(judged)}

    def _demonstrations(self, judged: _Judged) -> Iterator[Row]:
        written: dict[str, list[str]] = defaultdict(list)
        for answer in judged.answers:
            if answer.ideal.strip():
                written[answer.ideal].append(answer.annotator)
        yield from ({"response": text, "annotators": names} for text, names in written.items())


def label_weights(standing: Standing) -> dict[str, float]:
    """Of everyone who answered, what their labels weigh: their reliability (`quality.reliabilities`), from 0 to 1.

    Who compared fewer than 20 items that someone else compared too is not known: they weigh as much as the others do on
    average. Raises UserError where that is so of all, or as `reliabilities` does.
    """
    compared = {(answer.item.id, answer.annotator) for answer in standing.answers if answer.ranks is not None}
    of_item = Counter(item_id for item_id, _ in compared)
    shared = Counter(name for item_id, name in compared if of_item[item_id] > 1)
    known = {name: weight for name, weight in reliabilities(standing).items() if shared[name] >= LEAST}
    if not known:
        found = f"nobody has compared {LEAST} items that someone else compared too"
        raise UserError(found, expected="enough of them to weigh annotators by", fix="raise the project's overlap, or go without weights")
    usual = sum(known.values()) / len(known)
    return {answer.annotator: known.get(answer.annotator, usual) for answer in standing.answers}


def annotators_of(database: Database, project_id: int) -> list[str]:
    """Who has answered items of a project, by name."""
    answered = select(AnswerRow.id).join(ItemRow, ItemRow.id == AnswerRow.item_id)
    own = AnswerRow.account_id == AccountRow.id, ItemRow.project_id == project_id, AnswerRow.undone_at.is_(None), AnswerRow.skipped == ""
    with database.read() as session:
        return sorted(session.scalars(select(AccountRow.name).where(answered.where(*own).exists())))


def read_time(text: str) -> datetime:
    """A date or a time of ISO 8601 as UTC without zone; one without zone is UTC. Raises UserError for anything else."""
    try:
        found = datetime.fromisoformat(text.strip())
        return found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise UserError(f"the time {text[:60]!r}", expected="a date such as 2026-01-31, or a time such as 2026-01-31T18:00") from None


def _why_not(answer: GivenAnswer, filters: Filters) -> str | None:
    """Why an answer is left out, if it is."""
    if answer.reason in ("gold", "again") and not filters.checks:
        return "answers to gold items and repetitions"
    if filters.annotators and answer.annotator not in filters.annotators:
        return "answers of other annotators"
    return None if _within(answer.created_at, filters) else "answers of other times"


def _within(at: datetime, filters: Filters) -> bool:
    return (filters.since is None or at >= filters.since) and (filters.until is None or at < filters.until)


def _prompt(prompt: Prompt) -> Row:
    text = prompt.text if isinstance(prompt.text, str) else [{"role": m.role, "content": m.content} for m in prompt.text]
    return {"prompt": text, "tags": dict(prompt.tags)} if prompt.tags else {"prompt": text}


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row of any kind."""
    content = row["prompt"]
    text = content if isinstance(content, str) else tuple(Message(m["role"], m["content"]) for m in content)
    return Prompt(text, row.get("tags", {}))


def _decided(judged: _Judged) -> Row:
    return {} if judged.decision is None else {"decided": True}


def _preference(ranks: Sequence[int] | None, first: int, second: int) -> float:
    """1 where the first is better, 0 where the second is, 1/2 for a tie."""
    assert ranks is not None
    return 0.5 + 0.5 * ((ranks[first] < ranks[second]) - (ranks[first] > ranks[second]))


def _agreement(votes: Mapping[str, float]) -> float | None:
    """How probably two of the voters say the same, a tie against a preference half so; none where there are no two."""
    couples = [1 - abs(a - b) for a, b in combinations(votes.values(), 2)]
    return sum(couples) / len(couples) if couples else None


def _ranked_agreement(rankings: Sequence[Sequence[int]], places: Sequence[int]) -> float | None:
    """The mean over all pairs of responses."""
    pairs = [_agreement({str(n): _preference(ranks, i, j) for n, ranks in enumerate(rankings)}) for i, j in combinations(places, 2)]
    known = [pair for pair in pairs if pair is not None]
    return sum(known) / len(known) if known else None


def _standing(ranks: Sequence[int], place: int) -> float:
    """1 where a response is better than more of the others than are better than it, 0 the other way round, 1/2 in the middle."""
    worse, better = sum(rank > ranks[place] for rank in ranks), sum(rank < ranks[place] for rank in ranks)
    return 0.5 + 0.5 * ((worse > better) - (worse < better))


def _liked(answer: GivenAnswer, place: int) -> float | None:
    """Whether an annotator finds a response good (1), bad (0), or neither (1/2); none where they were asked nothing of the kind."""
    if any(place in places for places in answer.flags.values()):
        return 0.0
    if answer.ranks is not None:
        return _standing(answer.ranks, place)
    rated = [value for values in answer.ratings.values() if (value := values[place]) is not None]
    if not rated:
        return None
    above = sum(rated) / len(rated) - (SCALE + 1) / 2
    return 0.5 + 0.5 * ((above > 0) - (above < 0))


def _card(export: Export) -> str:
    project, counted = export.found, export._counted
    names = Counter(answer.annotator for answer in counted)
    times = sorted(answer.created_at for answer in counted)
    judgements = [_judgement(answer) for answer in counted if answer.ranks is not None]
    facts = {
        "project": project.name,
        "criterion": " ".join(project.settings.criterion.split()),
        "kind": export.kind,
        "rows": f"{export._num_rows:,}",
        "answers": f"{len(counted):,} of {len({answer.item.id for answer in counted}):,} items",
        "from": f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC" if times else "no time",
        "pairwise agreement": _known(pairwise_agreement, judgements),
        "Krippendorff's alpha": _known(krippendorff_alpha, judgements),
        "filters": _said(export.filters),
        "weights": "none" if export._weights is None else WEIGHED,
        "written": f"{utc_now():%Y-%m-%d %H:%M} UTC by heed {heed.__version__}",
    }
    lines = [f"# {project.name}: {export.kind}", "", KINDS[export.kind], ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    weights = export._weights
    lines += ["", "## Annotators", "", "| annotator | answers |" + " weight |" * (weights is not None)]
    lines += ["|---|---|" + "---|" * (weights is not None)]
    for name, count in names.most_common():
        weight = "" if weights is None else f" {weights[name]:.3f} |"
        lines.append(f"| {name.replace('|', '&#124;')} | {count:,} |{weight}")
    lines += ["", "## Left out", ""]
    lines += [f"- {count:,} {what}" for what, count in export.left_out.most_common()] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _known(measure: Callable[[list[Judgement]], float], judgements: list[Judgement]) -> str:
    try:
        return f"{measure(judgements):.3f}"
    except UserError as error:
        return f"not known: {error}"


def _judgement(answer: GivenAnswer) -> Judgement:
    assert answer.item.prompt is not None
    assert answer.ranks is not None
    return Judgement(answer.item.prompt, answer.item.texts, answer.ranks, answer.annotator)


def _said(filters: Filters) -> str:
    """The filters that are set, in words."""
    values = {f.name: getattr(filters, f.name) for f in fields(filters) if getattr(filters, f.name) != f.default}
    return ", ".join(f"{name} {', '.join(v) if isinstance(v, tuple) else v}" for name, v in values.items()) or "none"
