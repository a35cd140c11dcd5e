"""Leases under everything that can happen to them: compared with a model that keeps only what matters, and by many at once."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from heed.feedback.database import Database
from heed.feedback.projects import Conflict
from heed.feedback.schema import AnswerRow, ItemRow, LeaseRow, RankRow
from heed.feedback.tasks import Answer, Task, Tasks
from tests.feedback.team import Team, alphabetical

NAMES = ("ann", "ben", "cy")
ORDINARY, GOLD = 2, 1
RANKINGS = ((1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 1, 2), (1, 1, 1))
"""Ranks of the responses a, b and c."""


@dataclass
class Lease:
    """What is known of one annotator and one item."""

    task: Task
    state: str = "open"
    slot: bool = False
    expires_at: datetime = datetime.max
    answers: list[tuple[int, tuple[int, ...], datetime]] = field(default_factory=list)
    """Of those that stand: id, ranks of a, b and c, and when."""


class Model:
    """The rules of leases, over a dictionary."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.overlap, self.archived = 2, False
        self.leases: dict[tuple[int, int], Lease] = {}
        self.skipped: list[tuple[int, datetime]] = []
        self.cap: dict[int, int] = {}

    def slots(self, item: int) -> int:
        return sum(lease.slot for (_, other), lease in self.leases.items() if other == item)

    def today(self, person: int) -> int:
        midnight = self.clock().replace(hour=0, minute=0)
        answered = [at for (who, _), lease in self.leases.items() if who == person for _, _, at in lease.answers]
        return sum(at >= midnight for at in answered + [at for who, at in self.skipped if who == person])

    def open(self, person: int) -> Lease | None:
        return next((lease for (who, _), lease in self.leases.items() if who == person and lease.state == "open"), None)

    def expire(self) -> None:
        for lease in self.leases.values():
            if lease.state == "open" and lease.expires_at < self.clock():
                lease.state, lease.slot = "expired", False

    def candidates(self, person: int, items: list[int]) -> set[int]:
        had = {item for (who, item), lease in self.leases.items() if who == person and lease.state != "expired"}
        return set(items) - had


