"""Who may do what: accounts, invitations, being signed in, and keys to the API. Secrets are kept as hashes alone."""

from __future__ import annotations

import hashlib
import json
import secrets
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import ColumnElement, Text, cast, delete, func, or_, select, text, update
from sqlalchemy.orm import Session

from heed.errors import UserError, require
from heed.feedback.database import Database
from heed.feedback.ordering import from_file
from heed.feedback.projects import Conflict, Forbidden, NotFound, audit
from heed.feedback.schema import (
    AccountRow,
    AnswerRow,
    ApiTokenRow,
    AuditRow,
    DecisionRow,
    InvitationRow,
    ItemRow,
    JudgementRow,
    RankRow,
    SessionRow,
    utc_now,
)

Role = Literal["owner", "lead", "annotator", "viewer"]
ROLES: tuple[Role, ...] = get_args(Role)
RIGHTS: dict[Role, frozenset[str]] = {
    "owner": frozenset({"label", "see", "lead", "own"}),
    "lead": frozenset({"label", "see", "lead"}),
    "annotator": frozenset({"label"}),
    "viewer": frozenset({"see"}),
}
"""`label`: answer tasks. `see`: dashboards. `lead`: change projects, adjudicate, export, invite. `own`: roles and the audit log."""
SESSION_DAYS = 14
INVITATION_DAYS = 7
SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 1_000
MOST_A_DAY = 100_000
"""The highest daily cap."""
LOG_PAGE = 100
"""Entries of the audit log that are read at a time."""

_hasher = PasswordHash((Argon2Hasher(),))
_NOBODY = _hasher.hash(secrets.token_urlsafe())
"""Checked where there is no such account, so that the time tells nothing."""


@dataclass(frozen=True, slots=True)
class Account:
    """Someone who signs in."""

    id: int
    name: str
    role: Role
    daily_cap: int | None
    avoid: tuple[str, ...]
    created_at: datetime

    def may(self, right: str) -> bool:
        return right in RIGHTS[self.role]


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A browser in which someone is signed in."""

    account: Account
    csrf: str
    """What each of its forms must hold."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of the audit log."""

    id: int
    at: datetime
    """UTC."""
    who: str | None
    """The name of whoever did it, or the pseudonym; none where that was the program, or no one signed in."""
    action: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """A link that nobody has used yet."""

    digest: str
    """By which it is withdrawn; the link itself is known to those who have it alone."""
    role: Role
    invited_by: str | None
    """A name or a pseudonym; none where the program made the link."""
    created_at: datetime
    expires_at: datetime


def invitable(account: Account) -> list[Role]:
    """The roles that this person may invite others to, annotators first: they are most of a team."""
    return ["annotator", "lead", "viewer", *(("owner",) if account.may("own") else ())]


