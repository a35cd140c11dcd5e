"""Who may do what, what proves to be someone, and what is forgotten of them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import select

from heed.errors import UserError
from heed.feedback import accounts as module
from heed.feedback import database as databases
from heed.feedback.accounts import LOG_PAGE, MOST_A_DAY, SESSION_DAYS, Account, Accounts, Role, check_name, name_key
from heed.feedback.database import Database
from heed.feedback.projects import Conflict, NotFound, Projects, ProjectSettings
from heed.feedback.schema import AccountRow, ApiTokenRow, AuditRow, Base, InvitationRow, SessionRow, utc_now
from heed.feedback.store import FeedbackStore
from heed.feedback.tasks import Answer, Tasks
from heed.records import Prompt, Response

PASSWORD = "a long enough password"


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hasher", PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "feedback.db")
    yield database
    database.close()


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return Accounts(database)


@pytest.fixture
def crowded(location: str) -> Iterator[Accounts]:
    """Of an empty database of either kind, for many at once."""
    database = Database(location)
    yield Accounts(database)
    database.close()


def join(accounts: Accounts, name: str, role: Role = "annotator") -> Account:
    return accounts.accept(accounts.invite(role, None), name, PASSWORD)


def dump(database: Database) -> str:
    """All that is in all tables."""
    with database.read() as session:
        tables = {table.name: [tuple(row) for row in session.execute(select(table))] for table in Base.metadata.sorted_tables}
    return json.dumps(tables, default=str, ensure_ascii=False)


def pass_days(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    monkeypatch.setattr(module, "utc_now", lambda: utc_now() + timedelta(days=days))


@pytest.mark.parametrize(
    ("role", "rights"),
    [("owner", "label see lead own"), ("lead", "label see lead"), ("annotator", "label"), ("viewer", "see")],
)
def test_each_role_may_do_just_this(accounts: Accounts, role: Role, rights: str) -> None:
    account = join(accounts, "Ann", role)
    assert [right for right in ("label", "see", "lead", "own") if account.may(right)] == rights.split()


def test_whoever_accepts_an_invitation_can_sign_in(accounts: Accounts) -> None:
    account = join(accounts, "Ann", "lead")
    token = accounts.sign_in("Ann", PASSWORD)
    assert token is not None
    signed = accounts.signed_in(token)
    assert signed is not None
    assert signed.account == account == accounts.get(account.id)


def test_an_invitation_is_good_once(accounts: Accounts) -> None:
    token = accounts.invite("annotator", None)
    assert accounts.invited_role(token) == "annotator"
    accounts.accept(token, "Ann", PASSWORD)
    with pytest.raises(NotFound, match="no longer good"):
        accounts.accept(token, "Ben", PASSWORD)
    with pytest.raises(NotFound):
        accounts.invited_role(token)
    assert [account.name for account in accounts.all()] == ["Ann"]


def test_many_who_accept_one_invitation_at_once_make_one_account(crowded: Accounts) -> None:
    token = crowded.invite("annotator", None)

    def accept(number: int) -> bool:
        try:
            crowded.accept(token, f"Person {number}", PASSWORD)
        except NotFound:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(accept, range(8))) == 1
    assert len(crowded.all()) == 1


@pytest.mark.parametrize("token", ["", "forged", "' OR 1=1 --", "\0", "x" * 10_000])
def test_a_forged_invitation_is_none(accounts: Accounts, token: str) -> None:
    accounts.invite("owner", None)
    with pytest.raises(NotFound):
        accounts.accept(token, "Eve", PASSWORD)


def test_an_invitation_expires(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    token = accounts.invite("annotator", None)
    pass_days(monkeypatch, 6.9)
    assert accounts.invited_role(token) == "annotator"
    pass_days(monkeypatch, 7.1)
    with pytest.raises(NotFound):
        accounts.accept(token, "Ann", PASSWORD)


def test_open_invitations_are_those_that_can_still_be_accepted(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    olga = join(accounts, "Olga", "owner")
    first, second = accounts.invite("annotator", olga.id, days=1), accounts.invite("lead", None)
    listed = accounts.invitations()
    assert [(found.role, found.invited_by) for found in listed] == [("annotator", "Olga"), ("lead", None)]
    assert [found.expires_at - found.created_at < timedelta(days=1.1) for found in listed] == [True, False]
    assert first not in str(listed)
    pass_days(monkeypatch, 2)
    assert [found.role for found in accounts.invitations()] == ["lead"]
    accounts.accept(second, "Ben", PASSWORD)
    assert accounts.invitations() == []


def test_an_invitation_that_was_withdrawn_is_good_for_nothing(accounts: Accounts) -> None:
    olga, token = join(accounts, "Olga", "owner"), accounts.invite("annotator", None)
    (found,) = accounts.invitations()
    accounts.withdraw(found.digest, olga)
    assert accounts.invitations() == []
    with pytest.raises(NotFound, match="no longer good"):
        accounts.accept(token, "Ann", PASSWORD)
    with pytest.raises(NotFound, match="no such open invitation"):
        accounts.withdraw(found.digest, olga)
    withdrawn, made = accounts.log("invite")[:2]
    assert (withdrawn.action, withdrawn.who, withdrawn.detail) == ("invite.withdraw", "Olga", made.detail)


def test_invitations_of_someone_who_is_deleted_or_may_invite_no_more_are_good_for_nothing(crowded: Accounts) -> None:
    olga, otto = (join(crowded, name, "owner") for name in ("Olga", "Otto"))
    lea, lisa = (join(crowded, name, "lead") for name in ("Lea", "Lisa"))
    tokens = {who.name: crowded.invite("lead", who.id) for who in (olga, otto, lea, lisa)}
    to_own = crowded.invite("owner", otto.id)
    crowded.delete(lea.id, olga.id)
    crowded.change_role(lisa.id, "annotator", olga.id)
    crowded.change_role(otto.id, "lead", olga.id)
    assert {invitation.invited_by for invitation in crowded.invitations()} == {"Olga", "Otto"}
    for token in (tokens["Lea"], tokens["Lisa"], to_own):
        with pytest.raises(NotFound, match="no longer good"):
            crowded.accept(token, "Eve", PASSWORD)
    assert len(crowded.log("invite.withdraw")) == 3
    with pytest.raises(NotFound):
        crowded.invite("lead", lea.id)
    assert crowded.accept(tokens["Otto"], "Ann", PASSWORD).role == "lead"


def test_an_invitation_that_was_accepted_cannot_be_withdrawn(accounts: Accounts) -> None:
    token = accounts.invite("annotator", None)
    (found,) = accounts.invitations()
    ann = accounts.accept(token, "Ann", PASSWORD)
    with pytest.raises(NotFound):
        accounts.withdraw(found.digest, ann)


def test_an_invitation_is_either_accepted_or_withdrawn(crowded: Accounts) -> None:
    olga = join(crowded, "Olga", "owner")
    for turn in range(8):
        token = crowded.invite("annotator", None)
        (found,) = crowded.invitations()

        def tried(call: Callable[..., object], *arguments: object) -> bool:
            try:
                call(*arguments)
            except NotFound:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            withdrawn = pool.submit(tried, crowded.withdraw, found.digest, olga)
            accepted = pool.submit(tried, crowded.accept, token, f"Person {turn}", PASSWORD)
            assert withdrawn.result() != accepted.result()


def test_invitations_that_have_expired_are_cleared_away(accounts: Accounts, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.invite("annotator", None)
    join(accounts, "Ann")
    pass_days(monkeypatch, 8)
    accounts.invite("annotator", None)
    with database.read() as session:
        assert session.query(InvitationRow).count() == 2


def test_of_links_for_the_first_owner_the_last_alone_is_good(accounts: Accounts) -> None:
    earlier, last = accounts.invite_first_owner(), accounts.invite_first_owner()
    with pytest.raises(NotFound):
        accounts.accept(earlier, "Mallory", PASSWORD)
    assert accounts.accept(last, "Olga", PASSWORD).role == "owner"


def test_no_hash_is_computed_for_strangers_without_an_invitation(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hasher", None)
    with pytest.raises(NotFound):
        accounts.accept("forged", "Eve", PASSWORD)


@pytest.mark.parametrize(
    ("first", "second"),
    [("Ann", "ann"), ("Änne", "äNNE"), ("Zoe\u0308", "Zo\u00eb"), ("Straße", "STRASSE"), ("Ann", "  Ann "), ("Ann", "\uff21nn")],
)
def test_names_that_look_the_same_are_one(accounts: Accounts, first: str, second: str) -> None:
    account = join(accounts, first)
    with pytest.raises(Conflict, match="taken"):
        join(accounts, second)
    token = accounts.sign_in(second, PASSWORD)
    assert token is not None
    signed = accounts.signed_in(token)
    assert signed is not None
    assert signed.account == account


def test_of_two_who_choose_the_same_name_at_once_one_gets_it(crowded: Accounts) -> None:
    def accept(name: str) -> bool:
        try:
            join(crowded, name)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(accept, ["Änne", "änne", "ÄNNE", "änNe"])) == 1


@pytest.mark.parametrize("name", ["张伟", "Ólafur Þór", "नमस्ते", "O'Brien; DROP TABLE accounts", '<b>"Bo"</b>', "x" * 80])
def test_a_name_is_kept_as_it_is_written(accounts: Accounts, name: str) -> None:
    assert join(accounts, name).name == name
    assert accounts.sign_in(name, PASSWORD) is not None


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "a\0b", "\u202egnol", "zero\u200bwidth", "\ud800", "x" * 81])
def test_a_name_can_be_seen(name: str) -> None:
    with pytest.raises(UserError, match="a name of"):
        check_name(name)


@pytest.mark.parametrize("password", ["", "short", "x" * 9, "x" * 1001, "annabel-lee", "Annabel-Lee1"])
def test_a_password_that_is_short_or_the_name_will_not_do(accounts: Accounts, password: str) -> None:
    with pytest.raises(UserError, match="a password"):
        accounts.accept(accounts.invite("annotator", None), "Annabel-Lee", password)
    assert accounts.all() == []


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("Ann", "wrong password"),
        ("Ann", ""),
        ("Ann", PASSWORD.upper()),
        ("Ben", PASSWORD),
        ("", ""),
        ("' OR 1=1 --", PASSWORD),
        ("%", PASSWORD),
    ],
)
def test_a_wrong_name_or_password_does_not_sign_in(accounts: Accounts, name: str, password: str) -> None:
    join(accounts, "Ann")
    assert accounts.sign_in(name, password) is None


def test_secrets_are_not_in_the_database(accounts: Accounts, database: Database) -> None:
    invitation = accounts.invite("annotator", None)
    account = accounts.accept(invitation, "Ann", PASSWORD)
    session, key = accounts.start_session(account.id), accounts.new_token(account.id, "notebook")
    accounts.sign_in("Ann", "hunter2 typed wrong")
    accounts.sign_in("hunter2 typed as the name", PASSWORD)
    found = dump(database)
    for secret in (invitation, session, key, PASSWORD, "hunter2"):
        assert secret not in found


def test_a_session_expires_and_signing_out_ends_it(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    account = join(accounts, "Ann")
    first, second = accounts.start_session(account.id), accounts.start_session(account.id)
    accounts.sign_out(first)
    assert accounts.signed_in(first) is None
    assert accounts.signed_in(second) is not None
    pass_days(monkeypatch, SESSION_DAYS + 0.01)
    assert accounts.signed_in(second) is None


def test_sessions_that_have_expired_are_cleared_away(accounts: Accounts, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    account = join(accounts, "Ann")
    accounts.start_session(account.id)
    pass_days(monkeypatch, SESSION_DAYS + 1)
    accounts.start_session(account.id)
    with database.read() as session:
        assert len(session.scalars(select(SessionRow.token)).all()) == 1


def test_a_new_password_ends_all_sessions_and_the_old_one(accounts: Accounts) -> None:
    account = join(accounts, "Ann")
    token = accounts.start_session(account.id)
    with pytest.raises(UserError, match="old password is wrong"):
        accounts.change_password(account.id, "not the old one", "another long password")
    assert accounts.signed_in(token) is not None
    accounts.change_password(account.id, PASSWORD, "another long password")
    assert accounts.signed_in(token) is None
    assert accounts.sign_in("Ann", PASSWORD) is None
    assert accounts.sign_in("Ann", "another long password") is not None


def test_a_key_is_good_until_it_is_revoked_by_its_owner(accounts: Accounts) -> None:
    ann, ben = join(accounts, "Ann"), join(accounts, "Ben")
    token = accounts.new_token(ann.id, "notebook")
    assert accounts.of_token(token) == ann
    ((digest, label, _),) = accounts.tokens(ann.id)
    assert label == "notebook"
    with pytest.raises(NotFound):
        accounts.revoke_token(ben.id, digest)
    accounts.revoke_token(ann.id, digest)
    assert accounts.of_token(token) is None
    assert accounts.tokens(ann.id) == []


@pytest.mark.parametrize("label", ["", "  ", "x" * 81, "a\0b", "a\nb", "\ud800"])
def test_a_key_has_a_label_that_can_be_seen(accounts: Accounts, label: str) -> None:
    with pytest.raises(UserError, match="label"):
        accounts.new_token(join(accounts, "Ann").id, label)


def test_limits_are_kept_and_categories_left_alone_where_none_are_named(accounts: Accounts) -> None:
    account = join(accounts, "Ann")
    changed = accounts.change(account.id, account.id, daily_cap=3, avoid=["violence ", "gore", "", "gore"])
    assert (changed.daily_cap, changed.avoid) == (3, ("gore", "violence"))
    changed = accounts.change(account.id, account.id, daily_cap=None)
    assert (changed.daily_cap, changed.avoid) == (None, ("gore", "violence"))


@pytest.mark.parametrize("cap", [0, -1, MOST_A_DAY + 1, 10**30])
def test_a_daily_cap_is_a_number_of_answers(accounts: Accounts, cap: int) -> None:
    with pytest.raises(UserError, match="daily_cap"):
        accounts.change(join(accounts, "Ann").id, 1, daily_cap=cap)


@pytest.mark.parametrize("avoid", [["x" * 81], ["a\0b"], [str(number) for number in range(101)]])
def test_categories_are_few_and_short(accounts: Accounts, avoid: list[str]) -> None:
    with pytest.raises(UserError, match="avoid"):
        accounts.change(join(accounts, "Ann").id, 1, daily_cap=None, avoid=avoid)


def test_the_last_owner_stays(accounts: Accounts) -> None:
    owner = join(accounts, "Ann", "owner")
    join(accounts, "Ben", "lead")
    with pytest.raises(Conflict, match="no owner would be left"):
        accounts.change_role(owner.id, "lead", owner.id)
    with pytest.raises(Conflict, match="no owner would be left"):
        accounts.delete(owner.id, owner.id)
    assert accounts.get(owner.id) == owner


def test_of_two_owners_who_leave_at_once_one_stays(crowded: Accounts) -> None:
    owners = [join(crowded, name, "owner") for name in ("Ann", "Ben")]

    def leave(owner: Account) -> bool:
        try:
            crowded.delete(owner.id, owner.id)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(leave, owners)) == [False, True]


def test_whoever_is_deleted_while_something_changes_is_forgotten(crowded: Accounts) -> None:
    """What comes after the deletion is refused; a change that waited for it must not bring a password or a name back."""
    olga = join(crowded, "Olga", "owner")
    changes: list[Callable[[int], object]] = [
        lambda account: crowded.change_password(account, PASSWORD, "another long password"),
        lambda account: crowded.change(account, account, daily_cap=5, avoid=["spiders"]),
        lambda account: crowded.change_role(account, "lead", olga.id),
        lambda account: crowded.new_token(account, "Ann's"),
        lambda account: crowded.start_session(account),
    ]

    def changed(change: Callable[[int], object], account: int) -> None:
        with contextlib.suppress(NotFound, UserError):
            change(account)

    with ThreadPoolExecutor(6) as pool:
        for turn in range(6):
            ann = join(crowded, f"Ann {turn}")
            running = [pool.submit(changed, change, ann.id) for change in changes]
            pseudonym = crowded.delete(ann.id, olga.id)
            for each in running:
                each.result()
            with crowded.database.read() as session:
                row = session.get_one(AccountRow, ann.id)
                assert (row.name, row.password, row.daily_cap, row.avoid) == (pseudonym, None, None, [])
                assert session.query(ApiTokenRow).count() == session.query(SessionRow).count() == 0


def test_answers_that_are_given_while_their_author_is_deleted_are_signed_by_the_pseudonym(crowded: Accounts) -> None:
    olga = join(crowded, "Olga", "owner")
    projects, tasks = Projects(crowded.database), Tasks(crowded.database)
    project = projects.create("Kind", ProjectSettings(num_responses=2), None)
    projects.add_items(project.id, [(Prompt(f"{i}?"), [Response("yes"), Response("no")]) for i in range(40)], None)

    def work(account: Account) -> None:
        with contextlib.suppress(NotFound):
            while (task := tasks.next(project.id, account.id)) is not None:
                tasks.answer(task.lease_id, account.id, Answer(ranks=(1, 2)))

    with ThreadPoolExecutor(2) as pool:
        people = [join(crowded, name) for name in ("Ann", "Ben")]
        working = [pool.submit(work, account) for account in people]
        while not crowded.answers_today():
            pass
        pseudonyms = {crowded.delete(account.id, olga.id) for account in people}
        for each in working:
            each.result()
    assert {judgement.annotator for judgement in FeedbackStore(crowded.database).judgements()} <= pseudonyms


def test_another_spelling_of_a_name_that_came_with_a_project_locks_no_one_out(accounts: Accounts) -> None:
    with accounts.database.write() as session:
        session.add(AccountRow(name="ANN", role="annotator", avoid=[]))
        session.add(AccountRow(name="Ann", role="annotator", avoid=[], password=module._hasher.hash(PASSWORD)))
    assert accounts.sign_in("ann", PASSWORD) is not None


def test_a_role_that_there_is_not_is_refused(accounts: Accounts) -> None:
    account = join(accounts, "Ann")
    with pytest.raises(UserError, match="role is 'god'"):
        accounts.change_role(account.id, "god", account.id)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="role is 'god'"):
        accounts.invite("god", account.id)  # pyright: ignore[reportArgumentType]


def work(database: Database, account: Account) -> None:
    """Someone answers one task, skips another, and undoes nothing."""
    projects, tasks = Projects(database), Tasks(database, random.Random(1))
    project = projects.create(f"Project of {account.id}", ProjectSettings(num_responses=2), None)
    items = [(Prompt(f"Question {i}?", {"categories": "gore"}), [Response("yes"), Response("no")]) for i in range(3)]
    projects.add_items(project.id, items, None)
    task = tasks.next(project.id, account.id)
    assert task is not None
    tasks.answer(task.lease_id, account.id, Answer(ranks=(2, 1), flags={"toxic": [1]}, note="clear"))
    task = tasks.next(project.id, account.id)
    assert task is not None
    tasks.skip(task.lease_id, account.id, "cannot tell")


def test_after_deletion_the_name_is_nowhere_and_the_judgements_stay(accounts: Accounts, database: Database) -> None:
    owner, ann = join(accounts, "Olivia", "owner"), join(accounts, "Xanthippe")
    token = accounts.sign_in("Xanthippe", PASSWORD)
    key = accounts.new_token(ann.id, "Xanthippe's notebook")
    accounts.sign_in("Xanthippe", "a wrong password")
    accounts.change(ann.id, ann.id, daily_cap=7, avoid=["spiders"])
    accounts.change_role(ann.id, "lead", owner.id)
    accounts.revoke_token(ann.id, accounts.tokens(ann.id)[0][0])
    accounts.new_token(ann.id, "xanthippe again")
    work(database, ann)
    before = dump(database)
    assert "Xanthippe" in before
    assert "spiders" in before

    pseudonym = accounts.delete(ann.id, owner.id)

    after = dump(database)
    assert "xanthippe" not in after.lower()
    assert "spiders" not in after
    with database.read() as session:
        row = session.get_one(AccountRow, ann.id)
        assert (row.name, row.password, row.daily_cap, row.avoid) == (pseudonym, None, None, [])
        signed_by = session.execute(select(Base.metadata.tables["judgements"].c.annotator)).scalars().all()
    assert signed_by == [pseudonym]
    assert token is not None
    assert accounts.signed_in(token) is None
    assert accounts.of_token(key) is None
    for name in ("Xanthippe", pseudonym):
        assert accounts.sign_in(name, PASSWORD) is None
    with pytest.raises(NotFound):
        accounts.get(ann.id)
    assert accounts.all() == [owner]


def test_a_name_is_free_again_after_deletion_but_a_pseudonym_is_not(accounts: Accounts) -> None:
    join(accounts, "Olivia", "owner")
    pseudonym = accounts.delete(join(accounts, "Ann").id, 1)
    assert join(accounts, "Ann").name == "Ann"
    with pytest.raises(Conflict):
        join(accounts, pseudonym)


def test_personal_data_is_all_of_ones_own_and_nothing_of_others(accounts: Accounts, database: Database) -> None:
    ann, ben = join(accounts, "Ann"), join(accounts, "Ben")
    accounts.sign_in("Ann", PASSWORD)
    accounts.sign_in("Ann", "a wrong password")
    accounts.new_token(ann.id, "notebook")
    accounts.change(ann.id, ben.id, daily_cap=5, avoid=["gore elsewhere"])
    accounts.sign_in("Ben", PASSWORD)
    work(database, ann)
    work(database, ben)

    data = accounts.personal_data(ann.id)

    assert json.loads(json.dumps(data)) == data
    assert data["account"]["name"] == "Ann"
    assert data["account"]["avoid"] == ["gore elsewhere"]
    assert [key["label"] for key in data["keys"]] == ["notebook"]
    assert len(data["sign_ins"]) == len(data["sessions"]) == 1
    assert data["sign_ins"][0].endswith("Z")
    answer, skip = data["answers"]
    assert sorted(answer["ranks"]) == [1, 2]
    assert answer["note"] == "clear"
    assert answer["created_at"].endswith("Z")
    assert answer["flags"] == {"toxic": [answer["ranks"].index(1)]}  # the second response shown was ranked first, and flagged
    assert skip["skipped"] == "cannot tell"
    assert skip["ranks"] is None
    actions = [row["action"] for row in data["log"]]
    assert actions == ["account.create", "sign_in", "sign_in.refused", "token.create", "account.change", "answer", "skip"]
    assert {row["account_id"] for row in data["log"]} == {ann.id, ben.id, None}
    assert data["decisions"] == []


def test_categories_are_those_of_all_items(accounts: Accounts, database: Database) -> None:
    assert accounts.categories() == []
    projects = Projects(database)
    project = projects.create("P", ProjectSettings(num_responses=2), None)
    tags = ["violence, gore", "gore", "", "Ärger"]
    items = [(Prompt(f"{i}?", {"categories": tag}), [Response("a"), Response("b")]) for i, tag in enumerate(tags)]
    projects.add_items(project.id, items, None)
    assert accounts.categories() == ["gore", "violence", "ärger"]


def test_answers_are_counted_since_midnight(accounts: Accounts, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = join(accounts, "Ann")
    work(database, ann)
    assert accounts.answers_today() == {ann.id: 2}
    pass_days(monkeypatch, 1)
    assert accounts.answers_today() == {}


def test_the_log_comes_newest_first_in_pages_and_by_the_beginning_of_actions(accounts: Accounts, database: Database) -> None:
    with database.write() as session:
        session.add_all(AuditRow(action=f"tested.{'odd' if i % 2 else 'even'}", detail={"i": i}) for i in range(2 * LOG_PAGE))
    first = accounts.log()
    second = accounts.log(before=first[-1].id)
    assert [entry.detail["i"] for entry in first + second] == list(reversed(range(2 * LOG_PAGE)))
    assert accounts.log(before=second[-1].id) == []
    assert [entry.detail["i"] for entry in accounts.log("tested.o")] == list(range(2 * LOG_PAGE - 1, 0, -2))
    for prefix in ("%", "tested_", "even", "'"):
        assert accounts.log(prefix) == []


def test_the_log_tells_who(accounts: Accounts) -> None:
    owner = join(accounts, "Olivia", "owner")
    pseudonym = accounts.delete(join(accounts, "Ann").id, owner.id)
    assert [(entry.who, entry.action) for entry in accounts.log("account")] == [
        ("Olivia", "account.delete"),
        (pseudonym, "account.create"),
        ("Olivia", "account.create"),
    ]


def test_the_key_of_a_name_is_the_key_of_its_key() -> None:
    for name in ("Straße", "İstanbul", "ﬁ", "Zoë", "  a "):
        assert name_key(name_key(name)) == name_key(name)


def test_nothing_of_someone_who_was_forgotten_is_left_in_the_file(accounts: Accounts, tmp_path: Path) -> None:
    olga, ann = join(accounts, "Olga", "owner"), join(accounts, "Xanthippe")
    accounts.new_token(ann.id, "Spiderwoman's notebook")
    accounts.change(ann.id, ann.id, daily_cap=None, avoid=["arachnids"])
    accounts.database.close()
    before = (tmp_path / "feedback.db").read_bytes()
    assert all(word in before for word in (b"Xanthippe", b"Spiderwoman", b"arachnids"))
    accounts.delete(ann.id, olga.id)
    accounts.database.close()
    after = (tmp_path / "feedback.db").read_bytes()
    assert not any(word in after for word in (b"Xanthippe", b"Spiderwoman", b"arachnids"))
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.db"]


def test_nothing_of_someone_who_was_forgotten_is_left_beside_the_file_while_it_is_open(accounts: Accounts, tmp_path: Path) -> None:
    def found() -> int:
        return sum(path.read_bytes().count(b"Xanthippe") for path in tmp_path.iterdir())

    olga, ann = join(accounts, "Olga", "owner"), join(accounts, "Xanthippe")
    assert found() > 0
    accounts.delete(ann.id, olga.id)
    assert found() == 0


def test_what_someone_is_still_reading_goes_with_the_first_write_after(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "CLEAR_TIMEOUT", 0.1)
    olga, ann = join(accounts, "Olga", "owner"), join(accounts, "Xanthippe")
    log = tmp_path / "feedback.db-wal"
    with accounts.database.read() as session:
        assert session.scalar(select(AccountRow.name).where(AccountRow.id == ann.id)) == "Xanthippe"
        accounts.delete(ann.id, olga.id)
        accounts.invite("annotator", olga.id)
        assert b"Xanthippe" in log.read_bytes()
    accounts.invite("annotator", olga.id)
    assert b"Xanthippe" not in log.read_bytes()
    assert b"Xanthippe" not in (tmp_path / "feedback.db").read_bytes()
