"""PostgreSQL of the distribution, with its own client library on the host."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from tests.programs.case import Program
from tests.programs.guest import LOOPBACKS, ProgramGuest

PORT = 5432
SERVICE = "postgresql@15-main"
ROWS = 5_000
LARGE = 16 << 20
WORD = "kept in no secret place"

SETUP = f"""
sed -i '1i local all tester scram-sha-256' /etc/postgresql/15/main/pg_hba.conf
systemctl reload {SERVICE}
runuser -u postgres -- psql --quiet --set ON_ERROR_STOP=1 <<'END'
create role tester login password '{WORD}';
create database tester owner tester;
create role root login;
END
"""

Connection = psycopg.Connection[tuple[object, ...]]


def connect(host: str = "127.0.0.1", *, autocommit: bool = True) -> Connection:
    """A session of the test's user; `host` is an address or the folder of a socket."""
    return psycopg.connect(
        host=host, port=PORT, user="tester", password=WORD, dbname="tester", connect_timeout=30, autocommit=autocommit
    )


def value(session: Connection, query: str, *parameters: object) -> object:
    """The one value that a query gives."""
    row = session.execute(sql.SQL(query), parameters).fetchone()
    assert row is not None
    return row[0]


def digest(rows: list[tuple[int, str]]) -> str:
    """What `SERVER_DIGEST` gives for these rows."""
    return hashlib.md5("".join(f"{number}:{text};" for number, text in rows).encode()).hexdigest()


SERVER_DIGEST = "select md5(string_agg(number || ':' || text || ';', '' order by number)) from entries"


@contextmanager
def running(guest: ProgramGuest) -> Iterator[None]:
    """The server with a role and a database of the tests'."""
    guest.start(SERVICE)
    guest.shell(SETUP)
    guest.listening(PORT)
    yield
    guest.stop(SERVICE)
    guest.gone([PORT])


PROGRAM = Program("PostgreSQL 15", running)


@PROGRAM.case("its port is listed with process and unit, and answers at 127.0.0.1 and ::1")
def listed(guest: ProgramGuest) -> None:
    owner = guest.listening(PORT)["owner"]
    assert (owner["process"], owner["unit"]) == ("postgres", f"{SERVICE}.service")
    for host in LOOPBACKS:
        with connect(host) as session:
            assert str(value(session, "select version()")).startswith("PostgreSQL 15")


@PROGRAM.case(f"{ROWS:,} rows by COPY and INSERT, out again, with checksums of both sides")
def rows_in_and_out(guest: ProgramGuest) -> None:
    rows = [(number, f"täglich {number} " + "x" * (number % 97)) for number in range(ROWS)]
    half = ROWS // 2
    with connect() as session:
        session.execute("create table entries (number integer primary key, text text not null)")
        began = time.monotonic()
        with session.cursor() as cursor:
            with cursor.copy("copy entries (number, text) from stdin") as copy:
                for row in rows[:half]:
                    copy.write_row(row)
            # Pipelined: every row is a message of its own, and no answer is waited for in between.
            cursor.executemany("insert into entries values (%s, %s)", rows[half:])
        guest.note(f"in after {time.monotonic() - began:.1f} s")
        assert value(session, SERVER_DIGEST) == digest(rows)
        began = time.monotonic()
        found = session.execute("select number, text from entries order by number").fetchall()
        guest.note(f"out after {time.monotonic() - began:.1f} s")
        assert digest([(int(str(number)), str(text)) for number, text in found]) == digest(rows)


