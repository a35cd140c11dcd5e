"""How the labelling app answers under a team's load, and over a store that is full.

    python benchmarks/bench_label.py [--quick] [--annotators 50] [--seconds 60] [--pause 2] [--judgements 100000]

A real server process on loopback, over SQLite and, where its programs are present, PostgreSQL (fsync on). First many annotators at
once: each gets the task's page, waits for `--pause` seconds on average, and sends the answer; a save is the time until the server has
acknowledged it. Then every page, and saves, over a store of `--judgements` judgements, asked for one after the other.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from results import ROOT, write_results
from sqlalchemy import create_engine, insert, select

sys.path.insert(0, str(ROOT))

from tests.postgres import Missing, database_url, running_cluster
from tests.web.server import serving

from heed.feedback.accounts import Accounts
from heed.feedback.database import Database
from heed.feedback.projects import Projects, ProjectSettings
from heed.feedback.schema import AccountRow, AnswerRow, ItemResponseRow, ItemRow, JudgementRow, LeaseRow, RankRow, utc_now
from heed.records import Prompt, Response
from heed.web.site import COOKIE

K, OVERLAP = 4, 5
TARGETS = {"save_median_ms": 50, "save_p99_ms": 250, "page_ms": 300, "dashboard_ms": 1000, "lost": 0, "duplicate_leases": 0}


class Annotator(Thread):
    """Reads, thinks and answers until the time is up."""

    def __init__(self, address: str, project_id: int, session: tuple[str, str], options: argparse.Namespace, seed: int) -> None:
        super().__init__(daemon=True)
        self.address, self.project_id, self.options = address, project_id, options
        (self.cookie, self.csrf), self.random = session, random.Random(seed)
        self.saves: list[float] = []
        self.pages: list[float] = []
        self.saved: list[int] = []
        self.refused: list[str] = []

    def run(self) -> None:
        pause = self.options.pause
        with httpx.Client(base_url=self.address, cookies={COOKIE: self.cookie}, timeout=120) as browser:
            time.sleep(self.random.uniform(0, 2 * pause))  # they do not begin on the same stroke
            end = time.monotonic() + self.options.seconds
            while time.monotonic() < end:
                page, taken = timed(browser, "GET", f"/projects/{self.project_id}/label")
                self.pages.append(taken)
                found = re.search(r"/tasks/(\d+)/answer", page.text)
                if found is None:
                    self.refused.append(f"page {page.status_code}")
                    continue
                time.sleep(self.random.uniform(0.5 * pause, 1.5 * pause))
                done, taken = timed(browser, "POST", f"/tasks/{found[1]}/answer", data=ranking(self.csrf, self.random))
                self.saves.append(taken)
                if done.status_code == 303:
                    self.saved.append(int(found[1]))
                else:
                    self.refused.append(f"save {done.status_code}")


def ranking(csrf: str, generator: random.Random) -> dict[str, str]:
    """A form that is filled in."""
    return {"csrf": csrf, "note": "", "rank_0": "1", **{f"rank_{i}": str(generator.randint(2, K)) for i in range(1, K)}}


def timed(browser: httpx.Client, method: str, path: str, **options: Any) -> tuple[httpx.Response, float]:
    """The response, and milliseconds until it was there."""
    start = time.perf_counter()
    response = browser.request(method, path, **options)
    return response, 1000 * (time.perf_counter() - start)


def new_project(database: Database, items: int) -> int:
    projects = Projects(database)
    made = projects.create("benchmark", ProjectSettings(num_responses=K, overlap=OVERLAP, guidelines="Be **kind**."), None)
    words = ["kettle", "stove", "cat", "garden", "sleeps", "warms", "beside", "under", "quietly", "until", "somebody", "home"]
    generator = random.Random(0)

    def text() -> str:
        return " ".join(generator.choices(words, k=40))

    rows = [(Prompt(f"Question {i}: {text()}?"), [Response(f"{k} {text()}", model=f"model-{k}") for k in range(K)]) for i in range(items)]
    projects.add_items(made.id, rows, None)
    return made.id


def people(database: Database, number: int, role: str) -> list[tuple[int, str, str]]:
    """Accounts that are signed in: id, cookie, and the token of its forms."""
    accounts, found = Accounts(database), []
    for i in range(number):
        with database.write() as session:
            row = AccountRow(name=f"{role} {i}", password="none", role=role, avoid=[])
            session.add(row)
            session.flush()
            account_id = row.id
        cookie = accounts.start_session(account_id)
        signed = accounts.signed_in(cookie)
        assert signed is not None
        found.append((account_id, cookie, signed.csrf))
    return found


def load(location: str, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Annotators at once."""
    database = Database(location)
    project_id = new_project(database, max(20, options.annotators * 10))
    annotators = people(database, options.annotators, "annotator")
    with serving(location, log) as (_, address):
        httpx.get(f"{address}/sign-in")
        start = time.monotonic()
        team = [Annotator(address, project_id, (cookie, csrf), options, i) for i, (_, cookie, csrf) in enumerate(annotators)]
        for annotator in team:
            annotator.start()
        for annotator in team:
            annotator.join()
        seconds = time.monotonic() - start
    saves, pages = [s for a in team for s in a.saves], [p for a in team for p in a.pages]
    saved = [lease_id for annotator in team for lease_id in annotator.saved]
    with database.read() as session:
        standing = select(AnswerRow.lease_id).where(AnswerRow.undone_at.is_(None), AnswerRow.judgement_id.is_not(None))
        kept = Counter(session.scalars(standing))
        leases = session.execute(select(LeaseRow.item_id, LeaseRow.account_id, LeaseRow.slot)).all()
        remaining = dict(session.execute(select(ItemRow.id, ItemRow.remaining)).all())
    database.close()
    taken = Counter(item_id for item_id, _, slot in leases if slot is not None)
    twice = len(leases) - len({lease[:2] for lease in leases}) + len(leases) - len({(item, slot) for item, _, slot in leases})
    return {
        "annotators": options.annotators,
        "seconds": round(seconds, 1),
        "saves": len(saved),
        "saves_per_second": round(len(saved) / seconds, 1),
        "save_median_ms": round(statistics.median(saves), 1),
        "save_p99_ms": round(statistics.quantiles(saves, n=100)[98], 1),
        "page_median_ms": round(statistics.median(pages), 1),
        "page_p99_ms": round(statistics.quantiles(pages, n=100)[98], 1),
        "refused": dict(Counter(reason for annotator in team for reason in annotator.refused)),
        "lost": sum(kept[lease_id] != 1 for lease_id in saved),
        "duplicate_leases": twice + sum(number + remaining[item_id] != OVERLAP for item_id, number in taken.items()),
    }


