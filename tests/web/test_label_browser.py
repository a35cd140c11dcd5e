"""The annotator's page in a real browser: keys, clicks, drags and fingers, and that nothing on it goes wrong."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import uvicorn
from sqlalchemy import select

from heed.feedback.accounts import Accounts
from heed.feedback.answers import GivenAnswer, standing_answers
from heed.feedback.database import Database
from heed.feedback.projects import Project, Projects, ProjectSettings
from heed.feedback.schema import AnswerRow
from heed.feedback.tasks import Answer, Tasks
from heed.records import Message, Prompt, Response
from heed.web.app import create_app
from heed.web.site import COOKIE
from tests.web.conftest import PASSWORD

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]

LONG = "word " * 60 + "\n\n```python\n" + "x = 1  # " + "long " * 40 + "\n```\n\n" + "unbroken" * 40
TEXTS = ("one", "two **bold**", LONG, "four\n\n- a\n- b")


class Desk:
    """A browser page at which Ann sits, and what is stored of her work."""

    def __init__(self, page: playwright.Page, database: Database, account_id: int, troubles: list[str]) -> None:
        self.page, self.database, self.account_id, self.troubles = page, database, account_id, troubles
        self.keys_pressed = 0

    def open(self, *prompts: Prompt, **settings: object) -> Project:
        projects = Projects(self.database)
        project = projects.create(f"P{len(projects.all())}", ProjectSettings(**settings), None)  # pyright: ignore[reportArgumentType]
        texts = TEXTS[: project.settings.num_responses]
        items = [(p, [Response(text, model="gpt-secret") for text in texts]) for p in prompts or [Prompt("Q1?"), Prompt("Q2?")]]
        projects.add_items(project.id, items, None)
        self.page.goto(f"/projects/{project.id}/label")
        return project

    def press(self, *keys: str) -> None:
        self.page.wait_for_load_state()  # a page takes keys once it is there whole; a person sees that
        for key in keys:
            self.page.keyboard.press(key)
            self.keys_pressed += 1

    def saved(self, project: Project) -> GivenAnswer:
        """The only answer that stands."""
        self.page.wait_for_load_state()
        (answer,) = standing_answers(self.database, project.id).answers
        return answer

    def shown_ranks(self, project: Project) -> list[int]:
        """Of the saved answer, by place on the screen."""
        answer = self.saved(project)
        assert answer.ranks is not None
        return [answer.ranks[position] for position in answer.order]

    def save(self, *keys: str) -> None:
        """Press the keys, of which the last saves, and wait for the next page."""
        self.press(*keys[:-1])
        with self.page.expect_navigation():
            self.press(keys[-1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, str]]:
    database = Database(tmp_path_factory.mktemp("label") / "feedback.db")
    server = uvicorn.Server(uvicorn.Config(create_app(database), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield database, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def desk_of(site: tuple[Database, str], browser: playwright.Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Desk]]:
    """Makes an account with a browser of its own; fails the test for any error that the browser tells of."""
    database, url = site
    accounts, troubles, contexts = Accounts(database), [], []

    def make(**options: object) -> Desk:
        account = accounts.accept(accounts.invite("lead", None), f"Ann {len(accounts.all())}", PASSWORD)
        context = browser.new_context(base_url=url, **options)  # pyright: ignore[reportArgumentType]
        context.set_default_timeout(30_000)
        context.add_cookies([{"name": COOKIE, "value": accounts.start_session(account.id), "url": url}])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(url) else troubles.append(f"asked for {asked.url}"))
        return Desk(page, database, account.id, troubles)

    yield make
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def desk(desk_of: Callable[..., Desk]) -> Desk:
    return desk_of(viewport={"width": 1440, "height": 900})


def test_a_ranking_of_four_takes_four_keys(desk: Desk) -> None:
    project = desk.open()
    desk.save("3", "1", "4", "Enter")
    assert desk.shown_ranks(project) == [2, 4, 1, 3]
    assert desk.keys_pressed == 4


@pytest.mark.parametrize(
    ("keys", "ranks"),
    [
        ("c = a d", [1, 3, 1, 2]),
        ("1 = 2 = 3", [1, 1, 1, 2]),
        ("1 2 = 3", [1, 2, 2, 3]),
        ("1 2 0", [1, 2, 3, 3]),
        ("1 = 2 0", [1, 1, 2, 2]),
        ("2 0", [2, 1, 2, 2]),
        ("0", [1, 1, 1, 1]),
        ("1 2 3 =", [1, 2, 3, 3]),
        ("1 2 Backspace 3 2", [1, 3, 2, 4]),
        ("4 3 2 Delete 1 2 3", [1, 2, 3, 4]),
    ],
)
def test_ties_and_corrections_by_keys(desk: Desk, keys: str, ranks: list[int]) -> None:
    project = desk.open()
    desk.save(*keys.split(), "Enter")
    assert desk.shown_ranks(project) == ranks
    if "Backspace" not in keys and "Delete" not in keys:
        assert desk.keys_pressed <= 6


def test_nothing_is_sent_before_all_are_ranked(desk: Desk) -> None:
    project = desk.open()
    desk.press("1", "Enter", "Enter")
    assert "Which comes next" in desk.page.locator("#hint").inner_text()
    desk.page.get_by_role("button", name="Save").click()
    assert standing_answers(desk.database, project.id).answers == ()


def test_ranking_by_clicks(desk: Desk) -> None:
    project = desk.open()
    for letter in "DBA":
        desk.page.locator(f".response[data-letter={letter}]").get_by_role("button", name="Pick").click()
    with desk.page.expect_navigation():
        desk.page.get_by_role("button", name="Save").click()
    assert desk.shown_ranks(project) == [3, 2, 4, 1]


def test_ranking_on_the_shelf_by_clicks_and_by_tab_and_space(desk: Desk) -> None:
    project = desk.open()
    desk.page.locator(".heap .chip", has_text="C").click()
    desk.page.locator(".order .chip", has_text="C").click()  # out again
    desk.page.locator(".heap .chip", has_text="B").click()
    desk.page.locator(".heap .chip", has_text="A").focus()
    desk.press("Space")
    desk.page.locator(".heap .chip", has_text="D").focus()
    desk.press("Space")
    with desk.page.expect_navigation():
        desk.page.get_by_role("button", name="Save").click()
    assert desk.shown_ranks(project) == [2, 1, 4, 3]


def drag(page: playwright.Page, source: str, target: str) -> None:
    start, end = page.locator(source).bounding_box(), page.locator(target).bounding_box()
    assert start is not None
    assert end is not None
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 30, start["y"] + 3)
    end = page.locator(target).bounding_box()  # gaps grow when something is dragged
    assert end is not None
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=3)
    page.mouse.up()


def test_ranking_by_dragging(desk: Desk) -> None:
    project = desk.open()
    page = desk.page
    drag(page, ".head[data-drag='0']", ".gap[data-gap='0']")  # A, from its card
    drag(page, ".heap [data-drag='1']", ".gap[data-gap='0']")  # B before A
    drag(page, ".heap [data-drag='2']", ".order [data-drag='0']")  # C ties with A, and D comes last
    assert page.locator(".order").inner_text().split() == ["B", "›", "A", "C", "›", "D", "›"]
    drag(page, ".order [data-drag='3']", ".gap[data-gap='1']")  # D between
    desk.save("Enter")
    assert desk.shown_ranks(project) == [3, 1, 3, 2]


def test_dragging_back_to_the_heap_and_nowhere(desk: Desk) -> None:
    desk.open()
    page = desk.page
    desk.press("1", "2")
    drag(page, ".order [data-drag='0']", "h1")
    assert page.locator(".order .chip").count() == 2
    drag(page, ".order [data-drag='0']", ".heap")
    assert page.locator(".order .chip").all_inner_texts() == ["B"]


def test_flags_by_keys(desk: Desk) -> None:
    project = desk.open()
    desk.save("f", "b", "1", "3", "3", "a", "2", "Enter", "1", "2", "3", "Enter")
    answer = desk.saved(project)
    assert answer.flags == {"toxic": (answer.order[1],), "harmful": (answer.order[0],)}


def test_the_ideal_response_starts_from_a_response_and_is_rewritten(desk: Desk) -> None:
    project = desk.open(ideal=True)
    place = next(i for i in range(4) if "bold" in desk.page.locator(".response").nth(i).inner_text())
    desk.press("i")
    desk.page.locator(f"[data-copy='{place}']").click()
    assert desk.page.locator("#ideal").input_value() == TEXTS[1]
    desk.page.keyboard.press("Control+End")
    desk.page.keyboard.type(", and 1 more = better")
    desk.save("Escape", "1", "2", "3", "Enter")
    assert desk.saved(project).ideal == f"{TEXTS[1]}, and 1 more = better"


def test_keys_in_a_text_are_only_text(desk: Desk) -> None:
    project = desk.open()
    desk.press("n")
    desk.page.keyboard.type("1 see us? bagful = 3")
    desk.press("Enter")
    desk.page.keyboard.type("more")
    desk.save("Escape", "1", "2", "3", "Control+Enter")
    assert desk.saved(project).note == "1 see us? bagful = 3\nmore"


def test_pairs_by_arrows_and_numbers(desk: Desk) -> None:
    project = desk.open(compare="pairwise", num_responses=2)
    desk.save("ArrowLeft", "ArrowLeft", "Enter")
    assert (desk.shown_ranks(project), desk.saved(project).strength) == ([1, 2], 2)
    desk.save("u")
    desk.save("9", "ArrowRight", "Enter")
    assert (desk.shown_ranks(project), desk.saved(project).strength) == ([2, 1], 4)
    desk.save("u")
    desk.save("=", "Enter")
    assert (desk.shown_ranks(project), desk.saved(project).strength) == ([1, 1], 0)


def test_ranks_and_ratings_on_one_page(desk: Desk) -> None:
    project = desk.open(num_responses=2, ratings=("helpful", "honest"))
    desk.press("2", "Enter")
    assert "How helpful is A" in desk.page.locator("#hint").inner_text()
    desk.save("7", "6", "5", "Backspace", "4", "1", "Enter")
    answer = desk.saved(project)
    assert desk.shown_ranks(project) == [2, 1]
    assert [answer.ratings["helpful"][i] for i in answer.order] == [7, 4]
    assert [answer.ratings["honest"][i] for i in answer.order] == [6, 1]


def test_ratings_alone(desk: Desk) -> None:
    project = desk.open(compare="none", num_responses=1, ratings=("helpful",))
    desk.save("5", "Enter")
    assert desk.saved(project).ratings == {"helpful": (5,)}


def test_skip_by_keys(desk: Desk) -> None:
    project = desk.open()
    desk.press("s")
    desk.save("2", "Enter")
    (skip,) = standing_answers(desk.database, project.id).skips
    assert skip.why == "I do not know enough to judge"
    assert desk.page.get_by_role("button", name="Save").is_visible()


def test_undo_shows_the_answer_given(desk: Desk) -> None:
    desk.open()
    prompt = desk.page.locator(".prompt").inner_text()
    desk.save("2", "=", "1", "3", "Enter")
    assert desk.page.locator(".prompt").inner_text() != prompt
    desk.save("u")
    assert desk.page.locator(".prompt").inner_text() == prompt
    assert desk.page.locator(".standing").all_inner_texts() == ["=1", "=1", "2", "3"]
    with desk.database.read() as session:
        undone = select(AnswerRow.undone_at).where(AnswerRow.account_id == desk.account_id)
        assert all(session.scalars(undone))


def test_undo_from_the_page_after_the_last_task(desk: Desk) -> None:
    desk.open(Prompt("Only one?"))
    desk.save("1", "2", "3", "Enter")
    assert desk.page.get_by_role("heading", name="All done").is_visible()
    desk.save("u")
    assert "Only one?" in desk.page.locator(".prompt").inner_text()


def hold(desk: Desk, key: str) -> None:
    """Keep a key down for so long that it repeats, over the pages that follow."""
    desk.page.wait_for_load_state()
    for _ in range(20):
        desk.page.keyboard.down(key)
        time.sleep(0.03)  # as fast as keyboards repeat; nothing is asked of the time it takes
    desk.page.keyboard.up(key)
    desk.page.wait_for_load_state()


@pytest.mark.parametrize("left", [1, 0], ids=["on a task", "on the page after the last task"])
def test_a_key_that_is_held_takes_one_answer_back(desk: Desk, left: int) -> None:
    project = desk.open(*(Prompt(str(i)) for i in range(4)))
    for _ in range(4 - left):
        desk.save("1", "2", "3", "Enter")
    asked = []
    desk.page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    hold(desk, "u")
    assert len(standing_answers(desk.database, project.id).answers) == 3 - left
    assert len(asked) == 1


def test_a_key_that_is_held_fills_in_one_rating_and_saves_once(desk: Desk) -> None:
    project = desk.open(Prompt("a"), Prompt("b"), compare="none", num_responses=2, ratings=("kind", "true"))
    hold(desk, "5")
    assert desk.page.locator(".rating input:checked").count() == 1
    desk.press("5", "5", "5")
    hold(desk, "Enter")
    assert desk.saved(project).ratings == {"kind": (5, 5), "true": (5, 5)}


def test_an_arrow_that_is_held_goes_to_the_end_of_the_scale(desk: Desk) -> None:
    project = desk.open(compare="pairwise", num_responses=2)
    desk.page.locator(".scale input").first.focus()
    hold(desk, "ArrowRight")
    desk.save("Enter")
    assert (desk.shown_ranks(project), desk.saved(project).strength) == ([2, 1], 4)


def test_undo_by_a_click_asks_before_a_note_is_lost(desk: Desk) -> None:
    project = desk.open(*(Prompt(str(i)) for i in range(3)))
    for _ in range(2):
        desk.save("1", "2", "3", "Enter")
    desk.press("n")
    desk.page.keyboard.type("a long note")
    asked: list[str] = []
    desk.page.once("dialog", lambda dialog: asked.append(dialog.message) or dialog.dismiss())
    desk.page.get_by_role("button", name="Undo").click()
    assert "is lost" in asked[0]
    assert desk.page.locator("#note").input_value() == "a long note"
    assert len(standing_answers(desk.database, project.id).answers) == 2
    desk.page.once("dialog", lambda dialog: dialog.accept())
    with desk.page.expect_navigation():
        desk.page.get_by_role("button", name="Undo").click()
    assert desk.page.locator("#note").input_value() == ""
    with desk.page.expect_navigation():
        desk.page.get_by_role("button", name="Undo").click()
    assert standing_answers(desk.database, project.id).answers == ()


def test_what_was_said_fits_again_where_a_lead_has_changed_what_is_asked(desk: Desk) -> None:
    project = desk.open(num_responses=2, ratings=("kind", "5\" 'tall\\'"), flags=("toxic", "made up"))
    desk.press("2", "Enter", "3", "6", "4", "5", "f", "a", "2", "Escape", "n")
    desk.page.keyboard.type("Because.")
    settings = replace(project.settings, ratings=("new", "5\" 'tall\\'", "kind"), flags=("made up",))
    Projects(desk.database).change(project.id, settings, 1, None)
    desk.save("Control+Enter")
    assert "what is asked was changed while this page was open" in desk.page.get_by_role("alert").inner_text()
    assert "409" in desk.troubles.pop()
    desk.page.goto(f"/projects/{project.id}/label")
    assert desk.page.locator("#note").input_value() == "Because."
    for place in range(2):
        desk.page.locator(f"input[name=rating_new_{place}][value='7']").check()
    desk.save("Control+Enter")
    answer = desk.saved(project)
    by_name = {name: [values[position] for position in answer.order] for name, values in answer.ratings.items()}
    assert by_name == {"new": [7, 7], "5\" 'tall\\'": [6, 5], "kind": [3, 4]}
    assert (desk.shown_ranks(project), answer.flags, answer.note) == ([2, 1], {"made up": (answer.order[0],)}, "Because.")


def test_guidelines_and_keys_are_one_key_away(desk: Desk) -> None:
    desk.open(guidelines="Be **kind**.")
    guidelines, keys = desk.page.locator("#guidelines"), desk.page.locator("#keys")
    assert not guidelines.is_visible()
    desk.press("g")
    assert guidelines.locator("strong").inner_text() == "kind"
    desk.press("1", "g")
    assert not guidelines.is_visible()
    assert desk.page.locator(".order .chip").count() == 0
    desk.press("?")
    assert "Backspace" in keys.inner_text()
    desk.press("Escape")
    assert not keys.is_visible()


def test_harmful_content_is_blurred_until_it_is_asked_for(desk: Desk) -> None:
    project = desk.open(Prompt("Gore?", {"categories": "violence"}))
    veil = desk.page.locator(".veil")
    blurred = lambda: veil.evaluate("e => getComputedStyle(e).filter")  # noqa: E731
    assert "blur" in blurred()
    assert "violence" in desk.page.locator(".cover").inner_text()
    desk.press("1", "2", "3", "Enter")
    assert standing_answers(desk.database, project.id).answers == ()
    desk.press("b")
    assert blurred() == "none"
    desk.save("b", "1", "3", "Enter")
    assert desk.shown_ranks(project)[1] == 1


def test_a_click_lifts_the_blur(desk: Desk) -> None:
    desk.open(Prompt("Gore?", {"categories": "violence"}))
    desk.page.locator(".cover").click()
    assert desk.page.locator(".veil").evaluate("e => getComputedStyle(e).filter") == "none"


@pytest.mark.parametrize("settings", [{}, {"compare": "pairwise", "num_responses": 2}, {"ratings": ("helpful", "harmless"), "ideal": True}])
def test_a_phone_needs_no_sideways_scroll(desk_of: Callable[..., Desk], settings: dict[str, object]) -> None:
    desk = desk_of(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    desk.open(Prompt((Message("system", LONG), Message("user", LONG))), guidelines=LONG, **settings)
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [box for box in (found.bounding_box() for found in desk.page.locator("button:visible, .bar label").all()) if box]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)


def test_a_finger_ranks_on_a_phone(desk_of: Callable[..., Desk]) -> None:
    desk = desk_of(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    project = desk.open()
    for letter in "BDA":
        desk.page.locator(".heap .chip", has_text=letter).tap()
    with desk.page.expect_navigation():
        desk.page.get_by_role("button", name="Save").tap()
    assert desk.shown_ranks(project) == [3, 1, 4, 2]


def test_without_a_script_the_form_still_works(desk_of: Callable[..., Desk]) -> None:
    desk = desk_of(java_script_enabled=False)
    project = desk.open(num_responses=2, ratings=("kind",), guidelines="Be **kind**.")
    desk.page.get_by_role("button", name="Guidelines").click()
    assert desk.page.locator("#guidelines strong").is_visible()
    desk.page.keyboard.press("Escape")
    for name, value in {"rank_0": "2", "rank_1": "1", "rating_kind_0": "3", "rating_kind_1": "7"}.items():
        desk.page.locator(f"input[name={name}][value='{value}']").check()
    with desk.page.expect_navigation():
        desk.page.get_by_role("button", name="Save").click()
    assert desk.shown_ranks(project) == [2, 1]


def test_what_was_said_outlives_a_session_that_ended_and_a_reload(desk: Desk) -> None:
    project = desk.open(num_responses=2, ratings=("helpful",), flags=("toxic", "made up"), ideal=True)
    desk.press("2", "Enter", "3", "6", "f", "a", "2", "Escape", "i")
    desk.page.keyboard.type("Because.")
    desk.page.context.clear_cookies()
    desk.save("Control+Enter")
    assert desk.page.url.endswith("/sign-in")
    url = desk.page.url.removesuffix("/sign-in")
    token = Accounts(desk.database).start_session(desk.account_id)
    desk.page.context.add_cookies([{"name": COOKIE, "value": token, "url": url}])
    desk.page.goto(f"/projects/{project.id}/label")
    assert desk.page.locator("#ideal").input_value() == "Because."
    desk.page.reload()
    desk.save("Control+Enter")
    answer = desk.saved(project)
    assert desk.shown_ranks(project) == [2, 1]
    assert (answer.ideal, {*answer.ratings["helpful"]}, answer.flags) == ("Because.", {3, 6}, {"made up": (answer.order[0],)})
    assert desk.page.locator("#ideal").input_value() == "", "another task is another draft"


def test_a_draft_does_not_hide_what_the_server_has(desk: Desk) -> None:
    project, tasks = desk.open(num_responses=2), Tasks(desk.database)
    desk.press("1")
    task = tasks.next(project.id, desk.account_id)
    assert task is not None
    tasks.answer(task.lease_id, desk.account_id, Answer(ranks=(2, 1)))
    tasks.undo(project.id, desk.account_id)
    desk.page.reload()
    desk.save("Enter")
    assert desk.shown_ranks(project) == [2, 1]


def test_nothing_in_a_response_runs(desk: Desk) -> None:
    evil = "<img src=x onerror=alert(1)> ![x](http://127.0.0.1:9/x.png) <script>document.title = 'run'</script> [x](javascript:alert(1))"
    project = desk.open(Prompt(evil))
    Projects(desk.database).add_items(project.id, [(Prompt("evil"), [Response(evil), Response(evil + "!")])], None)
    desk.page.reload()
    assert "run" not in desk.page.title()
    assert desk.page.locator(".content img, .content script, .content a[href^=javascript]").count() == 0


def test_a_lead_decides_by_keys(desk: Desk) -> None:
    project = desk.open(Prompt("Which?"), num_responses=2, overlap=2)
    desk.save("1", "Enter")
    accounts, tasks = Accounts(desk.database), Tasks(desk.database)
    bob = accounts.accept(accounts.invite("annotator", None), f"Bob {project.id}", PASSWORD)
    task = tasks.next(project.id, bob.id)
    assert task is not None
    best = TEXTS[desk.saved(project).order[0]]
    tasks.answer(task.lease_id, bob.id, Answer(ranks=(2, 1) if task.responses[0] == best else (1, 2)))
    desk.page.goto(f"/projects/{project.id}/adjudicate")
    desk.page.get_by_role("link", name="Which?").click()
    assert f"Bob {project.id}" in desk.page.locator(".opinions").inner_text()
    desk.save("2", "Enter")
    assert desk.page.get_by_text("decided", exact=True).is_visible()
