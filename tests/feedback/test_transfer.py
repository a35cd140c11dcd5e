"""A project that goes from one database to another is the same there."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from heed.errors import UserError
from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Added, Conflict, NotFound, Projects, ProjectSettings
from heed.feedback.schema import (
    AccountRow,
    AnswerRow,
    DecisionRow,
    ItemResponseRow,
    ItemRow,
    JudgementRow,
    LearningCurveRow,
    LeaseRow,
    ProjectRow,
    PromptRow,
    RewardModelRow,
    RewardScoreRow,
    WaitingPromptRow,
)
from heed.feedback.store import FeedbackStore
from heed.feedback.transfer import import_project, project_rows
from heed.records import Message, Prompt, Response
from tests.feedback.team import Team, alphabetical
from tests.postgres import POSTGRES

PASSWORD = "a long enough password"
POINT = {"items": 5, "answers": 10, "pairs": 30, "accuracy": 0.5, "low": 0.1, "high": 1.0, "ceiling": None}
LABELLED = (ProjectRow, ItemRow, LeaseRow, AnswerRow, JudgementRow, DecisionRow)
TABLES = (*LABELLED, WaitingPromptRow, RewardModelRow, RewardScoreRow, LearningCurveRow)


def lines(database: Database, project: int | str = "project") -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in project_rows(database, project)]


def counts(database: Database) -> list[int | None]:
    with database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in TABLES]


@pytest.fixture
def team(database: Database) -> Team:
    return busy(database)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of such a project."""
    return lines(busy(Database(tmp_path_factory.mktemp("written") / "feedback.db")).database)


def busy(database: Database) -> Team:
    """A project in which everything has happened, beside another one."""
    team = Team(database)
    other = team.project("other", items=3)
    team.work(other.id, team.annotator("zoe"), 2)
    settings: dict[str, Any] = {"ratings": ("kind",), "flags": ("rude",), "ideal": True, "overlap": 2, "gold_rate": 0.3, "again_rate": 0.2}
    project = team.project("project", items=24, gold=4, responses=3, **settings)
    said = (Message("system", "Be brief.\u2028"), Message("user", 'An "odd" one? \\ \U0001f600'))
    others = [(Prompt(said[1].content, {"kind": "odd"}), [Response("a", "m1", {"t": 0.5}, "r"), Response("b"), Response("a", "m2")])]
    team.projects.add_items(project.id, others, None)
    for name in ("ann", "ben"):
        account = team.annotator(name)
        for turn in range(16):
            task = team.take(project.id, account)
            if turn == 3:
                team.tasks.skip(task.lease_id, account, "I cannot tell")
                continue
            ratings, flags = {"kind": [7] * len(task.responses)}, {"rude": [0]} if turn % 4 == 0 else {}
            answer = alphabetical(
                task, ratings=ratings, flags=flags, ideal="Better ü" if turn == 5 else "", note="n\n" if turn == 6 else ""
            )
            team.tasks.answer(task.lease_id, account, answer)
            team.clock.advance(seconds=1.25 + turn)
            if turn == 8:
                team.tasks.undo(project.id, account)
    cy = team.annotator("cy")
    task = team.take(project.id, cy)
    team.tasks.decide(task.item_id, cy, [1, 1, 2][: len(task.responses)], "so be it")
    team.change(project.id, criterion="Which is kinder?")
    add_models(database, project.id)
    return team


def add_models(database: Database, project_id: int) -> None:
    """Prompts that wait, two reward models of which one has scored but some responses, and a learning curve."""
    FeedbackStore(database).add_items([(Prompt(f"Still waiting {i}?", {"kind": "new"}), ()) for i in range(3)])
    noon = datetime(2024, 5, 6, 12, 0, 0, 250)
    with database.write() as session:
        asked = session.scalars(select(PromptRow.id).where(PromptRow.tags["kind"].as_string() == "new").order_by(PromptRow.number))
        for prompt_id, said in zip(asked, ({"answered_at": noon}, {"taken_until": noon}, {}), strict=True):
            session.add(WaitingPromptRow(project_id=project_id, prompt_id=prompt_id, **said))
        held = select(ItemResponseRow.response_id).join(ItemRow, ItemRow.id == ItemResponseRow.item_id).distinct()
        responses = sorted(session.scalars(held.where(ItemRow.project_id == project_id)))
        for name, scored in (("runs/a", responses), ("runs/b", responses[1:8:3])):
            model = RewardModelRow(project_id=project_id, name=name, digest=name * 5, created_at=noon)
            session.add(model)
            session.flush()
            session.add_all(RewardScoreRow(reward_model_id=model.id, response_id=i, score=i / 7 - 3) for i in scored)
        for accuracy in (0.5, 0.625):
            points = [{**POINT, "accuracy": accuracy}, {**POINT, "answers": 20}]
            session.add(LearningCurveRow(project_id=project_id, model="m", points=points, created_at=noon))


