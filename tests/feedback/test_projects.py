"""Projects and their items, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select

from heed.errors import UserError
from heed.feedback.database import Database
from heed.feedback.projects import Added, Conflict, NotFound, Projects, ProjectSettings
from heed.feedback.schema import AuditRow, ItemRow
from heed.feedback.store import FeedbackStore
from heed.records import Message, Prompt, Response
from tests.feedback.team import Team


@pytest.fixture
def projects(database: Database) -> Projects:
    return Projects(database)


def responses(texts: str) -> list[Response]:
    return [Response(letter) for letter in texts]


def items_of(database: Database) -> list[ItemRow]:
    with database.read() as session:
        return list(session.scalars(select(ItemRow).order_by(ItemRow.id)))


def test_a_project_is_found_by_number_or_name_as_it_was_made(projects: Projects) -> None:
    settings = ProjectSettings(ratings=("helpful", "kind"), flags=(), criterion="Which?", overlap=3)
    made = projects.create("  Kind answers ", settings, None)
    assert (made.name, made.settings, made.revision, made.archived) == ("Kind answers", settings, 1, False)
    assert projects.get(made.id) == projects.get("Kind answers") == made
    assert projects.all() == [made]
    for missing in (0, -1, 99, 2**31, 10**30, "other"):
        with pytest.raises(NotFound):
            projects.get(missing)


def test_a_name_is_taken_once_also_by_many_at_once(projects: Projects) -> None:
    def create(_: int) -> bool:
        try:
            projects.create("one", ProjectSettings(), None)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


def test_of_two_who_change_a_project_the_second_is_told(projects: Projects, database: Database) -> None:
    made = projects.create("p", ProjectSettings(), None)
    changed = projects.change(made.id, replace(made.settings, guidelines="Be kind."), made.revision, None)
    assert changed.revision == 2
    with pytest.raises(Conflict, match="someone else"):
        projects.change(made.id, replace(made.settings, guidelines="Be brief."), made.revision, None)
    assert projects.get(made.id) == changed
    with database.read() as session:
        last = session.scalars(select(AuditRow).order_by(AuditRow.id.desc())).first()
    assert last is not None
    assert last.detail == {"project": made.id, "guidelines": ["", "Be kind."]}


def test_of_many_who_change_a_project_at_once_one_succeeds(projects: Projects) -> None:
    made = projects.create("p", ProjectSettings(), None)

    def change(number: int) -> bool:
        try:
            projects.change(made.id, replace(made.settings, overlap=number), made.revision, None)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(change, range(2, 8))) == 1
    assert projects.get(made.id).revision == 2


def test_responses_are_put_together_by_as_many_as_are_shown(projects: Projects, database: Database) -> None:
    made = projects.create("p", ProjectSettings(num_responses=2, overlap=3), None)
    rows = [(Prompt("a"), responses("xyz")), (Prompt("b"), responses("xx")), (Prompt("c"), responses("wxyz")), (Prompt("d"), [])]
    assert projects.add_items(made.id, rows, None) == Added(new=3, known=0, too_few=2, left_over=1)
    assert projects.add_items(made.id, rows, None) == Added(new=0, known=3, too_few=2, left_over=1)
    assert [row.remaining for row in items_of(database)] == [3, 3, 3]


def test_the_same_responses_in_another_order_are_the_same_item_and_gold_stays_as_it_is(projects: Projects, database: Database) -> None:
    made = projects.create("p", ProjectSettings(num_responses=3), None)
    first = [(Prompt("a"), responses("xyz")), (Prompt("b"), responses("xyz"))]
    assert projects.add_items(made.id, first, None, gold=[None, (1, 2, 3)]) == Added(new=2, known=0, too_few=0, left_over=0)
    turned = [(Prompt(text), responses(order)) for text, order in (("a", "zyx"), ("b", "yxz"), ("c", "xyz"), ("c", "zxy"), ("a", "xyw"))]
    again = projects.add_items(made.id, turned, None, gold=[None, (1, 2, 3), None, None, None])
    assert again == Added(new=2, known=3, too_few=0, left_over=0)
    assert [row.gold for row in items_of(database)] == [None, [1, 2, 3], None, None]


def test_an_item_is_known_also_where_responses_came_in_another_order_than_it_has(projects: Projects, database: Database) -> None:
    made = projects.create("p", ProjectSettings(num_responses=2), None)
    FeedbackStore(database).add_responses(Prompt("a"), responses("xy"))
    assert [projects.add_items(made.id, [(Prompt("a"), responses(order))], None).new for order in ("yx", "xy", "yx")] == [1, 0, 0]


def test_one_response_is_enough_where_nothing_is_compared(projects: Projects) -> None:
    made = projects.create("p", ProjectSettings(compare="none", ratings=("helpful",)), None)
    assert projects.add_items(made.id, [(Prompt("a"), responses("x"))], None).new == 1


def test_gold_is_kept_where_it_fits_and_refused_with_everything_where_it_does_not(projects: Projects, database: Database) -> None:
    made = projects.create("p", ProjectSettings(num_responses=3), None)
    for wrong in ((1, 2), (1, 2, 4), (2, 2, 3), (1, True, 2)):
        with pytest.raises(UserError, match="ranks"):
            projects.add_items(made.id, [(Prompt("a"), responses("uvw")), (Prompt("b"), responses("xyz"))], None, gold=[None, wrong])
    with pytest.raises(UserError, match="3 responses at most"):
        projects.add_items(made.id, [(Prompt("b"), responses("uvwxyz"))], None, gold=[(1, 2, 3, 4, 5, 6)])
    assert items_of(database) == []
    projects.add_items(made.id, [(Prompt("a"), responses("uvw")), (Prompt("b"), responses("xyz"))], None, gold=[None, (2, 1, 1)])
    assert [(row.gold, row.remaining) for row in items_of(database)] == [(None, 1), ([2, 1, 1], 0)]


def test_many_who_add_the_same_items_at_once_add_them_once(projects: Projects, database: Database) -> None:
    made = [projects.create(f"p{i}", ProjectSettings(num_responses=2), None) for i in range(2)]
    rows = [(Prompt(f"{i}?"), responses("xy")) for i in range(20)]

    def add(number: int) -> int:
        return projects.add_items(made[number % 2].id, rows[number:] + rows[:number], None).new

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(add, range(6))) == 40
    assert len(items_of(database)) == 40
    assert Team(database).drifted() == []


def test_items_that_come_while_the_overlap_changes_wait_for_the_right_number(projects: Projects, database: Database) -> None:
    team = Team(database)
    made = projects.create("p", ProjectSettings(num_responses=2), None)

    def add(number: int) -> None:
        projects.add_items(made.id, [(Prompt(f"{number}?"), responses("xy"))], None)

    with ThreadPoolExecutor(4) as pool:
        adding = [pool.submit(add, number) for number in range(12)]
        for overlap in (2, 3, 5):
            team.change(made.id, overlap=overlap)
        for each in adding:
            each.result()
    assert len(items_of(database)) == 12
    assert team.drifted() == []


def test_settings_that_the_items_do_not_fit_are_refused(database: Database) -> None:
    team = Team(database)
    threes = team.project("threes", responses=3)
    with pytest.raises(UserError, match="2 responses each"):
        team.change(threes.id, compare="pairwise", num_responses=2)
    ones = team.project("ones", responses=1, compare="none", ratings=("helpful",))
    with pytest.raises(UserError, match="2 responses or more"):
        team.change(ones.id, compare="rank", num_responses=2)
    twos = team.project("twos", responses=2)
    team.change(twos.id, compare="pairwise", num_responses=2)
    team.change(threes.id, compare="none", ratings=("helpful",))
    empty = team.project("empty", items=0)
    team.change(empty.id, compare="pairwise", num_responses=2)
    assert [project.settings.compare for project in team.projects.all()] == ["none", "none", "pairwise", "pairwise"]


def test_archiving_is_undone_by_reopening(projects: Projects) -> None:
    made = projects.create("p", ProjectSettings(), None)
    projects.archive(made.id, None)
    assert projects.get(made.id).archived
    projects.archive(made.id, None, archived=False)
    assert projects.get(made.id) == made


def test_categories_come_from_the_tag_of_the_prompt(projects: Projects, database: Database) -> None:
    made = projects.create("p", ProjectSettings(num_responses=2), None)
    conversation = Prompt((Message("user", "Hi"),), {"categories": " violence,, self-harm "})
    projects.add_items(made.id, [(conversation, responses("xy"))], None)
    assert [row.categories for row in items_of(database)] == [["violence", "self-harm"]]


def test_categories_of_a_prompt_only_grow_and_hold_for_its_items_in_every_project(projects: Projects, database: Database) -> None:
    first, second = (projects.create(name, ProjectSettings(num_responses=2), None) for name in "pq")
    for project, tags, told in (
        (first, {"categories": "violence, Gore"}, ["violence", "gore"]),
        (second, {}, ["violence", "gore"]),
        (second, {"categories": ""}, ["violence", "gore"]),
        (second, {"categories": "GORE,self-harm"}, ["violence", "gore", "self-harm"]),
    ):
        projects.add_items(project.id, [(Prompt("War?", tags), responses("ab")), (Prompt("Peace?"), responses("ab"))], None)
        assert {tuple(row.categories) for row in items_of(database)} == {tuple(told), ()}
    assert [prompt.tags for prompt in FeedbackStore(database).prompts()] == [{"categories": "violence, Gore, self-harm"}, {}]
    split = [(Prompt("How?"), responses("ab")), (Prompt("How?", {"categories": "violence"}), responses("cd"))]
    projects.add_items(first.id, split, None)
    assert [row.categories for row in items_of(database)[-2:]] == [["violence"]] * 2


def test_what_someone_avoids_is_covered_for_all_others(projects: Projects, database: Database) -> None:
    team = Team(database)
    ann, ben = team.annotator("ann", avoid=["violence"]), team.annotator("ben")
    first, second = (projects.create(name, ProjectSettings(num_responses=2), None) for name in "pq")
    projects.add_items(first.id, [(Prompt("War?", {"categories": "violence"}), responses("ab"))], None)
    projects.add_items(second.id, [(Prompt("War?", {"categories": ""}), responses("ab"))], None)
    for project in (first, second):
        assert team.tasks.next(project.id, ann) is None
        assert team.take(project.id, ben).prompt.tags["categories"] == "violence"


def test_categories_come_while_annotators_are_at_work(projects: Projects, database: Database) -> None:
    team = Team(database)
    made = [team.project(name, items=0, responses=2) for name in "pq"]
    items = [(f"{i}?", responses("ab")) for i in range(30)]
    for project in made:
        projects.add_items(project.id, [(Prompt(text), found) for text, found in items], None)

    def add(number: int) -> None:
        told = {"categories": f"c{number}"}
        projects.add_items(made[number % 2].id, [(Prompt(text, told), found) for text, found in items], None)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(team.work, project.id, team.annotator(f"ann {project.name}"), 30) for project in made]
        working += [pool.submit(add, number) for number in range(6)]
        for each in working:
            each.result()
    assert {frozenset(row.categories) for row in items_of(database)} == {frozenset(f"c{i}" for i in range(6))}
    assert team.drifted() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"criterion": "  "},
        {"num_responses": 0},
        {"num_responses": 1},
        {"compare": "pairwise"},
        {"compare": "none"},
        {"ratings": ("helpful", "helpful")},
        {"flags": (" toxic",)},
        {"overlap": 0},
        {"overlap": 101},
        {"gold_rate": 0.6, "again_rate": 0.4},
        {"control_share": 1.1},
        {"gold_rate": float("nan")},
        {"lease_minutes": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        ProjectSettings(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_a_name_must_be_one(projects: Projects, name: str) -> None:
    with pytest.raises(UserError):
        projects.create(name, ProjectSettings(), None)
