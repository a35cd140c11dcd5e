"""Makes the pictures of the labelling guide: an annotator's page and a dashboard, over simulated annotators.

    python docs/images/labelling.py

Needs playwright (`pip install playwright`) and Chromium.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright
from sqlalchemy import update

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.reward_scores import add_reward_model, score_responses
from heed.feedback.schema import AnswerRow, JudgementRow, RewardModelRow, utc_now
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt, Response
from heed.testbed.datasets import load
from heed.testbed.gold import gold
from heed.web.app import create_app
from heed.web.site import COOKIE

HERE = Path(__file__).parent
PORT = 8431
TEAM = {"Ada": 0.3, "Ben": 0.4, "Cleo": 0.6, "Dan": 0.5, "Eve": 4.0}
"""Annotators and the noise of their judgement, in units of utility."""
GUIDELINES = "A good answer helps with what was asked, says what is true, and is polite. If two are equally good, call it a tie."


def fill(database: Database) -> tuple[int, str]:
    """A project that five people have worked on, and the cookie of its owner."""
    accounts, projects, generator = Accounts(database), Projects(database), random.Random(0)
    settings = ProjectSettings(guidelines=GUIDELINES, overlap=2, ideal=True, flags=("harmful", "made up", "rude"))
    project = projects.create("Helpful answers", settings, None)
    demonstrations = list(load("demonstrations"))
    said = [d.response for d in demonstrations]
    items = []
    for demonstration in demonstrations[:120]:
        texts = [demonstration.response, *generator.sample(said, 3)]
        items.append((Prompt(demonstration.prompt.text), [Response(text, model="demo") for text in texts]))
    projects.add_items(project.id, items, None)
    owner = accounts.accept(accounts.invite("owner", None), "Olga", "a long enough password")
    tasks = Tasks(database, generator)
    for name, noise in TEAM.items():
        annotator = accounts.accept(accounts.invite("annotator", None), name, "a long enough password")
        for _ in range(38):
            task = tasks.next(project.id, annotator.id)
            if task is None:
                break
            seen = [float(gold(task.prompt, text)["utility"]) + generator.gauss(0, noise) for text in task.responses]
            ranks = tuple(sorted(seen, reverse=True).index(value) + 1 for value in seen)
            flags = {"rude": (ranks.index(4),)} if generator.random() < 0.2 else {}
            tasks.answer(task.lease_id, annotator.id, Answer(ranks=ranks, flags=flags))
    # A reward model that sees the truth as through a mist, and came when half of the answers were there.
    model = add_reward_model(database, project.id, "runs/demo/stages/04-reward_model/model", "0" * 64)
    score_responses(database, model, lambda items: [float(gold(p, text)["utility"]) + generator.gauss(0, 0.8) for p, text in items])
    with database.write() as session:
        session.execute(update(RewardModelRow).values(created_at=utc_now() - timedelta(hours=35)))
    spread(database, generator)
    return project.id, accounts.start_session(owner.id)


def spread(database: Database, generator: random.Random) -> None:
    """Answers come within a second here; people take a few days."""
    with database.write() as session:
        for row in session.query(AnswerRow).order_by(AnswerRow.id):
            seconds = generator.lognormvariate(3.2, 0.5)
            created = row.created_at - timedelta(hours=generator.uniform(0, 70))
            row.seconds, row.created_at = seconds, created
            session.execute(update(JudgementRow).where(JudgementRow.id == row.judgement_id).values(seconds=seconds, created_at=created))


def main() -> None:
    database = Database(Path(tempfile.mkdtemp(prefix="labelling-")) / "feedback.db")
    project_id, token = fill(database)
    server = uvicorn.Server(uvicorn.Config(create_app(database), port=PORT, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{PORT}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        context = browser.new_context(viewport={"width": 1200, "height": 860}, device_scale_factor=1)
        context.add_cookies([{"name": COOKIE, "value": token, "url": address}])
        page = context.new_page()
        page.goto(f"{address}/projects/{project_id}/label")
        page.keyboard.press("b")
        page.screenshot(path=HERE / "label.png")
        page.goto(f"{address}/projects/{project_id}")
        page.screenshot(path=HERE / "dashboard.png")
        page.locator("section", has=page.get_by_role("heading", name="Reward model")).screenshot(path=HERE / "reward-model.png")
        browser.close()
    server.should_exit = True


if __name__ == "__main__":
    main()