class Walk:
    """Three annotators of one project and a lead who changes it, doing at random whatever the app lets them do."""

    def __init__(self, team: Team, seed: int) -> None:
        self.team, self.random = team, random.Random(seed)
        team.tasks.generator = self.random
        self.project = team.project(f"project {seed}", items=ORDINARY + GOLD, gold=GOLD, gold_rate=0.3, overlap=2)
        self.people = [team.annotator(f"{name} {seed}") for name in NAMES]
        with team.database.read() as session:
            rows = session.scalars(select(ItemRow).where(ItemRow.project_id == self.project.id)).all()
        self.ordinary, self.gold = [row.id for row in rows if not row.gold], [row.id for row in rows if row.gold]
        self.model = Model(team.clock)

    def step(self) -> None:
        steps = (self.next, self.next, self.answer, self.answer, self.skip, self.undo, self.pass_time, self.pass_time, self.change)
        self.random.choice(steps)()
        self.check()

    def next(self) -> None:
        person, model = self.random.choice(self.people), self.model
        task = self.team.tasks.next(self.project.id, person)
        cap, held = model.cap.get(person), model.open(person)
        deadline = self.team.clock() + timedelta(minutes=30)
        if cap is not None and model.today(person) >= cap:
            assert task is None
        elif held is not None:
            assert task is not None
            assert (task.lease_id, task.responses) == (held.task.lease_id, held.task.responses)
            held.expires_at = deadline
        elif model.archived:
            assert task is None
        else:
            model.expire()
            waiting = {item for item in model.candidates(person, self.ordinary) if model.slots(item) < model.overlap}
            if not waiting:
                assert task is None
                return
            assert task is not None
            assert task.item_id in waiting | model.candidates(person, self.gold)
            before = model.leases.get((person, task.item_id))
            if before is not None:
                assert (task.lease_id, task.responses) == (before.task.lease_id, before.task.responses)
            model.leases[person, task.item_id] = Lease(task, "open", task.item_id in waiting, deadline)

    def answer(self) -> None:
        if not self.model.leases:
            return
        (person, item), lease = self.random.choice(list(self.model.leases.items()))
        ranks = self.random.choice([*RANKINGS, *(ranks for _, ranks, _ in lease.answers)])
        answer = Answer(ranks=tuple(ranks["abc".index(text)] for text in lease.task.responses))

        def send() -> int:
            return self.team.tasks.answer(lease.task.lease_id, person, answer)

        gone = lease.state == "expired" and item in self.ordinary and self.model.slots(item) >= self.model.overlap
        if lease.state == "answered" and lease.answers[-1][1] == ranks:
            assert send() == lease.answers[-1][0]
        elif lease.state in ("answered", "skipped") or gone:
            with pytest.raises(Conflict):
                send()
        else:
            lease.answers.append((send(), ranks, self.team.clock()))
            lease.state, lease.slot = "answered", item in self.ordinary

    def skip(self) -> None:
        if not self.model.leases:
            return
        (person, _), lease = self.random.choice(list(self.model.leases.items()))
        if lease.state == "answered":
            with pytest.raises(Conflict):
                self.team.tasks.skip(lease.task.lease_id, person, "no")
            return
        self.team.tasks.skip(lease.task.lease_id, person, "no")
        if lease.state != "skipped":
            self.model.skipped.append((person, self.team.clock()))
        lease.state, lease.slot = "skipped", False

    def undo(self) -> None:
        person = self.random.choice(self.people)
        task = self.team.tasks.undo(self.project.id, person)
        standing = [lease for (other, _), lease in self.model.leases.items() if other == person and lease.answers]
        if not standing:
            assert task is None
            return
        held = self.model.open(person)
        if held is not None:
            held.state, held.slot = "expired", False
        last = max(standing, key=lambda lease: lease.answers[-1][0])
        _, ranks, _ = last.answers.pop()
        last.state, last.expires_at = "open", self.team.clock() + timedelta(minutes=30)
        assert task is not None
        assert task.lease_id == last.task.lease_id
        assert task.answer == Answer(ranks=tuple(ranks["abc".index(text)] for text in task.responses))

    def pass_time(self) -> None:
        self.team.clock.advance(minutes=self.random.choice([-2000, 20, 40, 40, 1000]))
        self.next()

    def change(self) -> None:
        """What the lead does, who soon opens again what was closed."""
        what, value = self.random.choice([("overlap", 1), ("overlap", 2), ("overlap", 3), ("archived", 1), ("cap", 2)])
        self.model.archived, self.model.cap = what == "archived", {self.random.choice(self.people): value} if what == "cap" else {}
        self.team.projects.archive(self.project.id, None, archived=self.model.archived)
        for person in self.people:
            self.team.set_account(person, daily_cap=self.model.cap.get(person))
        if what == "overlap":
            self.team.change(self.project.id, overlap=value)
            self.model.overlap = value

    def check(self) -> None:
        """The database says what the model says."""
        with self.team.database.read() as session:
            items = {row.id: row for row in session.scalars(select(ItemRow).where(ItemRow.project_id == self.project.id))}
            leases = session.scalars(select(LeaseRow).where(LeaseRow.item_id.in_(items))).all()
            answers = select(AnswerRow).where(AnswerRow.item_id.in_(items), AnswerRow.undone_at.is_(None), AnswerRow.skipped == "")
            said = {}
            for row in session.scalars(answers):
                query = select(RankRow.rank).where(RankRow.judgement_id == row.judgement_id).order_by(RankRow.position)
                said[row.id] = tuple(session.scalars(query))
        found = {(row.account_id, row.item_id): (row.id, row.state, row.slot is not None) for row in leases}
        assert len(found) == len(leases)
        assert found == {key: (lease.task.lease_id, lease.state, lease.slot) for key, lease in self.model.leases.items()}
        assert said == {number: ranks for lease in self.model.leases.values() for number, ranks, _ in lease.answers}
        for item in self.ordinary:
            assert items[item].remaining == max(0, self.model.overlap - self.model.slots(item))
        assert all(items[item].remaining == 0 for item in self.gold)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_leases_are_those_of_a_simple_model(database: Database, seed: int) -> None:
    team = Team(database)
    for number in range(4):
        walk = Walk(team, 10 * seed + number)
        for _ in range(80):
            walk.step()


