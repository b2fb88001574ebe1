from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hostagent.terminal_redraw import cut, fitting, frame, rows_taken
from tests.fakes.screen import Screen

ROWS, COLUMNS = 8, 20

LISTINGS = st.lists(st.lists(st.text("abc ", max_size=30), max_size=12), min_size=1, max_size=5)


def test_it_is_drawn_over_and_what_was_longer_is_cleared() -> None:
    screen = Screen(ROWS, COLUMNS)
    screen.write("$ ports\r\n" + frame(["STATE  HOST", "listening  8080", "conflict  80"], 0, COLUMNS))
    assert screen.lines == ["$ ports", "STATE  HOST", "listening  8080", "conflict  80"]
    screen.write(frame(["STATE  HOST", "ignored  22"], 3, COLUMNS))
    assert screen.lines == ["$ ports", "STATE  HOST", "ignored  22"]


def test_nothing_that_stays_is_ever_blank() -> None:
    screen = Screen(ROWS, COLUMNS)
    before = ["STATE      BYTES", "listening  1", "listening  2"]
    after = ["STATE      BYTES", "listening  7", "listening  9"]
    screen.write(frame(before, 0, COLUMNS))
    for look in screen.write(frame(after, 3, COLUMNS)):
        assert [line[:11] for line in look] == [line[:11] for line in before]
        assert all(line[11:] in (old[11:], new[11:]) for line, old, new in zip(look, before, after, strict=True))


def test_colours_do_not_count_as_characters() -> None:
    screen = Screen(ROWS, COLUMNS)
    screen.write(frame(["x" * COLUMNS], 0, COLUMNS))
    screen.write(frame(["\x1b[32m" + "y" * 15 + "\x1b[0m"], 1, COLUMNS))
    assert screen.lines == ["y" * 15]
    screen.write(frame(["z" * 30], 1, COLUMNS))
    assert screen.lines == ["z" * COLUMNS]


def test_what_does_not_fit_is_cut_and_not_piled_up_on_the_last_column() -> None:
    screen = Screen(ROWS, COLUMNS)
    screen.write(frame(["0 of 0   0 B   0 B   TO GUEST", "\x1b[32mlistening\x1b[0m  localhost:8080"], 0, COLUMNS))
    assert screen.lines == ["0 of 0   0 B   0 B", "listening  localhost"]


def test_a_cut_line_keeps_its_colours_and_halves_no_character() -> None:
    assert cut("\x1b[32mlistening\x1b[0m x", 4) == "\x1b[32mlist\x1b[0m"
    assert cut("端口x", 3) == "端"
    assert cut("e\u0301e\u0301e", 2) == "e\u0301e\u0301"
    assert cut("abc", 3) == "abc"


def test_lines_are_found_again_when_a_narrower_window_has_wrapped_them() -> None:
    assert rows_taken([0, 20, 21, 60], 20) == 1 + 1 + 2 + 3
    assert rows_taken([20, 20], 100) == 2


def test_lines_that_find_no_room_are_counted() -> None:
    lines = [str(number) for number in range(100)]
    assert fitting(lines, 101) == lines
    kept = fitting(lines, 24)
    assert len(kept) == 23
    assert kept[-1].startswith("... and 78 more lines")
    assert fitting(lines, 1)[0].startswith("... and 100 more")


@given(LISTINGS)
def test_the_screen_ends_with_the_last_listing(listings: list[list[str]]) -> None:
    screen = Screen(ROWS, COLUMNS)
    before = 0
    for lines in listings:
        kept = [line[:COLUMNS] for line in fitting(lines, ROWS)]
        screen.write(frame(kept, before, COLUMNS))
        before = len(kept)
    shown = [line.rstrip() for line in kept]
    while shown and not shown[-1]:
        shown.pop()
    assert screen.lines == shown
