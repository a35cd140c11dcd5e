"""A PostgreSQL cluster of the tests' own: made from nothing, reached by a socket in its folder, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

import pytest
from sqlalchemy import URL, create_engine

POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)


def _user() -> str | None:
    """Whom to run the server as: PostgreSQL refuses the administrator."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


class Missing(Exception):
    """There is no PostgreSQL here, and why."""


@contextmanager
def running_cluster() -> Iterator[Path]:
    """The folder of a running server, with its socket; raises Missing where there can be none."""
    initdb, pg_ctl, user = shutil.which("initdb"), shutil.which("pg_ctl"), _user()
    if find_spec("psycopg") is None:
        raise Missing("psycopg is not installed")
    if initdb is None or pg_ctl is None:
        raise Missing("PostgreSQL's initdb and pg_ctl are not on the path")
    if user is None:
        raise Missing("there is no user to run PostgreSQL as")
    folder = Path(tempfile.mkdtemp(prefix="heed-postgres-"))
    shutil.chown(folder, user)

    def run(*command: str) -> None:
        done = subprocess.run(
            command, user=user if os.geteuid() == 0 else None, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')} {_log(folder)}"

    data, log = str(folder / "data"), str(folder / "log")
    run(initdb, "--pgdata", data, "--username", "heed", "--auth", "trust", "--encoding", "UTF8", "--locale", "C")
    run(pg_ctl, "start", "--pgdata", data, "--log", log, "--wait", "--options", f"-c listen_addresses='' -k {folder} -c fsync=on")
    try:
        yield folder
    finally:
        run(pg_ctl, "stop", "--pgdata", data, "--mode", "immediate")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Path]:
    """The folder of a running server."""
    try:
        with running_cluster() as folder:
            yield folder
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres_databases(postgres_cluster: Path) -> list[str]:
    """Databases that are empty, and that no test uses now."""
    return []


@pytest.fixture
def new_postgres_database(postgres_cluster: Path, postgres_databases: list[str]) -> Iterator[Callable[[], str]]:
    """Gives an empty database, of which it returns the URL."""
    given: list[str] = []
    server = create_engine(database_url(postgres_cluster, "postgres"), isolation_level="AUTOCOMMIT")

    def make() -> str:
        if postgres_databases:
            given.append(postgres_databases.pop())
        else:
            given.append(f"test_{token_hex(4)}")
            with server.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {given[-1]}")
        return database_url(postgres_cluster, given[-1]).render_as_string()

    yield make
    for name in given:
        with server.connect() as connection:
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        emptied = create_engine(database_url(postgres_cluster, name))
        with emptied.begin() as connection:  # much faster than another database
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        emptied.dispose()
        postgres_databases.append(name)
    server.dispose()


def database_url(folder: Path, name: str) -> URL:
    """Of a database in a running cluster."""
    return URL.create("postgresql+psycopg", username="heed", database=name, query={"host": str(folder)})


def _log(folder: Path) -> str:
    log = folder / "log"
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""
