"""Files fetched over HTTP into the cache: resumed, verified, and never half there.

Promises: what is returned is complete, has the wanted digest where one is known, and will not change, because overlay
disks build on it: a newer file behind the same address becomes a new file beside the old one. What was received stays
when a download is cut or cancelled, and is continued where the server still has the same file (Range and If-Range,
RFC 9110 sections 13.1.5 and 14). Two processes that want one file fetch it once.

Refuses: waiting without end (connecting, silence and the number of attempts are bounded), being sent from https to
http without a digest, and keeping a file whose digest is wrong.

What can go wrong on the other side, and is met: connections cut or silent in the middle, a wrong Content-Length, a
server that ignores Range, a file that is replaced meanwhile, error pages, redirects in a circle.

The files of one address, all named after a hash of it:
    KEY.json  what is known of the finished file     KEY-CONTENT  the file itself
    KEY.part  what was received so far               KEY.part.json  which file that was a part of
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx2
import trio

from hostagent.errors import UserError
from hostagent.image_cache import disk_errors, entry_lock
from hostagent.progress import Progress

CONNECT_SECONDS = 5.0
"""Bound on name resolution and connecting: where there is no internet, the next candidate is tried soon."""
SILENCE_SECONDS = 20.0
"""How long a server may send nothing before the attempt is given up."""
ATTEMPTS = 6
"""Attempts in a row that may bring nothing new."""
FIRST_PAUSE_SECONDS = 0.5
"""Pause before the second attempt; doubled before each further one."""
LARGEST = 64 * 2**30
"""Bytes that no image has: a server without end must not fill the disk."""
_PIECE = 2**20

_TRY_AGAIN = "check the network and try again: what was received is kept"


class UnreachableError(UserError):
    """Nothing at this address's host answered; other addresses of the same host will not answer either."""


class _InterruptedError(Exception):
    """This attempt ended early; the next one may go further."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a server said about the file it sends, as far as it can be used to recognise the file again."""

    etag: str | None = None
    last_modified: str | None = None
    file: str = ""
    """Name of the finished file; empty while there is none."""

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a strong entity tag, or else a date (RFC 9110 section 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclass(slots=True)
class _Download:
    """One file on its way into the cache."""

    address: str
    digest: str | None
    folder: Path
    progress: Progress
    received: int = 0
    hasher: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def key(self) -> str:
        return hashlib.sha256(self.address.encode()).hexdigest()[:16]

    @property
    def part(self) -> Path:
        return self.folder / f"{self.key}.part"

    @property
    def part_facts(self) -> Path:
        return self.folder / f"{self.key}.part.json"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def step(self) -> str:
        return f"downloading {self.address.rpartition('/')[2] or self.address}"

    def opened(self) -> BinaryIO:
        """The part, for appending; unbuffered, so that a full disk is noticed where it can be told."""
        return self.part.open("ab", buffering=0)

    def take(self, piece: bytes, part: BinaryIO) -> None:
        """Append `piece`."""
        if self.received + len(piece) > LARGEST:
            self.start_over()
            raise UserError(f"{self.address} sends more than any image has", "correct the location")
        rest = memoryview(piece)
        while rest:  # an unbuffered write may be short, on an almost full disk for example
            rest = rest[part.write(rest) :]
        self.hasher.update(piece)
        self.received += len(piece)

    def start_over(self) -> None:
        """Forget what was received."""
        self.part.unlink(missing_ok=True)
        self.part_facts.unlink(missing_ok=True)
        self.received = 0
        self.hasher = new_hasher(self.digest)


def new_hasher(digest: str | None) -> hashlib._Hash:
    """The hash function that `digest` (`sha256:…` or `sha512:…`) is for; sha256 without a digest."""
    return hashlib.new(digest.partition(":")[0] if digest else "sha256")


async def fetch(address: str, digest: str | None, cache: Path, progress: Progress) -> Path:
    """The file at the http(s) `address`, from the cache or downloaded now.

    `digest` is `sha256:HEX` or `sha512:HEX`. Without one the server is asked each time whether the file has changed,
    and the cached one serves when it does not answer. Raises `UserError` (`UnreachableError`) when it cannot be had.
    """
    download = _Download(address, digest, cache / "downloads", progress)
    with disk_errors(download.folder):
        async with entry_lock(download.folder / f"{download.key}.lock", download.step, progress):
            known = _read_facts(download.index)
            cached = download.folder / known.file if known and known.file else None
            if cached and not cached.is_file():
                known = cached = None
            if cached and digest and cached.name == _final_name(download.key, digest):
                return cached
            async with _client() as client:
                try:
                    return await _fetch(client, download, known if cached and not digest else None)
                except UserError:
                    if cached and not digest:
                        return cached
                    raise


def _client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        follow_redirects=True,
        timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        # A compressed answer would have another length and other ranges than the file.
        headers={"Accept-Encoding": "identity"},
    )


async def _fetch(client: httpx2.AsyncClient, download: _Download, known: _Facts | None) -> Path:
    await trio.to_thread.run_sync(_take_up, download)
    fruitless, resumed = 0, download.received > 0
    while True:
        before = download.received
        try:
            if await _attempt(client, download, known) == "unchanged":
                assert known is not None
                return download.folder / known.file
            if _matches(download):
                return await trio.to_thread.run_sync(_publish, download)
            download.start_over()
            if not resumed:
                raise UserError(
                    f"{download.address} is not the file it should be: its {download.digest} does not match",
                    "the file was deleted; try again later, or correct the digest in the configuration",
                )
            resumed = False  # the part from an earlier run was wrong, not necessarily the file
        except (_InterruptedError, httpx2.TransportError) as exc:
            fruitless = 1 if download.received > before else fruitless + 1
            if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol) and not before:
                host = urlsplit(download.address).hostname
                raise UnreachableError(
                    f"{host} cannot be reached: {_reason(exc)}",
                    "check the network, or give images an entry with a local file or with build",
                ) from exc
            if fruitless >= ATTEMPTS:
                raise UserError(
                    f"the download of {download.address} failed {ATTEMPTS} times: {_reason(exc)}", _TRY_AGAIN
                ) from exc
            await trio.sleep(FIRST_PAUSE_SECONDS * 2 ** (fruitless - 1))