def fill(database: Database, project_id: int, annotators: list[int], judgements: int) -> None:
    """Judgements of every item by as many annotators as it wants, straight into the tables; what is beyond is left for later."""
    generator, now = random.Random(1), utc_now()
    with database.read() as session:
        items = session.execute(select(ItemRow.id, ItemRow.prompt_id).order_by(ItemRow.id)).all()
        places = select(ItemResponseRow.item_id, ItemResponseRow.position, ItemResponseRow.response_id)
        responses = {(item_id, position): response_id for item_id, position, response_id in session.execute(places)}
        names = dict(session.execute(select(AccountRow.id, AccountRow.name)).all())
    tables: dict[type[Any], list[dict[str, Any]]] = {LeaseRow: [], JudgementRow: [], RankRow: [], AnswerRow: []}
    for number in range(judgements):
        (item_id, prompt_id), slot = items[number // OVERLAP], number % OVERLAP
        account_id = annotators[(7 * (number // OVERLAP) + slot) % len(annotators)]
        at = now - timedelta(seconds=20.0 * (judgements - number))
        shown = generator.sample(range(K), K)
        quality = [position + generator.gauss(0, 1.5) for position in range(K)]
        ranks = [sorted(quality).index(value) + 1 for value in quality]
        common = {"id": number + 1, "item_id": item_id, "account_id": account_id, "created_at": at}
        tables[LeaseRow].append({**common, "slot": slot, "reason": "random", "order": shown, "state": "answered", "expires_at": at})
        said = {"id": number + 1, "prompt_id": prompt_id, "annotator": names[account_id], "seconds": 20.0, "note": "", "created_at": at}
        tables[JudgementRow].append(said)
        tables[RankRow] += [
            {"judgement_id": number + 1, "position": i, "response_id": responses[item_id, i], "rank": ranks[i], "shown": shown.index(i)}
            for i in range(K)
        ]
        flags = {"toxic": [generator.randrange(K)]} if generator.random() < 0.05 else {}
        written = {"ratings": {}, "flags": flags, "ideal": "", "skipped": "", "note": "", "seconds": generator.expovariate(1 / 30)}
        tables[AnswerRow].append({**common, "lease_id": number + 1, "judgement_id": number + 1, **written})
    with database.write() as session:
        for table, rows in tables.items():
            session.execute(insert(table), rows)
        done = [item_id for item_id, _ in items[: judgements // OVERLAP]]
        for start in range(0, len(done), 500):
            session.query(ItemRow).where(ItemRow.id.in_(done[start : start + 500])).update(
                {ItemRow.remaining: 0}, synchronize_session=False
            )
        if database.engine.dialect.name == "postgresql":  # there the rows are numbered by sequences, which know nothing of these
            for table in (LeaseRow, JudgementRow, AnswerRow):
                name = table.__tablename__
                session.connection().exec_driver_sql(f"SELECT setval('{name}_id_seq', {judgements})")


def full_store(location: str, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every page over many judgements: the first time, and the slowest and the median of those after."""
    database = Database(location)
    judged = options.judgements // OVERLAP
    project_id = new_project(database, judged + max(judged // 19, 101))
    team = people(database, 50, "annotator")
    fill(database, project_id, [account_id for account_id, _, _ in team], options.judgements)
    ((_, owner, _),) = people(database, 1, "owner")
    with database.read() as session:
        item_id = session.scalar(select(ItemRow.id).order_by(ItemRow.id))
    database.close()
    project = f"/projects/{project_id}"
    pages = {
        "label": (team[0][1], f"{project}/label"),
        "projects": (owner, "/"),
        "dashboard": (owner, project),
        "dashboard refreshed": (owner, f"{project}/live"),
        "adjudicate": (owner, f"{project}/adjudicate"),
        "decide": (owner, f"/items/{item_id}/decide"),
        "people": (owner, "/people"),
        "account": (owner, "/account"),
        "audit": (owner, "/audit"),
        "import": (owner, f"{project}/import"),
        "export": (owner, f"{project}/export"),
        "settings": (owner, f"{project}/settings"),
        "guidelines": (owner, f"{project}/guidelines"),
    }
    with serving(location, log) as (_, address):
        number = 3 if options.quick else 10
        found = {name: page_times(address, cookie, path, number) for name, (cookie, path) in pages.items()}
        return {**found, "save": save_times(address, team[0], f"{project}/label", 10 * number)}


def save_times(address: str, annotator: tuple[int, str, str], path: str, number: int) -> dict[str, Any]:
    _, cookie, csrf = annotator
    generator, found = random.Random(0), []
    with httpx.Client(base_url=address, cookies={COOKIE: cookie}, timeout=600) as browser:
        for _ in range(number + 1):
            lease = re.search(r"/tasks/(\d+)/answer", browser.get(path).text)
            assert lease is not None, "items are left to be judged"
            found.append(timed(browser, "POST", f"/tasks/{lease[1]}/answer", data=ranking(csrf, generator)))
    return summary(found)


def page_times(address: str, cookie: str, path: str, number: int) -> dict[str, Any]:
    """`numbers_ms` is when the page had its numbers, where it came without them at first."""
    with httpx.Client(base_url=address, cookies={COOKIE: cookie}, timeout=600) as browser:
        started = time.perf_counter()
        first = timed(browser, "GET", path)
        waited = {}
        while "being worked out" in browser.get(path).text:
            time.sleep(0.1)
            waited = {"numbers_ms": round(1e3 * (time.perf_counter() - started), 1)}
        return summary([first, *(timed(browser, "GET", path) for _ in range(number))]) | waited


def summary(found: list[tuple[httpx.Response, float]]) -> dict[str, Any]:
    times = [round(taken, 1) for _, taken in found]
    status = Counter(response.status_code for response, _ in found)
    return {"status": dict(status), "first_ms": times[0], "median_ms": statistics.median(times[1:]), "slowest_ms": max(times[1:])}


@contextmanager
def locations() -> Iterator[dict[str, list[str]]]:
    """Two empty databases of each kind."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = {"sqlite": [str(folder / "load.db"), str(folder / "full.db")]}
        try:
            cluster = stack.enter_context(running_cluster())
        except Missing as missing:
            print(f"no PostgreSQL: {missing}")
        else:
            server = create_engine(database_url(cluster, "postgres"), isolation_level="AUTOCOMMIT")
            with server.connect() as connection:
                for name in ("load", "full"):
                    connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
            server.dispose()
            found["postgresql"] = [database_url(cluster, name).render_as_string() for name in ("load", "full")]
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes no results")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--judgements", type=int, default=100_000)
    options = parser.parse_args()
    if options.quick:
        options.annotators, options.seconds, options.pause, options.judgements = 5, 5.0, 0.5, 1_000
    results: dict[str, Any] = {"targets": TARGETS, "pause_seconds": options.pause, "judgements": options.judgements}
    with locations() as found, tempfile.TemporaryDirectory() as logs:
        for kind, (empty, full) in found.items():
            results[kind] = {"load": load(empty, Path(logs) / "load", options), "pages": full_store(full, Path(logs) / "full", options)}
            print(kind, results[kind]["load"])
            for name, times in results[kind]["pages"].items():
                print(f"  {name:20} {times}")
    if not options.quick:
        write_results("bench_label", " ".join(["python", *sys.argv]), results)


if __name__ == "__main__":
    main()
