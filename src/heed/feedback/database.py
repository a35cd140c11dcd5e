"""One database for everything that people say of responses: SQLite in a file, or PostgreSQL for a team."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session

from heed.errors import UserError
from heed.feedback.schema import Base, PromptRow

LOCK_TIMEOUT = 60.0
"""Seconds a write waits for another process's write."""
CLEAR_TIMEOUT = 5.0
"""Seconds that others are kept waiting while the log of an SQLite file is cleared."""
CONNECTIONS = 40
"""Kept open at most: no more than there are threads at work."""
MIGRATIONS = Path(__file__).parent / "migrations"
FIRST_REVISION = "0001"
"""The tables as they were before databases knew their revision."""


class Database:
    """A feedback database, opened and brought to the tables of this version.

    `location` is a file (made where there is none) or a database URL. Raises UserError where it cannot be opened, or was
    written by a newer heed.
    """

    def __init__(self, location: str | Path) -> None:
        self.engine = _open(location)
        sqlite = self.engine.dialect.name == "sqlite"
        self._reading = self.engine if sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        # SQLite has one writer at a time, and lets the others poll for their turn: threads wait for it here instead.
        self._turn = RLock() if sqlite else nullcontext()
        self._to_clear = False

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A view of the database as it is at one moment, which no writer blocks."""
        with Session(self._reading) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: on disk when the block ends, and nothing of it where the block raises."""
        with self._turn:
            with Session(self._writing) as session, session.begin():
                yield session
            if self._to_clear:
                self._to_clear = not self._clear_log(0)

    def clear_log(self) -> None:
        """Leave no older content in the log beside an SQLite file, where what was deleted would stay as long as the file is open.

        Where someone is still reading that content, it goes with the first write after they are done.
        """
        if self.engine.dialect.name == "sqlite":
            with self._turn:
                self._to_clear = not self._clear_log(CLEAR_TIMEOUT)

    def _clear_log(self, seconds: float) -> bool:
        """Whether nobody was in the way."""
        with closing(self.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")
            try:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                busy, *_ = cursor.fetchone() or (1,)
                return not busy
            finally:
                cursor.execute(f"PRAGMA busy_timeout={int(LOCK_TIMEOUT * 1000)}")

    def close(self) -> None:
        """Let the connections go; the next call opens them again."""
        self.engine.dispose()


def take_turns(session: Session, name: str) -> None:
    """Wait until no other transaction that named the same is under way: what is not found then is nobody's to add but this one's."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})


def _open(location: str | Path) -> Engine:
    if "://" in str(location):
        url: str | URL = str(location)
    else:
        try:
            Path(location).parent.mkdir(parents=True, exist_ok=True)
            if not Path(location).exists():
                Path(location).touch(mode=0o600)  # what people said, and their passwords' hashes, are for no other user of the machine
        except OSError as error:
            raise UserError(f"cannot make it: {error.strerror}", file=location) from error
        url = URL.create("sqlite", database=str(location))
    try:
        # A server that was restarted is noticed before a connection is used, not by the annotator.
        engine = create_engine(url, json_serializer=partial(json.dumps, ensure_ascii=False), pool_size=CONNECTIONS, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(f"{location} is no database: {error}", expected="a file or a URL such as postgresql+psycopg://...") from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"the driver {error.name} is not installed", fix="pip install 'heed-rlhf[postgres]', or keep feedback in a file"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        with engine.connect() as connection:
            current = _revision(connection) == _newest()
        if not current:
            # Under the write lock: another process may be making the same tables.
            with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
                _migrate(connection)
    except DatabaseError as error:
        raise UserError(f"cannot open {engine.url}: {error.orig}", expected="a feedback store or a new file") from error
    return engine


def _migrate(connection: Connection) -> None:
    """Make the tables, or bring those of an older version to this one."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4040)")
    revision, newest = _revision(connection), _newest()
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise UserError(f"{connection.engine.url} has tables of revision {revision}", expected=f"{newest} or older", fix="update heed")
    config = config_of(connection)
    if revision is None and not inspect(connection).has_table(PromptRow.__tablename__):
        Base.metadata.create_all(connection)
        command.stamp(config, "head")
        return
    if revision is None:
        command.stamp(config, FIRST_REVISION)
    command.upgrade(config, "head")


def config_of(connection: Connection | None = None) -> Config:
    """What Alembic's commands take."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config_of())


def _newest() -> str | None:
    return _scripts().get_current_head()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _configure_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # The driver's own transactions begin too late (at the first write) to keep what was read before it true.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={int(LOCK_TIMEOUT * 1000)}")
    _use_wal(connection)
    # What is deleted is overwritten, so that nothing of a person who was forgotten is left in the file.
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Several may open a new file at once; for this one change SQLite does not wait for the others, whatever the timeout."""
    end = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Any) -> None:
    # IMMEDIATE takes the write lock before reading, so that checking and adding cannot race with another process.
    connection.exec_driver_sql("BEGIN " + connection.get_execution_options().get("sqlite_begin", "DEFERRED"))
