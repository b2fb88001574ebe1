"""When the Debian root is built, from what, and what is said when it cannot be. mmdebstrap is a script that writes the
archive; the frozen agent's own tests run the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.debian_root import KEY, mmdebstrap_command, obtain_debian_root
from hostagent.debian_sources import KEYRING
from hostagent.errors import UserError
from tests.fakes.silent_progress import SilentProgress

MMDEBSTRAP = """#!/bin/sh
[ "$1" != --unshare-helper ] || exit 0
echo "$@" >>{calls}
for argument; do
    case $argument in *.tar) echo half >"$argument"; {then}; echo root >"$argument" ;; esac
done
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of programs that is searched: no apt, so that the sources do not depend on this machine."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    put(folder, "newuidmap", "#!/bin/sh\n")
    return folder


def put(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    (folder / name).chmod(0o755)


def put_mmdebstrap(programs: Path, then: str = ":") -> Path:
    """Let mmdebstrap do `then` when half of its work is done; the file that lists its calls."""
    calls = programs.parent / "calls"
    put(programs, "mmdebstrap", MMDEBSTRAP.format(calls=calls, then=then))
    return calls


async def obtain(cache: Path) -> Path:
    return await obtain_debian_root(cache, SilentProgress())


async def test_is_built_once_and_replaces_an_older_recipes(programs: Path, tmp_path: Path) -> None:
    calls = put_mmdebstrap(programs)
    folder = tmp_path / "cache" / "debian-root"
    folder.mkdir(parents=True)
    (folder / "debian-12-older.tar").write_text("root")
    archive = await obtain(tmp_path / "cache")
    assert archive == await obtain(tmp_path / "cache") == folder / f"{KEY}.tar"
    assert archive.read_text() == "root\n"
    assert [path.name for path in folder.glob("*.tar")] == [archive.name]
    assert len(calls.read_text().splitlines()) == 1


async def test_a_failed_build_leaves_its_output_and_no_archive(programs: Path, tmp_path: Path) -> None:
    put_mmdebstrap(programs, then="echo 'E: Unable to connect to mirror'; exit 1")
    with pytest.raises(UserError, match="no Debian root to freeze the guest agent in: the package mirror") as caught:
        await obtain(tmp_path / "cache")
    log = tmp_path / "cache" / "debian-root" / f"{KEY}.log"
    assert "Unable to connect" in log.read_text()
    assert str(log) in caught.value.hint
    assert list(log.parent.glob("*.tar")) == []
    put_mmdebstrap(programs)
    assert (await obtain(tmp_path / "cache")).exists()


@pytest.mark.parametrize("built_before", [False, True])
async def test_without_mmdebstrap_the_next_step_is_said(programs: Path, tmp_path: Path, built_before: bool) -> None:
    """Freezing in the root needs it too."""
    if built_before:
        put_mmdebstrap(programs)
        await obtain(tmp_path / "cache")
        (programs / "mmdebstrap").unlink()
    with pytest.raises(UserError, match="mmdebstrap") as caught:
        await obtain(tmp_path / "cache")
    assert "same and quick wherever" in caught.value.message
    for way in ("apt-get install mmdebstrap uidmap", "dnf install mmdebstrap", "HOSTAGENT_GUESTAGENT"):
        assert way in caught.value.hint


def test_the_command_names_the_hosts_sources_or_the_keys_for_the_default_mirror() -> None:
    sources = ["deb [signed-by=/keys] http://mirror.example/debian bookworm main"]
    command = mmdebstrap_command("unshare", sources, Path("/cache/root.tar"))
    assert command[-3:] == ["bookworm", "/cache/root.tar", *sources]
    assert "--mode=unshare" in command
    assert not any(argument.startswith("--keyring") for argument in command)
    command = mmdebstrap_command("root", [], Path("/cache/root.tar"))
    assert command[-2:] == ["bookworm", "/cache/root.tar"]
    assert f"--keyring={KEYRING}" in command
