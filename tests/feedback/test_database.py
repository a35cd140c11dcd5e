"""Databases of every age come out with the same tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from heed.errors import UserError
from heed.feedback.database import Database, config_of
from heed.feedback.schema import AccountRow, AuditRow, Base, ItemRow, ProjectRow, PromptRow
from heed.feedback.store import FeedbackStore
from heed.records import Judgement, Prompt, Response


def old_database(path: Path, revision: str) -> None:
    """A file as an earlier version left it."""
    with create_engine(f"sqlite:///{path}").begin() as connection:
        command.upgrade(config_of(connection), revision)


def differences(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)


def test_a_new_file_and_a_migrated_one_have_the_tables_of_the_schema(tmp_path: Path) -> None:
    old_database(tmp_path / "old.db", "0001")
    for name in ("new.db", "old.db"):
        assert differences(Database(tmp_path / name)) == []


def test_judgements_of_a_file_without_revision_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old_database(path, "0001")
    with create_engine(f"sqlite:///{path}").begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text("INSERT INTO prompts (number, id, content, tags) VALUES (1, :id, '\"Hi\"', '{}')"), {"id": Prompt("Hi").id})
        connection.execute(text("INSERT INTO responses (id, prompt_id, digest, text) VALUES (1, :id, 'a', 'x')"), {"id": Prompt("Hi").id})
    store = FeedbackStore(path)
    store.add_responses(Prompt("Hi"), [Response("y")])
    judgement = Judgement(Prompt("Hi"), ("x", "y"), (1, 2), "ann")
    store.add_judgement(judgement)
    assert store.judgements() == [judgement]
    assert differences(store.database) == []


def test_people_of_files_and_categories_that_an_older_version_left_are_put_right(location: str) -> None:
    engine = create_engine(location if "://" in location else f"sqlite:///{location}")
    with engine.begin() as connection:
        command.upgrade(config_of(connection), "0003")
        for row in (
            "prompts (number, id, content, tags) VALUES (1, 'war', '\"War?\"', '{\"categories\": \"Violence\"}')",
            "prompts (number, id, content, tags) VALUES (2, 'ill', '\"Ill?\"', '{\"kind\": \"a\"}')",
            "projects (id, name, settings, revision, created_at) VALUES (1, 'p', '{}', 1, '2024-05-06')",
            *(
                "items (id, project_id, prompt_id, digest, remaining, shuffle, priority, categories) "
                f"VALUES ({i}, 1, '{prompt}', '{i}', 1, 0, 0, '{held}')"
                for i, prompt, held in ((1, "war", "[]"), (2, "ill", '["drugs"]'), (3, "ill", "[]"))
            ),
            *(
                "accounts (id, name, role, avoid, created_at, deleted_at) "
                f"VALUES ({i}, '{name}', 'annotator', '[]', '2024-05-06', '2024-05-06')"
                for i, name in ((1, "Paula"), (2, "annotator-0badcafe"))
            ),
            "audit (at, account_id, action, detail) VALUES ('2024-05-06', 2, 'account.delete', '{\"account\": 2}')",
        ):
            connection.exec_driver_sql(f"INSERT INTO {row}")
    engine.dispose()
    with closing(Database(location)) as database, database.read() as session:
        assert session.scalars(select(AccountRow.name).where(AccountRow.deleted_at.is_(None))).all() == ["Paula"]
        assert session.scalars(select(ItemRow.categories).order_by(ItemRow.id)).all() == [["violence"], ["drugs"], ["drugs"]]
        assert session.scalars(select(PromptRow.tags).order_by(PromptRow.number)).all() == [
            {"categories": "Violence"},
            {"kind": "a", "categories": "drugs"},
        ]


def test_tables_of_a_newer_heed_are_left_alone(tmp_path: Path) -> None:
    Database(tmp_path / "f.db").close()
    with create_engine(f"sqlite:///{tmp_path / 'f.db'}").begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"9999.*update heed"):
        Database(tmp_path / "f.db")


def test_postgresql_and_sqlite_get_the_tables_of_the_schema_new_or_migrated(location: str) -> None:
    url = location if "://" in location else f"sqlite:///{location}"
    with create_engine(url).begin() as connection:
        command.upgrade(config_of(connection), "0001")
    migrated = Database(location)
    assert differences(migrated) == []
    migrated.close()


@pytest.fixture(params=["new", "migrated"])
def either(request: pytest.FixtureRequest, location: str) -> Iterator[Database]:
    """A database that was made with these tables, or brought to them."""
    if request.param == "migrated":
        engine = create_engine(location if "://" in location else f"sqlite:///{location}")
        with engine.begin() as connection:
            command.upgrade(config_of(connection), "0001")
        engine.dispose()
    found = Database(location)
    yield found
    found.close()


def test_the_audit_log_can_only_grow(either: Database) -> None:
    with either.write() as session:
        session.add(AuditRow(action="tested", detail={}))
    changes = ["UPDATE audit SET action = 'other'", "DELETE FROM audit"]
    if either.engine.dialect.name == "sqlite":
        changes += ["INSERT OR REPLACE INTO audit (id, at, action, detail) VALUES (1, '2024-01-01 00:00:00', 'other', '{}')"]
    else:
        changes += ["TRUNCATE audit"]
    for change in changes:
        with pytest.raises(DatabaseError, match="append-only"), either.write() as session:
            session.execute(text(change))
    with either.write() as session:
        session.add(AuditRow(action="tested again", detail={}))
    with either.read() as session:
        assert session.scalars(select(AuditRow.action).order_by(AuditRow.id)).all() == ["tested", "tested again"]


def test_many_who_open_a_new_database_at_once_make_its_tables_once(location: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Database(location), range(4)))
    assert [differences(database) for database in found] == [[]] * 4
    for database in found:
        database.close()


def test_who_opens_a_file_that_another_is_making_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("BEGIN IMMEDIATE")
        opened = pool.submit(Database, path)
        with pytest.raises(TimeoutError):
            opened.result(timeout=0.2)
        other.execute("ROLLBACK")
        with closing(opened.result(timeout=30)) as database:
            assert differences(database) == []


def test_a_new_file_is_for_no_other_user_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(Database(path)) as database, database.write() as session:
        session.add(ProjectRow(name="Mine", settings={}, revision=1))
        session.flush()
        assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(
            ("new.db", "new.db-shm", "new.db-wal"), 0o600
        )
    path.chmod(0o640)
    Database(path).close()
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_a_block_reads_is_of_one_moment(database: Database) -> None:
    def number(session: Session) -> int | None:
        return session.scalar(select(func.count(AuditRow.id)))

    with database.read() as session:
        before = number(session)
        with database.write() as other:
            other.add(AuditRow(action="tested", detail={}))
        assert number(session) == before == 0
    with database.read() as session:
        assert number(session) == 1


def test_nothing_of_a_block_that_raises_is_kept(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        session.add(AuditRow(action="tested", detail={}))
        session.flush()
        raise RuntimeError
    with database.read() as session:
        assert session.scalar(select(func.count(AuditRow.id))) == 0


def test_texts_and_structures_come_back_as_they_were(database: Database) -> None:
    detail = {"text": "naïve 東京 🎉 \u2028 ' \" % :name {} \\", "list": [1, None, True, 0.1], "nested": {"": {}}}
    with database.write() as session:
        session.add(AuditRow(action="tested", detail=detail))
    with database.read() as session:
        assert session.scalars(select(AuditRow.detail)).all() == [detail]


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UserError, match="cannot open") as found:
        Database("postgresql+psycopg://ann:secret@127.0.0.1:1/heed")
    assert "secret" not in str(found.value)
