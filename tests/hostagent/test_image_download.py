"""Downloads against a real HTTP server that cuts, stalls, lies and changes its mind."""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

import pytest
import trio

from hostagent import image_download
from hostagent.errors import UserError
from hostagent.image_download import UnreachableError, fetch
from tests.fakes.file_server import Behaviour, FileServer, file_server
from tests.fakes.silent_progress import SilentProgress

CONTENT = bytes(range(256)) * 4096
OTHER = CONTENT[::-1]
GOOD = Behaviour(CONTENT)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_download, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(image_download, "SILENCE_SECONDS", 0.2)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def sha512(content: bytes) -> str:
    return f"sha512:{hashlib.sha512(content).hexdigest()}"


async def get(server: FileServer, cache: Path, digest: str | None = None) -> bytes:
    return (await fetch(server.address, digest, cache, SilentProgress())).read_bytes()


def leftovers(cache: Path) -> set[str]:
    return {path.suffix for path in (cache / "downloads").iterdir()} - {".lock", ".json", ""}


@pytest.mark.parametrize("digest", [None, sha256(CONTENT), sha512(CONTENT)])
async def test_a_file_is_fetched_and_verified(tmp_path: Path, digest: str | None) -> None:
    async with file_server([GOOD]) as server:
        assert await get(server, tmp_path, digest) == CONTENT
        assert leftovers(tmp_path) == set()


async def test_a_verified_file_is_fetched_once(tmp_path: Path) -> None:
    async with file_server([GOOD]) as server:
        await get(server, tmp_path, sha256(CONTENT))
        await get(server, tmp_path, sha256(CONTENT))
        assert len(server.requests) == 1


async def test_another_digest_for_the_same_address_is_another_file(tmp_path: Path) -> None:
    async with file_server([GOOD, Behaviour(OTHER, etag='"two"')]) as server:
        first = await fetch(server.address, sha256(CONTENT), tmp_path, SilentProgress())
        assert await get(server, tmp_path, sha256(OTHER)) == OTHER
        assert first.read_bytes() == CONTENT  # overlay disks build on it


async def test_without_a_digest_the_server_is_asked_whether_the_file_changed(tmp_path: Path) -> None:
    async with file_server([GOOD, GOOD, Behaviour(OTHER, etag='"two"')]) as server:
        first = await fetch(server.address, None, tmp_path, SilentProgress())
        assert await fetch(server.address, None, tmp_path, SilentProgress()) == first
        assert server.requests[1]["if-none-match"] == '"one"'
        assert await get(server, tmp_path) == OTHER
        assert first.read_bytes() == CONTENT


async def test_without_a_digest_the_cached_file_serves_when_the_server_is_away(tmp_path: Path) -> None:
    async with file_server([GOOD]) as server:
        await get(server, tmp_path)
    assert await get(server, tmp_path) == CONTENT


async def test_a_cut_download_is_continued_where_it_ended(tmp_path: Path) -> None:
    async with file_server([Behaviour(CONTENT, cut_after=300_000), GOOD]) as server:
        assert await get(server, tmp_path, sha256(CONTENT)) == CONTENT
        asked = server.requests[1]
        assert int(asked["range"].removeprefix("bytes=").removesuffix("-")) > 0
        assert asked["if-range"] == '"one"'


async def test_a_silent_server_is_left_and_asked_again(tmp_path: Path) -> None:
    async with file_server([Behaviour(CONTENT, stall_after=300_000), GOOD]) as server:
        with trio.fail_after(5):
            assert await get(server, tmp_path, sha256(CONTENT)) == CONTENT
        assert len(server.requests) == 2


async def test_a_download_that_was_cancelled_is_continued_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with file_server([Behaviour(CONTENT, stall_after=300_000), GOOD]) as server:
        got_some = trio.Event()

        class Watching:
            def update(self, step: str, done: int, total: int | None) -> None:
                assert total == len(CONTENT)
                got_some.set()

        monkeypatch.setattr(image_download, "SILENCE_SECONDS", 60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, server.address, None, tmp_path, Watching())
            await got_some.wait()
            nursery.cancel_scope.cancel()
        assert await get(server, tmp_path) == CONTENT
        assert "range" in server.requests[1]


@pytest.mark.parametrize(
    "second",
    [
        Behaviour(OTHER, etag='"two"'),
        Behaviour(OTHER, etag='"one"', ranges=False),
        Behaviour(OTHER, etag=None),
    ],
    ids=["changed", "ignores Range", "without ETag"],
)
async def test_parts_of_two_files_are_never_put_together(tmp_path: Path, second: Behaviour) -> None:
    async with file_server([Behaviour(CONTENT, cut_after=300_000), second]) as server:
        assert await get(server, tmp_path, sha256(OTHER)) == OTHER


async def test_a_part_without_a_validator_is_not_continued(tmp_path: Path) -> None:
    cut = Behaviour(CONTENT, etag=None, cut_after=300_000)
    async with file_server([cut, Behaviour(OTHER, etag=None)]) as server:
        assert await get(server, tmp_path) == OTHER
        assert "range" not in server.requests[1]


