"""The host's package sources, moved to the release that is to be built."""

from __future__ import annotations

from hostagent.debian_sources import KEYRING, sources_for

# As apt-get indextargets prints it on Debian 12, with sources of third parties between Debian's own.
HOST = """\
https://mirror.example/debian/ bookworm bookworm main Debian
https://mirror.example/debian/ bookworm bookworm contrib Debian
https://mirror.example/debian/ bookworm-updates bookworm-updates main Debian
https://mirror.example/debian-security/ bookworm-security bookworm-security main Debian
https://packages.example/cloud cloud-sdk-bookworm cloud-sdk main cloud
https://packages.example/node nodistro nodistro main Node
https://packages.example/db bookworm bookworm main Example
mirror+file:/etc/apt/mirrors/debian.list bookworm bookworm main Debian
"""


def test_debians_own_sources_are_taken_in_order() -> None:
    assert sources_for("bookworm", "bookworm", HOST) == [
        f"deb [signed-by={KEYRING}] https://mirror.example/debian/ bookworm main",
        f"deb [signed-by={KEYRING}] https://mirror.example/debian/ bookworm-updates main",
        f"deb [signed-by={KEYRING}] https://mirror.example/debian-security/ bookworm-security main",
    ]


def test_another_release_comes_from_the_same_mirror() -> None:
    lines = sources_for("trixie", "bookworm", HOST)
    assert [line.split("] ")[1] for line in lines] == [
        "https://mirror.example/debian/ trixie main",
        "https://mirror.example/debian/ trixie-updates main",
        "https://mirror.example/debian-security/ trixie-security main",
    ]


def test_a_suite_is_known_by_its_codename() -> None:
    rows = "https://mirror.example/debian/ stable bookworm main Debian\n"
    assert len(sources_for("bookworm", "bookworm", rows)) == 1


def test_before_the_first_update_apt_knows_no_origin() -> None:
    rows = "https://mirror.example/debian/ bookworm $(CODENAME) main $(ORIGIN)\n"
    assert len(sources_for("bookworm", "bookworm", rows)) == 1


def test_updates_alone_are_of_no_use() -> None:
    rows = "https://mirror.example/debian/ bookworm-updates bookworm-updates main Debian\n"
    assert sources_for("bookworm", "bookworm", rows) == []


def test_what_is_not_understood_is_passed_over() -> None:
    assert sources_for("bookworm", "bookworm", "\nnot a row\n" + HOST) == sources_for("bookworm", "bookworm", HOST)
