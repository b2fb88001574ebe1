"""Makes new inputs of known ones: a mutation fuzzer in the manner of AFL, without instrumentation.

What an input leads to (`Outcome`) stands for coverage: an input with an outcome that no other had joins the corpus, and
further ones are made of it. Everything depends on the seed alone, so a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

MAX_CORPUS = 400
MAX_SIZE = 4_096
"""Bytes of an input, so that a million of them take minutes; what is larger has tests of its own."""

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _flip_bit(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set_byte(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] = dice.randrange(256)


def _set_number(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    size = dice.choice((1, 2, 4, 8))
    number = dice.choice(_INTERESTING) % (1 << 8 * size)
    at = dice.randrange(len(data) + 1)
    data[at : at + size] = number.to_bytes(size, dice.choice(("big", "little")))


def _insert(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    data[at:at] = dice.randbytes(dice.randrange(1, 9))


def _remove(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    del data[at : at + dice.choice((1, 2, 4, 16, 256))]


def _repeat(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    start = dice.randrange(len(data) + 1)
    part = data[start : start + dice.randrange(1, 64)]
    data[start:start] = part * dice.choice((1, 2, 8, 64))


def _move(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    start, to = dice.randrange(len(data) + 1), dice.randrange(len(data) + 1)
    part = data[start : start + dice.randrange(1, 32)]
    del data[start : start + len(part)]
    data[to:to] = part


def _splice(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    other = dice.choice(corpus)
    at, start = dice.randrange(len(data) + 1), dice.randrange(len(other) + 1)
    data[at : at + dice.randrange(0, 64)] = other[start : start + dice.randrange(1, 256)]


def _truncate(dice: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    del data[dice.randrange(len(data) + 1) :]


MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bit, _flip_bit, _set_byte, _set_byte, _set_number, _insert, _remove),
    *(_repeat, _move, _splice, _splice, _truncate),
)


class Corpus:
    """Inputs of which new ones are made."""

    def __init__(self, seeds: Sequence[bytes], seed: str) -> None:
        self._dice = random.Random(seed)
        self._inputs = list(seeds)
        self._outcomes: set[str] = set()

    @property
    def outcomes(self) -> int:
        """How many different outcomes there were."""
        return len(self._outcomes)

    def next(self) -> bytes:
        """The next input."""
        data = bytearray(self._dice.choice(self._inputs))
        for _ in range(self._dice.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            self._dice.choice(MUTATIONS)(self._dice, data, self._inputs)
        return bytes(data[:MAX_SIZE])

    def learn(self, data: bytes, outcome: str) -> None:
        """Keep `data` when nothing else led to `outcome`."""
        if outcome not in self._outcomes:
            self._outcomes.add(outcome)
            if len(self._inputs) < MAX_CORPUS:
                self._inputs.append(data)