async def test_a_weak_tag_does_not_vouch_for_a_part(tmp_path: Path) -> None:
    cut = Behaviour(CONTENT, etag='W/"one"', cut_after=300_000)
    async with file_server([cut, Behaviour(OTHER, etag='W/"one"')]) as server:
        assert await get(server, tmp_path) == OTHER


async def test_another_range_than_asked_for_is_not_taken(tmp_path: Path) -> None:
    script = [Behaviour(CONTENT, cut_after=300_000), Behaviour(CONTENT, wrong_range=True), GOOD]
    async with file_server(script) as server:
        assert await get(server, tmp_path, sha256(CONTENT)) == CONTENT


async def test_a_part_that_is_longer_than_the_file_is_dropped(tmp_path: Path) -> None:
    async with file_server([Behaviour(CONTENT, cut_after=300_000), Behaviour(status=416), GOOD]) as server:
        assert await get(server, tmp_path, sha256(CONTENT)) == CONTENT
        assert "range" not in server.requests[2]


async def test_a_length_that_is_too_small_fails_the_digest(tmp_path: Path) -> None:
    async with file_server([Behaviour(CONTENT, claim=1000)]) as server:
        with pytest.raises(UserError, match="does not match"):
            await get(server, tmp_path, sha256(CONTENT))
        assert leftovers(tmp_path) == set()


async def test_a_length_that_is_too_large_is_a_cut(tmp_path: Path) -> None:
    async with file_server([Behaviour(CONTENT, etag=None, claim=len(CONTENT) + 1), GOOD]) as server:
        assert await get(server, tmp_path, sha256(CONTENT)) == CONTENT


async def test_a_wrong_file_is_refused_and_gone(tmp_path: Path) -> None:
    async with file_server([Behaviour(OTHER)]) as server:
        with pytest.raises(UserError, match="not the file it should be") as caught:
            await get(server, tmp_path, sha256(CONTENT))
        assert "correct the digest" in caught.value.hint
        assert leftovers(tmp_path) == set()
        assert len(server.requests) == 1


async def test_a_part_that_was_damaged_between_two_runs_is_fetched_anew(tmp_path: Path) -> None:
    async with file_server([Behaviour(CONTENT, cut_after=300_000), Behaviour(status=500)]) as server:
        with pytest.raises(UserError, match="failed 6 times"):
            await get(server, tmp_path, sha256(CONTENT))
        part = next((tmp_path / "downloads").glob("*.part"))
        part.write_bytes(b"x" * part.stat().st_size)
        server.script = [GOOD]
        assert await get(server, tmp_path, sha256(CONTENT)) == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_file_that_is_not_there_is_not_asked_for_twice(tmp_path: Path, status: int) -> None:
    async with file_server([Behaviour(status=status)]) as server:
        with pytest.raises(UserError, match=str(status)):
            await get(server, tmp_path)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_overloaded_server_is_asked_again(tmp_path: Path, status: int) -> None:
    async with file_server([Behaviour(status=status), Behaviour(status=status), GOOD]) as server:
        assert await get(server, tmp_path) == CONTENT


async def test_a_server_that_never_recovers_is_given_up(tmp_path: Path) -> None:
    async with file_server([Behaviour(status=500)]) as server:
        with pytest.raises(UserError, match="failed 6 times: the server answered 500") as caught:
            await get(server, tmp_path)
        assert "try again" in caught.value.hint
        assert len(server.requests) == image_download.ATTEMPTS


async def test_a_redirect_is_followed(tmp_path: Path) -> None:
    async with file_server([GOOD]) as target, file_server([Behaviour(status=302, location=target.address)]) as server:
        assert await get(server, tmp_path) == CONTENT


async def test_a_circle_of_redirects_ends(tmp_path: Path) -> None:
    async with file_server([Behaviour(status=302, location="/image.img")]) as server:
        with pytest.raises(UserError, match="in a circle"):
            await get(server, tmp_path)


async def test_a_redirect_to_another_protocol_is_refused(tmp_path: Path) -> None:
    async with file_server([Behaviour(status=302, location="file:///etc/passwd")]) as server:
        with pytest.raises(UserError):
            await get(server, tmp_path)


async def test_nobody_listening_is_known_at_once(tmp_path: Path) -> None:
    async with file_server([GOOD]) as server:
        address = server.address
    with trio.fail_after(2), pytest.raises(UnreachableError, match=r"127\.0\.0\.1 cannot be reached"):
        await fetch(address, None, tmp_path, SilentProgress())


async def test_a_full_disk_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with file_server([Behaviour(CONTENT, claim=2**35)]) as server:
        usage = shutil.disk_usage(tmp_path)._replace(free=2**30)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match="needs 32768 MiB") as caught:
            await get(server, tmp_path)
        assert "HOSTAGENT_CACHE" in caught.value.hint


async def test_a_disk_that_becomes_full_is_said(tmp_path: Path) -> None:
    class Full:
        def update(self, step: str, done: int, total: int | None) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    async with file_server([GOOD]) as server:
        with pytest.raises(UserError, match="is full"):
            await fetch(server.address, None, tmp_path, Full())


async def test_two_at_once_fetch_one_file(tmp_path: Path) -> None:
    async with file_server([GOOD]) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(get, server, tmp_path, sha256(CONTENT))
        assert len(server.requests) == 1