class Accounts:
    """Accounts and everything that proves to be one of them; every change is audited, and on disk when the call returns.

    The audit log can forget nothing, so it never holds the name of an account, nor what a person typed: ids suffice.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def all(self) -> list[Account]:
        """Those that can sign in, oldest first."""
        return self._known(AccountRow.password.is_not(None))

    def imported(self) -> list[Account]:
        """Those whom files named and who cannot sign in, oldest first; not those that were deleted."""
        return self._known(AccountRow.password.is_(None))

    def get(self, account_id: int) -> Account:
        with self.database.read() as session:
            return _account(_row(session, account_id))

    def invite(self, role: Role, by: int | None, *, days: float = INVITATION_DAYS) -> str:
        """The secret of a link that makes one account with this role."""
        require(role in ROLES, "role", role, f"one of {', '.join(ROLES)}")
        token = secrets.token_urlsafe(24)
        with self.database.write() as session:
            if by is not None:
                _standing(session, by)
            session.execute(delete(InvitationRow).where(InvitationRow.accepted_by.is_(None), InvitationRow.expires_at < utc_now()))
            digest, expires = _digest(token), utc_now() + timedelta(days=days)
            session.add(InvitationRow(token=digest, role=role, created_by=by, expires_at=expires))
            audit(session, by, "invite", role=role, invitation=digest[:8])
        return token

    def invite_first_owner(self) -> str:
        """The secret of a link that is good for a day, for whoever starts the server; those of earlier starts are good no more."""
        with self.database.write() as session:
            session.execute(delete(InvitationRow).where(InvitationRow.accepted_by.is_(None), InvitationRow.created_by.is_(None)))
        return self.invite("owner", None, days=1)

    def invitations(self) -> list[OpenInvitation]:
        """Those that can still be accepted, oldest first."""
        query = select(InvitationRow, AccountRow.name).join(AccountRow, AccountRow.id == InvitationRow.created_by, isouter=True)
        query = query.where(InvitationRow.accepted_by.is_(None), InvitationRow.expires_at > utc_now()).order_by(InvitationRow.created_at)
        with self.database.read() as session:
            found = session.execute(query).tuples()
            return [OpenInvitation(row.token, _role(row.role), name, row.created_at, row.expires_at) for row, name in found]

    def withdraw(self, digest: str, by: Account) -> None:
        """Make a link good for nothing; NotFound where it is no open invitation, Forbidden where this person may not make such a one."""
        with self.database.write() as session:
            _standing(session, by.id)  # accounts are locked before invitations, here as where one is deleted
            row = session.get(InvitationRow, digest, with_for_update=True)
            if row is None or row.accepted_by is not None:
                raise NotFound("there is no such open invitation", fix="reload the page: it may have been accepted meanwhile")
            if row.role not in invitable(by):
                raise Forbidden(f"the role {by.role} may not withdraw this invitation", fix="ask an owner to")
            session.delete(row)
            audit(session, by.id, "invite.withdraw", role=row.role, invitation=digest[:8])

    def invited_role(self, token: str) -> Role:
        """What a link is for; NotFound where it is no invitation, was used, or has expired."""
        with self.database.read() as session:
            return _role(_invitation(session, token).role)

    def accept(self, token: str, name: str, password: str) -> Account:
        """Make the account that a link invites to. Raises UserError for a name or password that will not do, Conflict for a taken name."""
        self.invited_role(token)  # before the hashing, which is dear: strangers must not set it off
        name = check_name(name)
        hashed = _hasher.hash(check_password(password, name))
        with self.database.write() as session:
            alone(session)
            invitation = _invitation(session, token, lock=True)
            if named(session, name) is not None:
                raise Conflict(f"the name {name!r} is taken", fix="choose another")
            row = AccountRow(name=name, password=hashed, role=invitation.role, avoid=[])
            session.add(row)
            session.flush()
            invitation.accepted_by = row.id
            audit(session, row.id, "account.create", role=row.role)
            return _account(row)

    def sign_in(self, name: str, password: str) -> str | None:
        """The secret of a new session's cookie; None for a wrong name or password."""
        with self.database.read() as session:
            row = named(session, name)
        right = _hasher.verify(password[:LONGEST_PASSWORD], row.password if row is not None and row.password else _NOBODY)
        if not right or row is None or row.deleted_at is not None:
            with self.database.write() as session:
                audit(session, None, "sign_in.refused", account=None if row is None else row.id)
            return None
        return self.start_session(row.id)

    def start_session(self, account_id: int) -> str:
        """The secret of a new session's cookie, for someone who has just proved who they are."""
        token = secrets.token_urlsafe(32)
        with self.database.write() as session:
            _standing(session, account_id)
            session.execute(delete(SessionRow).where(SessionRow.expires_at < utc_now()))
            expires = utc_now() + timedelta(days=SESSION_DAYS)
            csrf = secrets.token_urlsafe(24)
            session.add(SessionRow(token=_digest(token), account_id=account_id, csrf=csrf, expires_at=expires))
            audit(session, account_id, "sign_in")
        return token

    def signed_in(self, token: str) -> SignedIn | None:
        """Whose cookie this is; None once it has expired or been signed out."""
        with self.database.read() as session:
            query = select(AccountRow, SessionRow.csrf).join(SessionRow, SessionRow.account_id == AccountRow.id)
            found = session.execute(
                query.where(SessionRow.token == _digest(token), SessionRow.expires_at > utc_now(), AccountRow.deleted_at.is_(None))
            ).first()
            return None if found is None else SignedIn(_account(found[0]), found[1])

    def sign_out(self, token: str) -> None:
        with self.database.write() as session:
            row = session.get(SessionRow, _digest(token))
            if row is not None:
                audit(session, row.account_id, "sign_out")
                session.delete(row)

    def new_token(self, account_id: int, label: str) -> str:
        """The secret of a new key to the JSON API; shown once."""
        label = label.strip()
        require(0 < len(label) <= 80 and label.isprintable(), "label", label[:100], "1 to 80 characters that can be seen")
        token = f"heed_{secrets.token_urlsafe(32)}"
        digest = _digest(token)
        with self.database.write() as session:
            _standing(session, account_id)
            session.add(ApiTokenRow(token=digest, account_id=account_id, label=label))
            audit(session, account_id, "token.create", token=digest[:8])
        return token

    def tokens(self, account_id: int) -> list[tuple[str, str, datetime]]:
        """Of each key its digest (by which it is revoked), its label, and when it was made."""
        with self.database.read() as session:
            rows = session.scalars(select(ApiTokenRow).where(ApiTokenRow.account_id == account_id).order_by(ApiTokenRow.created_at))
            return [(row.token, row.label, row.created_at) for row in rows]

    def revoke_token(self, account_id: int, digest: str) -> None:
        with self.database.write() as session:
            row = session.get(ApiTokenRow, digest)
            if row is None or row.account_id != account_id:
                raise NotFound("there is no such key of yours")
            session.delete(row)
            audit(session, account_id, "token.revoke", token=digest[:8])

    def of_token(self, token: str) -> Account | None:
        """Whose key to the API this is."""
        with self.database.read() as session:
            query = select(AccountRow).join(ApiTokenRow, ApiTokenRow.account_id == AccountRow.id)
            row = session.scalar(query.where(ApiTokenRow.token == _digest(token), AccountRow.deleted_at.is_(None)))
            return None if row is None else _account(row)

    def change_password(self, account_id: int, old: str, new: str) -> None:
        """Every other browser is signed out. Raises UserError for a wrong old password or a new one that will not do."""
        with self.database.read() as session:
            row = _member(session, account_id)
        if not _hasher.verify(old[:LONGEST_PASSWORD], row.password or _NOBODY):
            raise UserError("the old password is wrong")
        hashed = _hasher.hash(check_password(new, row.name))
        with self.database.write() as session:
            alone(session)
            _member(session, account_id).password = hashed
            session.execute(delete(SessionRow).where(SessionRow.account_id == account_id))
            audit(session, account_id, "account.password")

    def change(self, account_id: int, by: int, *, daily_cap: int | None, avoid: Sequence[str] | None = None) -> Account:
        """Limits to what a person is asked to see: answers a day, and categories that are not shown; None leaves these as they are."""
        require(daily_cap is None or 0 < daily_cap <= MOST_A_DAY, "daily_cap", daily_cap, f"1 to {MOST_A_DAY:,}, or none")
        categories = sorted({name.strip().casefold(): name.strip() for name in avoid or () if name.strip()}.values())
        clean = len(categories) <= 100 and all(len(name) <= 80 and name.isprintable() for name in categories)
        require(clean, "avoid", ", ".join(categories)[:200], "at most 100 categories of 1 to 80 characters that can be seen")
        with self.database.write() as session:
            alone(session)
            row = _member(session, account_id)
            row.daily_cap, row.avoid = daily_cap, row.avoid if avoid is None else categories
            audit(session, by, "account.change", account=account_id, daily_cap=daily_cap, avoided=len(row.avoid))
            return _account(row)

    def change_role(self, account_id: int, role: Role, by: int) -> Account:
        """Open invitations that the new role may not make are withdrawn. Conflict where no owner would be left."""
        require(role in ROLES, "role", role, f"one of {', '.join(ROLES)}")
        with self.database.write() as session:
            alone(session)
            row = _member(session, account_id)
            before, row.role = row.role, role
            _keep_an_owner(session)
            audit(session, by, "account.role", account=account_id, before=before, after=role)
            account = _account(row)
            _withdraw(session, account_id, by, kept=invitable(account) if account.may("lead") else ())
            return account

    def delete(self, account_id: int, by: int) -> str:
        """Forget a person; judgements stay, signed by the pseudonym that is returned, and open invitations are withdrawn.

        Conflict where no owner would be left.
        """
        with self.database.write() as session:
            alone(session)
            row = _row(session, account_id, lock=True)  # waits for answers that are just being signed with the name, and for sign-ins
            name, pseudonym = row.name, f"annotator-{secrets.token_hex(4)}"
            session.execute(update(JudgementRow).where(JudgementRow.annotator == name).values(annotator=pseudonym))
            session.execute(delete(SessionRow).where(SessionRow.account_id == account_id))
            session.execute(delete(ApiTokenRow).where(ApiTokenRow.account_id == account_id))
            row.name, row.password, row.daily_cap, row.avoid, row.deleted_at = pseudonym, None, None, [], utc_now()
            _keep_an_owner(session)
            _withdraw(session, account_id, by)
            audit(session, by, "account.delete", account=account_id)
        self.database.clear_log()
        return pseudonym

    def answers_today(self) -> dict[int, int]:
        """By account, the answers since midnight UTC that were not undone and that no file brought; nothing for those who gave none."""
        midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
        standing = AnswerRow.created_at >= midnight, AnswerRow.undone_at.is_(None), ~from_file(AnswerRow.lease_id)
        query = select(AnswerRow.account_id, func.count()).where(*standing)
        with self.database.read() as session:
            return dict(session.execute(query.group_by(AnswerRow.account_id)).all())

    def categories(self) -> list[str]:
        """What items of any project are said to hold; of spellings that differ in capitals alone, one."""
        with self.database.read() as session:
            found = session.scalars(select(cast(ItemRow.categories, Text)).distinct())
            return sorted({name.casefold(): name for names in found for name in json.loads(names)}.values())

    def log(self, prefix: str = "", before: int | None = None) -> list[LogEntry]:
        """The newest entries of the audit log whose action begins with `prefix`, older than entry `before` if one is named."""
        query = select(AuditRow, AccountRow.name).join(AccountRow, AccountRow.id == AuditRow.account_id, isouter=True)
        query = query.where(AuditRow.action.startswith(prefix, autoescape=True))
        if before is not None:
            query = query.where(AuditRow.id < before)
        with self.database.read() as session:
            rows = session.execute(query.order_by(AuditRow.id.desc()).limit(LOG_PAGE))
            return [LogEntry(row.id, row.at, name, row.action, row.detail) for row, name in rows]

    def personal_data(self, account_id: int) -> dict[str, Any]:
        """All that is kept about a person, as it goes into JSON; ranks are in the order of the item, 1 for the best."""
        with self.database.read() as session:

            def own(table: type[Any]) -> Sequence[Any]:
                return session.scalars(select(table).where(table.account_id == account_id).order_by(table.created_at)).all()

            account = asdict(_account(_row(session, account_id)))
            judgements = select(AnswerRow.id, RankRow.rank).join(RankRow, RankRow.judgement_id == AnswerRow.judgement_id)
            ranks: dict[int, list[int]] = {}
            for answer, rank in session.execute(judgements.where(AnswerRow.account_id == account_id).order_by(RankRow.position)):
                ranks.setdefault(answer, []).append(rank)
            about = or_(AuditRow.account_id == account_id, AuditRow.detail["account"].as_integer() == account_id)
            log = session.scalars(select(AuditRow).where(about).order_by(AuditRow.id)).all()
            found = {
                "account": account,
                "keys": [{"label": row.label, "created_at": row.created_at} for row in own(ApiTokenRow)],
                "sessions": [{"created_at": row.created_at, "expires_at": row.expires_at} for row in own(SessionRow)],
                "sign_ins": [row.at for row in log if row.action == "sign_in"],
                "answers": [{**_columns(row), "ranks": ranks.get(row.id)} for row in own(AnswerRow)],
                "decisions": [_columns(row) for row in own(DecisionRow)],
                "log": [_columns(row) for row in log],
            }
        return json.loads(json.dumps(found, default=lambda at: f"{at.isoformat()}Z"))

    def _known(self, which: ColumnElement[bool]) -> list[Account]:
        with self.database.read() as session:
            query = select(AccountRow).where(AccountRow.deleted_at.is_(None), which).order_by(AccountRow.id)
            return [_account(row) for row in session.scalars(query)]


