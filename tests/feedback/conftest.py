"""A fresh database of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from heed.feedback.database import Database
from tests.postgres import POSTGRES, new_postgres_database, postgres_cluster, postgres_databases

__all__ = ["new_postgres_database", "postgres_cluster", "postgres_databases"]


@pytest.fixture(params=["sqlite", POSTGRES])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is, or may be made."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    return request.getfixturevalue("new_postgres_database")()


@pytest.fixture
def database(location: str) -> Iterator[Database]:
    found = Database(location)
    yield found
    found.close()