def test_no_step_reads_through_the_items_leases_or_answers_of_a_project(tmp_path: Path) -> None:
    """Without statistics, as in a file that nobody has analysed."""
    database = Database(tmp_path / "feedback.db")
    team = Team(database)
    project = team.project(items=60, gold=5, overlap=2, gold_rate=0.2, again_rate=0.3)
    ann, ben = team.annotator("ann"), team.annotator("ben", avoid=["violence"])
    asked: dict[str, Any] = {}

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, parameters: Any, _context: object, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE")) and not many:
            asked[statement] = parameters

    team.work(project.id, ann, 30)
    team.work(project.id, ben, 3)
    team.change(project.id, strategy="uncertain")
    team.work(project.id, ben, 20)
    team.tasks.skip(team.take(project.id, ann).lease_id, ann, "no")
    team.tasks.undo(project.id, ann)
    team.clock.advance(hours=1)
    team.take(project.id, ben)
    event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as session:
        connection = session.connection()
        plans = {statement: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", p).all() for statement, p in asked.items()}
    steps = {(step[-1], statement) for statement, plan in plans.items() for step in plan if step[-1].startswith("SCAN")}
    allowed = ("SCAN CONSTANT ROW", "SCAN leases USING INDEX leases_open", "SCAN anon_1 VIRTUAL TABLE")  # the last are an item's categories
    assert [step for step in steps if not step[0].startswith(allowed)] == []
    lookups = [step[-1] for plan in plans.values() for step in plan]
    for index in ("items_waiting", "items_urgent", "items_gold", "leases_once", "leases_again", "leases_open"):
        assert any(index in lookup for lookup in lookups), f"{index} is used for nothing"
    of_project = [step for step in lookups if "items" in step and "(project_id=?" in step and "AUTOMATIC" not in step]
    assert all(any(index in step for index in ("items_waiting", "items_urgent", "items_gold")) for step in of_project), of_project


PEOPLE = 20
ITEMS, OVERLAP = 30, 3


def label(tasks: Tasks, project_id: int, person: int, seed: int) -> int:
    """Take and answer until nothing is left, now and then skipping, undoing, or sending a form twice."""
    generator, answered = random.Random(seed), 0
    while (task := tasks.next(project_id, person)) is not None:
        chance = generator.random()
        if chance < 0.02:
            tasks.skip(task.lease_id, person, "no")
            continue
        tasks.answer(task.lease_id, person, alphabetical(task))
        answered += 1
        if chance < 0.1:
            tasks.answer(task.lease_id, person, alphabetical(task))
        elif chance < 0.15:
            tasks.undo(project_id, person)
            answered -= 1
    return answered


def everything_is_judged_exactly(team: Team, project_id: int, overlap: int) -> None:
    with team.database.read() as session:
        own = select(LeaseRow).join(ItemRow, ItemRow.id == LeaseRow.item_id).where(ItemRow.project_id == project_id)
        leases = session.scalars(own).all()
        answers = session.scalars(select(AnswerRow).where(AnswerRow.undone_at.is_(None), AnswerRow.skipped == "")).all()
    standing = Counter(row.item_id for row in answers)
    assert set(standing.values()) == {overlap}
    assert len(standing) == ITEMS
    assert len({(row.item_id, row.account_id) for row in answers}) == len(answers) == ITEMS * overlap
    assert {lease.id for lease in leases if lease.state == "answered"} == {row.lease_id for row in answers}
    slots = [(lease.item_id, lease.slot) for lease in leases if lease.state == "answered"]
    assert len(set(slots)) == len(slots)
    assert {lease.state for lease in leases} <= {"answered", "skipped"}
    assert team.drifted() == []


def test_twenty_people_at_once_judge_every_item_exactly_as_often_as_asked(database: Database) -> None:
    team = Team(database)
    project = team.project(items=ITEMS, overlap=OVERLAP)
    people = [team.annotator(f"person {i}") for i in range(PEOPLE)]
    with ThreadPoolExecutor(PEOPLE) as pool:
        done = list(pool.map(lambda person: label(Tasks(database), project.id, person, person), people))
    done += [label(team.tasks, project.id, person, person) for person in people]  # what came back after others had gone
    assert sum(done) == ITEMS * OVERLAP
    everything_is_judged_exactly(team, project.id, OVERLAP)


def test_several_processes_at_once_judge_every_item_exactly_as_often_as_asked(database: Database, location: str) -> None:
    team = Team(database)
    project = team.project(items=ITEMS, overlap=2)
    people = [team.annotator(f"person {i}") for i in range(6)]
    program = "import sys; from tests.feedback.test_leases import work; work(sys.argv[1], *map(int, sys.argv[2:]))"
    root = Path(__file__).resolve().parents[2]
    groups = [people[:2], people[2:4], people[4:]]
    commands = [[sys.executable, "-c", program, location, str(project.id), *map(str, group)] for group in groups]
    running = [subprocess.Popen(command, cwd=root) for command in commands]
    assert [process.wait() for process in running] == [0] * len(running)
    for person in people:
        label(team.tasks, project.id, person, person)
    everything_is_judged_exactly(team, project.id, 2)


def work(location: str, project_id: int, *people: int) -> None:
    """What one of the processes does."""
    database = Database(location)
    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(lambda person: label(Tasks(database), project_id, person, person), people))


def test_someone_who_asks_many_times_at_once_gets_one_task(database: Database) -> None:
    team = Team(database)
    project, ann = team.project(items=10, overlap=5), team.annotator("ann")
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda _: Tasks(database).next(project.id, ann), range(8)))
    assert len({task.lease_id for task in given if task is not None}) == 1
    assert None not in given
    assert team.drifted() == []


def test_a_form_sent_many_times_at_once_is_kept_once(database: Database) -> None:
    team = Team(database)
    project, ann = team.project(), team.annotator("ann")
    task = team.take(project.id, ann)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: Tasks(database).answer(task.lease_id, ann, alphabetical(task)), range(8)))
    assert len(set(ids)) == len(team.answers()) == 1


def test_overlap_that_changes_while_people_work_leaves_nothing_wrong(database: Database) -> None:
    team = Team(database)
    project = team.project(items=ITEMS, overlap=1)
    people = [team.annotator(f"person {i}") for i in range(6)]

    def change(_: int) -> int:
        for overlap in (3, 1, 2, 3, 2):
            team.change(project.id, overlap=overlap)
        return 0

    with ThreadPoolExecutor(7) as pool:
        changed = pool.submit(change, 0)
        list(pool.map(lambda person: label(Tasks(database), project.id, person, person), people))
        changed.result()
    assert team.drifted() == []