@pytest.fixture(params=["sqlite", POSTGRES])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Database]:
    """Makes an empty database of each kind."""

    def make() -> Database:
        if request.param == "sqlite":
            return Database(tmp_path / "fresh.db")
        return Database(request.getfixturevalue("new_postgres_database")())

    return make


def test_a_project_read_into_another_database_is_written_there_alike(team: Team, fresh: Callable[[], Database]) -> None:
    there = fresh()
    Team(there).project("something before it", items=2)
    written = lines(team.database)
    kinds = {json.loads(line).get("record") for line in written[1:]}
    first = {"project", "item", "lease", "answer", "decision", "end"}
    assert kinds == first | {"waiting", "reward_model", "scores", "learning_curve"}
    project = import_project(there, written, "p.jsonl")
    assert project == Projects(there).get("project")
    assert lines(there) == written
    there.close()


def test_a_response_of_two_items_has_one_score_there_too(team: Team, tmp_path: Path) -> None:
    shared = team.projects.create("shared", team.projects.get("project").settings, None)
    for third in ("c", "d"):
        team.projects.add_items(shared.id, [(Prompt("Q?"), [Response("a"), Response("b"), Response(third)])], None)
    with team.database.write() as session:
        model = RewardModelRow(project_id=shared.id, name="m", digest="d")
        session.add(model)
        session.flush()
        ids = session.scalars(select(ItemResponseRow.response_id).join(ItemRow).where(ItemRow.project_id == shared.id).distinct())
        session.add_all(RewardScoreRow(reward_model_id=model.id, response_id=i, score=float(i)) for i in ids)
    written = lines(team.database, "shared")
    there = Database(tmp_path / "there.db")
    import_project(there, written, "p.jsonl")
    assert lines(there, "shared") == written
    with there.read() as session:
        assert session.scalar(select(func.count()).select_from(RewardScoreRow)) == 4


def test_a_file_of_the_first_version_is_still_read(written: list[bytes], tmp_path: Path) -> None:
    new = {"waiting", "reward_model", "scores", "learning_curve"}
    rest = [line for line in written[1:-1] if json.loads(line)["record"] not in new]
    end = json.dumps({"record": "end", "lines": 1 + len(rest)}).encode()
    there = Database(tmp_path / "there.db")
    import_project(there, [b'{"heed": "project", "version": 1}', *rest, end], "p.jsonl")
    again = lines(there)
    assert json.loads(again[0])["version"] == 2
    assert again[1:-1] == rest


def test_categories_that_an_older_heed_wrote_of_an_item_alone_are_its_prompts_too(team: Team, tmp_path: Path) -> None:
    war = team.projects.create("war", team.projects.get("project").settings, None)
    team.projects.add_items(war.id, [(Prompt("War?", {"kind": "odd"}), [Response("a"), Response("b")])], None)
    there = Team(Database(tmp_path / "there.db"))
    project = import_project(there.database, changed(lines(team.database, "war"), "item", categories=["violence"]), "p.jsonl")
    assert there.take(project.id, there.annotator("new")).prompt.tags == {"kind": "odd", "categories": "violence"}
    assert there.tasks.next(project.id, there.annotator("ann", avoid=["Violence"])) is None


def test_conversations_keep_their_messages(team: Team, tmp_path: Path) -> None:
    talk = team.projects.create("talk", team.projects.get("project").settings, None)
    prompt = Prompt((Message("system", "Be brief."), Message("user", "Hi")), {"kind": "hello"})
    team.projects.add_items(talk.id, [(prompt, [Response("a"), Response("b")])], None)
    there = Database(tmp_path / "there.db")
    import_project(there, lines(team.database, "talk"), "p.jsonl")
    (found,) = FeedbackStore(there).prompts()
    assert (found, found.tags) == (prompt, prompt.tags)


def test_one_set_of_responses_in_two_orders_as_an_older_heed_left_it_stays_two_items(team: Team, tmp_path: Path) -> None:
    project = team.projects.create("twice", ProjectSettings(num_responses=2), None)
    either = [(Prompt("Q?"), [Response(text) for text in texts]) for texts in ("ab", "ba")]
    team.projects.add_items(project.id, either[:1], None)
    with team.database.write() as session:
        first = session.scalars(select(ItemRow).where(ItemRow.project_id == project.id)).one()
        second = ItemRow(project_id=project.id, prompt_id=first.prompt_id, digest="of b, a", remaining=1, shuffle=0.5, categories=[])
        session.add(second)
        session.flush()
        held = session.scalars(select(ItemResponseRow).where(ItemResponseRow.item_id == first.id))
        places = [(row.position, row.response_id) for row in held]
        session.add_all(ItemResponseRow(item_id=second.id, position=1 - place, response_id=i) for place, i in places)
    written = lines(team.database, "twice")
    there = Database(tmp_path / "there.db")
    import_project(there, written, "p.jsonl")
    assert lines(there, "twice") == written
    for database in (team.database, there):
        projects = Projects(database)
        assert projects.add_items(projects.get("twice").id, either, None) == Added(0, 2, 0, 0)


