"""How mistakes are shown: in the order of the file, bounded, and harmless to a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hostagent.config.mistakes import ConfigError, Mistake, key_path, nearest, printable, quoted


def test_lines_are_in_the_order_of_the_file_and_said_once() -> None:
    later, earlier = Mistake(2, 1, "b", "wrong"), Mistake(1, 9, "a", "wrong")
    error = ConfigError.of("f", [later, earlier, later])
    assert error.message == "f:1:9: a: wrong\nf:2:1: b: wrong"
    assert error.mistakes == (earlier, later)


def test_a_mistake_in_no_key_has_no_path() -> None:
    assert Mistake(3, 4, "", "wrong").described("f") == "f:3:4: wrong"


@given(st.text(), st.text())
def test_nothing_from_outside_reaches_the_terminal_unescaped(text: str, name: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text)) <= 10 * 60 + 2
    assert printable(text).isprintable()
    assert key_path(("a", 0, text)).isprintable()
    assert Mistake(1, 1, key_path((text,)), quoted(text)).described(name).isprintable()


def test_the_nearest_word() -> None:
    assert nearest("PORTFORWARD", ["portForwards", "probes"]) == "portForwards"
    assert nearest("bogus", ["cpus", "disk"]) is None
    assert nearest("x" * 1_000_000, ["cpus"]) is None
