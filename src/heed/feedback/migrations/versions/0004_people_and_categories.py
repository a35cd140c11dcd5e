"""People whom files named can be forgotten as others can, items hold the categories that their prompts' tags name, and an annotator's last
answer is found by an index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

accounts = sa.table("accounts", sa.column("id", sa.Integer), sa.column("deleted_at", sa.DateTime))
audit = sa.table("audit", sa.column("action", sa.String), sa.column("detail", sa.JSON))
prompts = sa.table("prompts", sa.column("id", sa.String), sa.column("tags", sa.JSON))
items = sa.table("items", sa.column("prompt_id", sa.String), sa.column("categories", sa.JSON))


def upgrade() -> None:
    op.create_index("answers_in_order", "answers", ["account_id", "id"])
    database = op.get_bind()
    # They were marked as deleted, that nobody might sign in as them, with their name still there.
    forgotten = set(database.scalars(sa.select(audit.c.detail["account"].as_integer()).where(audit.c.action == "account.delete")))
    marked = set(database.scalars(sa.select(accounts.c.id).where(accounts.c.deleted_at.is_not(None))))
    for account_id in sorted(marked - forgotten):
        database.execute(sa.update(accounts).where(accounts.c.id == account_id).values(deleted_at=None))
    held = sa.select(items.c.prompt_id, items.c.categories, prompts.c.tags).join(prompts, prompts.c.id == items.c.prompt_id)
    names: dict[str, dict[str, str]] = {}
    old: dict[str, list[list[str]]] = {}
    tags: dict[str, dict[str, str]] = {}
    for prompt_id, categories, said in database.execute(held):
        found = [name.strip() for name in said.get("categories", "").split(",") if name.strip()]
        for name in (*found, *categories):
            names.setdefault(prompt_id, {}).setdefault(name.casefold(), name)
        old.setdefault(prompt_id, []).append(categories)
        tags[prompt_id] = said
    for prompt_id, known in names.items():
        if any(categories != list(known) for categories in old[prompt_id]):
            database.execute(sa.update(items).where(items.c.prompt_id == prompt_id).values(categories=list(known)))
            said = {**tags[prompt_id], "categories": ", ".join(known.values())}
            database.execute(sa.update(prompts).where(prompts.c.id == prompt_id).values(tags=said))