def _reason(exc: Exception) -> str:
    if isinstance(exc, httpx2.TimeoutException):
        return "it did not answer in time"
    return str(exc) or type(exc).__name__


async def _attempt(client: httpx2.AsyncClient, download: _Download, known: _Facts | None) -> str:
    headers = _conditions(download, known)
    try:
        async with client.stream("GET", download.address, headers=headers) as response:
            if response.status_code == 304 and known is not None:
                return "unchanged"
            total = _accept(download, response)
            await _receive(response, download, total)
    except httpx2.TooManyRedirects as exc:
        raise UserError(f"{download.address} is redirected in a circle", "correct the location") from exc
    return "complete"


def _conditions(download: _Download, known: _Facts | None) -> dict[str, str]:
    part = _read_facts(download.part_facts)
    if download.received and part and part.validator:
        return {"Range": f"bytes={download.received}-", "If-Range": part.validator}
    if download.received:
        download.start_over()
    headers = {}
    if known and known.etag:
        headers["If-None-Match"] = known.etag
    if known and known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    return headers


def _accept(download: _Download, response: httpx2.Response) -> int | None:
    """Prepare for the body of `response`; the whole file's size where the server says it."""
    status = response.status_code
    if status in (408, 416, 425, 429) or status >= 500:
        if status == 416:  # what we have is longer than the file: it is another file's part
            download.start_over()
        raise _InterruptedError(f"the server answered {status} {response.reason_phrase}")
    if status not in (200, 206):
        raise UserError(
            f"{download.address} cannot be fetched: the server answered {status} {response.reason_phrase}",
            "correct the location in the configuration",
        )
    if response.url.scheme == "http" and download.address.startswith("https:") and not download.digest:
        raise UserError(
            f"{download.address} leads to an address without encryption, {response.url}",
            "add a digest to the image, so that the file can be verified",
        )
    if status == 206:
        total = _resumed_at(response.headers.get("Content-Range", ""), download)
    else:
        download.start_over()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        facts = _Facts(response.headers.get("ETag"), response.headers.get("Last-Modified"))
        _write_facts(download.part_facts, facts)
    _check_room(download, total)
    return total


def _resumed_at(content_range: str, download: _Download) -> int | None:
    """The whole size in `content_range`, which must continue what was received."""
    unit, _, rest = content_range.partition(" ")
    span, _, size = rest.partition("/")
    if unit != "bytes" or span.partition("-")[0] != str(download.received):
        download.start_over()
        raise _InterruptedError("the server sent another part of the file than it was asked for")
    return int(size) if size.isdecimal() else None


def _check_room(download: _Download, total: int | None) -> None:
    missing = (total or 0) - download.received
    if (total or 0) > LARGEST:
        raise UserError(f"{download.address} claims to have {total} bytes", "correct the location")
    if (free := shutil.disk_usage(download.folder).free) < missing:
        raise UserError(
            f"the download needs {missing >> 20} MiB in {download.folder}, and {free >> 20} MiB are free",
            "free some space, or set HOSTAGENT_CACHE to a larger disk",
        )


async def _receive(response: httpx2.Response, download: _Download, total: int | None) -> None:
    # In the pieces in which it comes: collecting larger ones would lose the last of them when the connection is cut.
    pieces = response.aiter_raw()
    with download.opened() as part:
        try:
            async for piece in pieces:
                # Not in a thread: it goes to the page cache, and there is nothing to be cancelled between two pieces.
                download.take(piece, part)
                download.progress.update(download.step, download.received, total)
        except (OSError, UserError):
            # httpx2's inner generators end only by running to an end, which the closed connection is.
            await response.aclose()
            with suppress(httpx2.TransportError, httpx2.StreamError):
                async for _ in pieces:
                    pass
            raise
    if total is not None and download.received < total:
        raise _InterruptedError(f"the connection ended after {download.received} of {total} bytes")


def _matches(download: _Download) -> bool:
    return download.digest is None or download.hasher.hexdigest() == download.digest.partition(":")[2].lower()


def _take_up(download: _Download) -> None:
    """Continue with what an earlier attempt left, if it says what it is a part of."""
    download.hasher = new_hasher(download.digest)
    if not download.part.is_file() or _read_facts(download.part_facts) is None:
        download.start_over()
        return
    with download.part.open("rb") as part:
        while piece := part.read(_PIECE):
            download.hasher.update(piece)
            download.received += len(piece)


def _publish(download: _Download) -> Path:
    digest = download.digest or f"sha256:{download.hasher.hexdigest()}"
    final = download.folder / _final_name(download.key, digest)
    facts = _read_facts(download.part_facts) or _Facts()
    with download.part.open("rb") as part:
        os.fsync(part.fileno())
    download.part.replace(final)
    _write_facts(download.index, _Facts(facts.etag, facts.last_modified, final.name))
    download.part_facts.unlink(missing_ok=True)
    return final


def _final_name(key: str, digest: str) -> str:
    return f"{key}-{digest.partition(':')[2].lower()[:32]}"


def _read_facts(path: Path) -> _Facts | None:
    try:
        return _Facts(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # TypeError: a file of another version of hostagent
        return None


def _write_facts(path: Path, facts: _Facts) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    fresh.replace(path)