def check_name(name: str) -> str:
    """A name without spaces around it; UserError where it is empty, too long, or holds what cannot be seen."""
    name = unicodedata.normalize("NFC", name).strip()
    if not 0 < len(name) <= 80 or not name.isprintable():
        raise UserError(f"a name of {len(name)} characters", expected="1 to 80 that can be seen")
    return name


def name_key(name: str) -> str:
    """What two names have in common that people would take for the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


def check_password(password: str, name: str) -> str:
    """UserError for a password that is short, absurdly long, or the name."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise UserError(f"a password of {len(password)} characters", expected=f"{SHORTEST_PASSWORD} to {LONGEST_PASSWORD}")
    if name_key(name) in name_key(password) and len(password) < len(name) + SHORTEST_PASSWORD // 2:
        raise UserError("a password that is your name", expected="one that others do not guess")
    return password


def _account(row: AccountRow) -> Account:
    return Account(row.id, row.name, _role(row.role), row.daily_cap, tuple(row.avoid), row.created_at)


def _role(role: str) -> Role:
    assert role in ROLES
    return role  # pyright: ignore[reportReturnType]


def _row(session: Session, account_id: int, *, lock: bool = False) -> AccountRow:
    row = session.get(AccountRow, account_id, with_for_update=lock or None)
    if row is None or row.deleted_at is not None:
        raise NotFound(f"there is no account {account_id}")
    return row