@PROGRAM.case(f"a value of {LARGE >> 20} MiB in and out")
def large_value(guest: ProgramGuest) -> None:
    data = hashlib.shake_256(b"large").digest(LARGE)
    with connect() as session:
        began = time.monotonic()
        server = value(session, "select encode(sha256(%b), 'hex')", data)
        guest.note(f"in after {time.monotonic() - began:.1f} s")
        assert server == hashlib.sha256(data).hexdigest()
        session.execute("create temporary table big as select repeat('0123456789abcdef', %s) as text", [LARGE // 16])
        began = time.monotonic()
        assert value(session, "select text from big") == "0123456789abcdef" * (LARGE // 16)
        guest.note(f"out after {time.monotonic() - began:.1f} s")


@PROGRAM.case("two connections: what one has not committed the other does not see, and waits for")
def two_connections(guest: ProgramGuest) -> None:
    with connect("::1") as one, connect(autocommit=False) as other:
        one.execute("create table account (name text primary key, sum integer)")
        one.execute("insert into account values ('a', 10)")
        other.execute("update account set sum = 20")
        assert value(one, "select sum from account") == 10
        waited = threading.Thread(target=one.execute, args=["update account set sum = sum + 1"])
        waited.start()
        with connect() as third:
            while not value(third, "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"):
                assert waited.is_alive()
        other.commit()
        waited.join(30)
        assert value(one, "select sum from account") == 21


@PROGRAM.case("LISTEN and NOTIFY between two connections, also with the largest payload")
def notifications(guest: ProgramGuest) -> None:
    with connect() as listener, connect("::1") as sender:
        listener.execute("listen news")
        for payload in ("short", "y" * 7_999):  # below 8,000 bytes (NOTIFY)
            began = time.monotonic()
            sender.execute("select pg_notify('news', %s)", [payload])
            (heard,) = listener.notifies(timeout=30, stop_after=1)
            guest.note(f"heard after {(time.monotonic() - began) * 1000:.0f} ms")
            assert (heard.channel, heard.payload, heard.pid) == ("news", payload, sender.info.backend_pid)


@PROGRAM.case("a query is cancelled, by a connection of its own, and the session lives on")
def cancelled(guest: ProgramGuest) -> None:
    with connect() as session:
        ended: list[BaseException] = []

        def sleep() -> None:
            try:
                session.execute("select pg_sleep(600)")
            except psycopg.Error as error:
                ended.append(error)

        query = threading.Thread(target=sleep)
        query.start()
        with connect() as other:
            while not value(other, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"):
                assert query.is_alive()
        began = time.monotonic()
        session.cancel_safe(timeout=30)
        query.join(30)
        guest.note(f"cancelled after {(time.monotonic() - began) * 1000:.0f} ms")
        assert isinstance(ended[0], psycopg.errors.QueryCanceled)
        assert value(session, "select 1") == 1


@PROGRAM.case("a client that is cut off in a transaction is noticed: its lock is free, nothing is kept")
def cut_off(guest: ProgramGuest) -> None:
    with connect() as session:
        session.execute("create table ledger (sum integer)")
        lost = connect(autocommit=False)
        lost.execute("insert into ledger values (1)")
        lost.execute("lock table ledger")
        # Without PostgreSQL's farewell, as when the process is killed.
        with socket.socket(fileno=lost.fileno()) as cut:
            cut.shutdown(socket.SHUT_RDWR)
            cut.detach()
        lost.close()
        began = time.monotonic()
        session.execute("set lock_timeout = '30s'")
        assert value(session, "select count(*) from ledger") == 0
        guest.note(f"free after {(time.monotonic() - began) * 1000:.0f} ms")


@PROGRAM.case("by its unix socket, which a rule with guestSocket brings to the host")
def unix_socket(guest: ProgramGuest) -> None:
    with connect(str(guest.sockets)) as session:
        assert value(session, "select inet_client_addr()") is None
        assert value(session, "select count(*) from generate_series(1, 100000)") == 100_000
        assert value(session, "select sum(length(repeat('z', 1000))) from generate_series(1, 3000)") == 3_000_000
    # To a server that asks the kernel who its client is ("peer"), it is the guest agent: root.
    with psycopg.connect(host=str(guest.sockets), user="root", dbname="tester", connect_timeout=30) as trusted:
        assert trusted.execute("select current_user").fetchone() == ("root",)


@PROGRAM.case("the server is restarted: clients are told, and the next ones are served", quick=False)
def restarted(guest: ProgramGuest) -> None:
    with connect() as session:
        guest.shell(f"systemctl restart {SERVICE}")
        with pytest.raises(psycopg.OperationalError, match="administrator command"):
            session.execute("select 1")
    guest.listening(PORT)
    for host in (*LOOPBACKS, str(guest.sockets)):
        with connect(host) as again:
            assert value(again, "select 1") == 1
