"""nginx of the distribution: files, connections that are kept, uploads, and what happens when either side goes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.programs.case import Program
from tests.programs.guest import HTTP, LOOPBACKS, ProgramGuest

GUEST_PORT = 80
SERVICE = "nginx"
FILE = 50_000_000
PIECE = 1 << 16
REQUESTS = 200
CLIENTS = 20
UPLOAD = 10 << 20

SITE = """
server {
    listen 80 default_server;
    listen [::]:80 default_server;
    root /srv/www;
    keepalive_requests 100000;
    client_max_body_size 100m;
    add_header X-Requests $connection_requests always;
    location /put/ { dav_methods PUT DELETE; create_full_put_path on; client_body_temp_path /srv/www/temp; }
    location /echo {
        proxy_pass http://127.0.0.1:8765;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
        proxy_read_timeout 600s;
    }
}
"""

CONTENT = """
import hashlib
data = b"".join(hashlib.sha512(b"%d" % number).digest() for number in range(15625))
open("/srv/www/large", "wb").write(data * 50)
print(hashlib.sha256(data * 50).hexdigest())
"""
"""50,000,000 bytes (15,625 times 64 are a million), made in the guest, and their digest."""


def connect(host: str = "127.0.0.1") -> http.client.HTTPConnection:
    """A connection to the guest's port 80."""
    return http.client.HTTPConnection(host, HTTP, timeout=60)


def digest_of(host: str) -> str:
    """Fetch the large file; its digest."""
    digest = hashlib.sha256()
    with contextlib.closing(connect(host)) as client:
        client.request("GET", "/large")
        response = client.getresponse()
        assert (response.status, response.headers["Content-Length"]) == (200, str(FILE))
        while piece := response.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def expected() -> str:
    """The digest of the large file, made here once more."""
    data = b"".join(hashlib.sha512(b"%d" % number).digest() for number in range(15_625))
    return hashlib.sha256(data * 50).hexdigest()


@contextmanager
def running(guest: ProgramGuest) -> Iterator[None]:
    """The server with a large file and a place for uploads."""
    guest.put(SITE, "/etc/nginx/sites-available/programs")
    guest.shell("""rm -f /etc/nginx/sites-enabled/default
ln -sf ../sites-available/programs /etc/nginx/sites-enabled/programs
mkdir -p /srv/www/put /srv/www/temp; chown www-data: /srv/www/put /srv/www/temp; echo hello >/srv/www/small""")
    guest.shell("python3 -", stdin=CONTENT.encode())
    guest.start(SERVICE)
    guest.listening(GUEST_PORT)
    yield
    guest.stop(SERVICE)
    guest.gone([GUEST_PORT])


PROGRAM = Program("nginx", running)


@PROGRAM.case(f"its port 80 is at the host's {HTTP} by a rule, and listed with process and unit")
def listed(guest: ProgramGuest) -> None:
    line = guest.listening(GUEST_PORT)
    assert (line["owner"]["process"], line["owner"]["unit"]) == ("nginx", f"{SERVICE}.service")
    assert {end["port"] for end in line["host"]} == {HTTP}
    for host in LOOPBACKS:
        with contextlib.closing(connect(host)) as client:
            client.request("GET", "/small")
            assert client.getresponse().read() == b"hello\n"


@PROGRAM.case(f"a file of {FILE // 1_000_000} MB with its digest, by IPv4 and IPv6")
def large_file(guest: ProgramGuest) -> None:
    for host in LOOPBACKS:
        began = time.monotonic()
        assert digest_of(host) == expected()
        guest.note(f"{FILE / 1e6 / (time.monotonic() - began):.0f} MB/s")


@PROGRAM.case(f"{REQUESTS} requests on one connection that is kept")
def kept_connection(guest: ProgramGuest) -> None:
    with contextlib.closing(connect()) as client:
        began = time.monotonic()
        for number in range(1, REQUESTS + 1):
            client.request("GET", "/small")
            response = client.getresponse()
            assert response.read() == b"hello\n"
            assert response.headers["X-Requests"] == str(number)
        guest.note(f"{REQUESTS / (time.monotonic() - began):.0f} a second")