def test_what_was_taken_back_does_not_count_there_either(team: Team, tmp_path: Path) -> None:
    there = Database(tmp_path / "there.db")
    import_project(there, lines(team.database), "p.jsonl")

    def judgements(database: Database) -> list[tuple[object, ...]]:
        return [(j.prompt.id, j.ranks, j.annotator, j.order_shown, j.note) for j in FeedbackStore(database).judgements()]

    with team.database.read() as session:
        withdrawn = session.scalar(select(func.count()).where(JudgementRow.withdrawn_at.is_not(None)))
    assert withdrawn == 2
    assert judgements(there) == [j for j in judgements(team.database) if j[2] != "zoe"]


def test_secrets_stay_and_the_people_of_a_project_cannot_sign_in_there(database: Database, tmp_path: Path) -> None:
    accounts = Accounts(database)
    ann = accounts.accept(accounts.invite("annotator", None), "Ann", PASSWORD)
    token, key = accounts.start_session(ann.id), accounts.new_token(ann.id, "my key")
    team = Team(database)
    project = team.project()
    team.work(project.id, ann.id, 2)
    written = b"".join(lines(database))
    with database.read() as session:
        hashed = session.get_one(AccountRow, ann.id).password
    assert b"Ann" in written
    for secret in (hashed, token, key, "argon2", "my key"):
        assert secret is not None
        assert secret.encode() not in written
    there = Database(tmp_path / "there.db")
    import_project(there, written.splitlines(), "p.jsonl")
    assert Accounts(there).sign_in("Ann", PASSWORD) is None
    assert Accounts(there).all() == []
    assert [account.name for account in Accounts(there).imported()] == ["Ann"]
    with pytest.raises(Conflict, match="taken"):
        Accounts(there).accept(Accounts(there).invite("annotator", None), "Ann", PASSWORD)


def test_annotators_that_a_database_has_are_the_same_people(written: list[bytes], tmp_path: Path) -> None:
    there = Team(Database(tmp_path / "there.db"))
    ann = there.annotator("ann")
    import_project(there.database, written, "p.jsonl")
    assert ann in {answer.account_id for answer in there.answers()}


def test_a_name_that_is_taken_is_a_conflict(team: Team) -> None:
    before = counts(team.database)
    with pytest.raises(Conflict, match="there is a project 'project' already"):
        import_project(team.database, lines(team.database), "p.jsonl")
    assert counts(team.database) == before


def test_an_unknown_project_is_told_before_anything_is_written(team: Team) -> None:
    with pytest.raises(NotFound):
        project_rows(team.database, "nowhere")


def changed(written: list[bytes], record: str, **values: Any) -> list[bytes]:
    """The lines, with the first record of a kind changed."""
    number = next(i for i, line in enumerate(written) if json.loads(line).get("record") == record)
    return [*written[:number], json.dumps({**json.loads(written[number]), **values}).encode(), *written[number + 1 :]]


def without_first(written: list[bytes], record: str) -> list[bytes]:
    number = next(i for i, line in enumerate(written) if json.loads(line).get("record") == record)
    left = [*written[:number], *written[number + 1 : -1]]
    return [*left, json.dumps({"record": "end", "lines": len(left)}).encode()]


def twice_first(written: list[bytes], record: str) -> list[bytes]:
    number = next(i for i, line in enumerate(written) if json.loads(line).get("record") == record)
    return [*written[: number + 1], *written[number:]]