def _member(session: Session, account_id: int) -> AccountRow:
    """Someone who can sign in."""
    row = _row(session, account_id)
    if not row.can_sign_in:
        raise NotFound(f"nobody signs in to account {account_id}")
    return row


def _standing(session: Session, account_id: int) -> None:
    """NotFound for an account that was deleted, or that nobody signs in to; until the transaction ends that is not so."""
    found = session.scalar(select(AccountRow).where(AccountRow.id == account_id).with_for_update(read=True))
    if found is None or not found.can_sign_in:
        raise NotFound(f"there is no account {account_id}")


def _columns(row: AnswerRow | DecisionRow | AuditRow) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


def named(session: Session, name: str) -> AccountRow | None:
    """The account of this name, also a deleted one. Compared here, as databases differ in what is the same letter; a team is small."""
    # Those who can sign in first: a project that was imported may have brought another spelling of the name.
    key, in_order = name_key(name), (AccountRow.password.is_(None), AccountRow.id)
    names = session.execute(select(AccountRow.id, AccountRow.name).order_by(*in_order)).tuples()
    found = next((account_id for account_id, other in names if name_key(other) == key), None)
    return None if found is None else session.get(AccountRow, found)


def alone(session: Session) -> None:
    """Let no one else add, change or delete accounts until this transaction ends; on SQLite every write is alone."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE"))


def _invitation(session: Session, token: str, *, lock: bool = False) -> InvitationRow:
    row = session.get(InvitationRow, _digest(token), with_for_update=lock or None)
    if row is None or row.accepted_by is not None or row.expires_at <= utc_now():
        raise NotFound("this invitation is no longer good", fix="ask for a new one")
    return row


def _withdraw(session: Session, account_id: int, by: int, kept: Collection[Role] = ()) -> None:
    """Make what someone invites to good for nothing, but for the `kept` roles."""
    own = InvitationRow.created_by == account_id, InvitationRow.accepted_by.is_(None), InvitationRow.role.not_in(kept)
    for row in session.scalars(select(InvitationRow).where(*own).with_for_update()).all():
        session.delete(row)
        audit(session, by, "invite.withdraw", role=row.role, invitation=row.token[:8])


def _keep_an_owner(session: Session) -> None:
    session.flush()
    owners = select(func.count(AccountRow.id)).where(AccountRow.role == "owner", AccountRow.password.is_not(None))
    if not session.scalar(owners):
        raise Conflict("no owner would be left", fix="make someone else an owner first")


def _digest(token: str) -> str:
    """Secrets are long and random: a plain hash keeps them."""
    return hashlib.sha256(token.encode()).hexdigest()