@PROGRAM.case("requests that are sent without waiting for answers are answered in order")
def pipelined(guest: ProgramGuest) -> None:
    with socket.create_connection(("::1", HTTP), 60) as client:
        for number in range(REQUESTS):
            client.sendall(b"GET /missing-%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        client.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = b"".join(iter(lambda: client.recv(PIECE), b""))
    assert answers.count(b"HTTP/1.1 404 Not Found\r\n") == REQUESTS
    assert [int(found) for found in re.findall(rb"X-Requests: (\d+)", answers)] == [*range(1, REQUESTS + 2)]
    assert answers.endswith(b"\r\n\r\nhello\n")


@PROGRAM.case(f"{CLIENTS} clients at once, a million bytes each, by a range of the file")
def ranges(guest: ProgramGuest) -> None:
    data = b"".join(hashlib.sha512(b"%d" % number).digest() for number in range(15_625))

    def fetch(number: int) -> bytes:
        with contextlib.closing(connect(LOOPBACKS[number % 2])) as client:
            first = number * 1_000_000
            client.request("GET", "/large", headers={"Range": f"bytes={first}-{first + 999_999}"})
            response = client.getresponse()
            assert response.status == 206
            return response.read()

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        assert set(clients.map(fetch, range(CLIENTS))) == {data}


@PROGRAM.case(f"an upload of {UPLOAD >> 20} MiB, fetched again")
def upload(guest: ProgramGuest) -> None:
    data = hashlib.shake_256(b"upload").digest(UPLOAD)
    with contextlib.closing(connect()) as client:
        began = time.monotonic()
        client.request("PUT", "/put/upload", body=data)
        response = client.getresponse()
        response.read()
        guest.note(f"{UPLOAD / 1e6 / (time.monotonic() - began):.0f} MB/s")
        assert response.status == 201
        client.request("GET", "/put/upload")
        assert client.getresponse().read() == data


@PROGRAM.case("a client that goes in the middle of a download is noticed by the server")
def client_goes(guest: ProgramGuest) -> None:
    with contextlib.closing(connect()) as client:
        client.request("GET", "/large?goes")
        response = client.getresponse()
        assert len(response.read(PIECE)) == PIECE
    # The server writes a line when a request is over: fewer bytes than the file has were sent.
    line = guest.shell(r"timeout 30 tail -n +1 -F /var/log/nginx/access.log | grep -m 1 '/large?goes'")
    sent = int(line.split('"')[2].split()[1])
    guest.note(f"{sent / 1e6:.1f} MB had been sent")
    assert PIECE <= sent < FILE


@PROGRAM.case("the server is reloaded during a download: that comes to its end, and new clients are served")
def reloaded(guest: ProgramGuest) -> None:
    with contextlib.closing(connect()) as client:
        client.request("GET", "/large")
        response = client.getresponse()
        digest = hashlib.sha256(response.read(PIECE))
        guest.shell(f"systemctl reload {SERVICE}")
        with contextlib.closing(connect("::1")) as other:
            other.request("GET", "/small")
            assert other.getresponse().read() == b"hello\n"
        while piece := response.read(PIECE):
            digest.update(piece)
    assert digest.hexdigest() == expected()
    guest.listening(GUEST_PORT)


@PROGRAM.case("the server is killed during a download: the client sees that it is not whole")
def killed(guest: ProgramGuest) -> None:
    with contextlib.closing(connect()) as client:
        client.request("GET", "/large")
        response = client.getresponse()
        assert len(response.read(PIECE)) == PIECE
        guest.shell(f"systemctl kill --signal KILL {SERVICE}")
        with pytest.raises((ConnectionError, http.client.IncompleteRead)) as caught:
            response.read()
        guest.note(f"it sees {caught.typename}")
    guest.gone([GUEST_PORT])
    guest.start(SERVICE)
    guest.listening(GUEST_PORT)