def of(kind: str, **values: Any) -> Callable[[list[bytes]], list[bytes]]:
    return lambda written: changed(written, kind, **values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: [], r"p\.jsonl:1: this is no export of a whole project"),
        (lambda w: [b'{"prompt": "x"}\n', *w], r"p\.jsonl:1: this is no export"),
        (lambda w: [b'{"heed": "project", "version": 3}', *w[1:]], r"p\.jsonl:1: version 3; expected 1 or 2; update heed"),
        (lambda w: [b'{"heed": "project", "version": [1]}', *w[1:]], r"p\.jsonl:1: version \[1\]"),
        (lambda w: [b'{"heed": "project", "version": 1}', *w[1:]], r"p\.jsonl:\d+: .*'waiting'"),
        (lambda w: w[:1], r"p\.jsonl:1: the file breaks off"),
        (lambda w: w[:-1], r"the file breaks off; expected a line for the end"),
        (lambda w: [*w[:-2], w[-1]], r"expected \d+ before the end"),
        (lambda w: [*w[:-2], w[-2][:20]], r"p\.jsonl:\d+: Invalid JSON"),
        (lambda w: [*w, b"{}"], r"something after the end"),
        (lambda w: [w[0], w[1], *w[1:]], r"p\.jsonl:3: a second project"),
        (lambda w: [w[0], *w[2:]], r"p\.jsonl:2: a line out of place; expected one project first"),
        (lambda w: [*w[:3], b"\xff\n", *w[3:]], r"p\.jsonl:4: Invalid JSON"),
        (of("project", settings={"overlap": 0}), r"p\.jsonl:2: overlap is 0"),
        (of("project", settings={"surprise": 1}), r"p\.jsonl:2: there is no key 'surprise'"),
        (of("project", name=" \n"), r"p\.jsonl:2: a project named"),
        (of("item", gold=[1, 5, 9]), r"p\.jsonl:3: ranks \[1, 5, 9\]|p\.jsonl:3: ranks \(1, 5, 9\)"),
        (of("item", extra=1), r"p\.jsonl:3: item\.extra"),
        (of("item", responses=[]), r"p\.jsonl:3: item\.responses"),
        (of("item", remaining=-1), r"p\.jsonl:3: item\.remaining"),
        (of("lease", item=999), r"item 999; expected one of the 25 in the lines before"),
        (of("lease", item=-1), r"item -1; expected"),
        (of("lease", order=[0, 0, 1]), r"order \[0, 0, 1\]; expected each of 0 to 2 once"),
        (of("lease", annotator=""), r"a person named ''"),
        (of("lease", state="lost"), r"lease\.state"),
        (of("answer", lease=999), r"lease 999"),
        (of("answer", ratings={"kind": [1]}), r"ratings or flags that do not fit the item"),
        (of("answer", flags={"rude": [7]}), r"ratings or flags that do not fit the item"),
        (of("answer", seconds=-1), r"answer\.seconds"),
        (of("answer", created_at="yesterday"), r"answer\.created_at"),
        (of("answer", judgement={"ranks": [3], "created_at": "2024-01-01T00:00:00", "withdrawn_at": None}), r"ranks"),
        (of("decision", ranks=[0]), r"ranks"),
        (of("waiting", taken_until="soon"), r"waiting\.taken_until"),
        (of("waiting", prompt="Still waiting 1?"), r"its lines contradict each other"),
        (of("reward_model", digest=""), r"reward_model\.digest"),
        (of("reward_model", digest="runs/b" * 5), r"its lines contradict each other"),
        (of("scores", model=2), r"reward model 2; expected one of the 1 in the lines before"),
        (of("scores", item=99), r"item 99; expected one of the 25"),
        (of("scores", scores=[1.0]), r"1 scores; expected one for each of 3 responses"),
        (of("scores", scores=[1.0, 2.0, "3"]), r"scores\.scores\.2"),
        (of("learning_curve", points={}), r"learning_curve\.points"),
        (of("learning_curve", points=[]), r"p\.jsonl:\d+: learning_curve\.points: .*at least 1 item"),
        (of("learning_curve", points=[{**POINT, "accuracy": "good"}]), r"learning_curve\.points\.0\.accuracy"),
        (of("learning_curve", points=[{**POINT, "answers": 0}]), r"learning_curve\.points\.0\.answers"),
        (of("learning_curve", points=[POINT] * 3), r"points from 10, 10, 10 answers; expected each from more than the one before"),
        (lambda w: [b"[" * 100_000], r"p\.jsonl:1: this is no export of a whole project"),
        (of("lease", state="open"), r"p\.jsonl:\d+: an answer to a lease that is open"),
        (of("lease", state="skipped"), r"p\.jsonl:\d+: an answer to a lease that is skipped; expected .* another state in line 31"),
        (lambda w: without_first(w, "answer"), r"p\.jsonl:31: a lease that was answered; expected a line that says how"),
        (of("answer", undone_at="2024-05-06T09:00:00"), r"p\.jsonl:31: a lease that was answered; expected .* was not undone"),
        (lambda w: twice_first(w, "answer"), r"p\.jsonl:\d+: a second answer to the lease of line 31"),
        (lambda w: [*w[:3], w[2], *w[3:]], r"its lines contradict each other"),
    ],
)
def test_a_spoilt_file_is_told_by_its_line_and_nothing_of_it_is_kept(
    written: list[bytes], tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    there = Database(tmp_path / "there.db")
    with pytest.raises(UserError, match=message):
        import_project(there, spoil(written), "p.jsonl")
    assert counts(there) == [0] * len(TABLES)
