"""Random order without favourites: cards are dealt from a shuffled deck, not drawn anew each time."""

from __future__ import annotations

import zlib

import numpy as np


class Deck:
    """Deals cards ``0 ... size - 1``; none comes again before all others have come.

    So after any number of cards the numbers of times two of them were dealt differ by one at most (by
    two within a deal that reaches into the next shuffle), while every deal by itself is a uniform draw
    without replacement: nothing here tells one card from another.

    Args:
        size: number of cards, at least 1.
        random: where shuffles come from; shared with other decks.
    """

    def __init__(self, size: int, random: np.random.Generator) -> None:
        self._size = size
        self._random = random
        self._left = random.permutation(size)
        self._step = -1
        self._held: list[np.ndarray] = []  # what this step has had
        self._mixed = False  # whether the deck holds some of it again

    def deal(self, count: int, step: int) -> np.ndarray:
        """``count`` different cards; where there are fewer, all of them as often as fits, and the rest.

        Cards that were dealt in the same ``step`` before come again only if there are no others: what
        several ranks get in one step differs as far as it can.
        """
        if step != self._step:
            self._step, self._held, self._mixed = step, [], False
        elif self._mixed:
            held = self._mask(self._held)[self._left]
            self._left = np.concatenate([self._left[~held], self._left[held]])
        whole, count = divmod(count, self._size)
        if count <= len(self._left):
            dealt, self._left = self._left[:count], self._left[count:]
        else:
            dealt = self._deal_and_shuffle(count)
        self._held.append(dealt)
        if whole:
            return np.concatenate(
                [*(self._random.permutation(self._size) for _ in range(whole)), dealt]
            )
        return dealt

    def deal_fitting(self, sizes: np.ndarray, room: int) -> np.ndarray:
        """Different cards as long as there is room for their sizes: those passed over lead next time.

        Args:
            sizes: of all cards; one larger than ``room`` is never dealt.
        """
        last = self._left[sizes[self._left] <= room]
        others = np.setdiff1d(np.flatnonzero(sizes <= room), last, assume_unique=True)
        order = np.concatenate([last, self._random.permutation(others)])
        dealt = np.zeros(len(order), dtype=bool)
        for place, size in enumerate(sizes[order].tolist()):
            if size <= room:
                room -= size
                dealt[place] = True
        passed_over = order[: len(last)][~dealt[: len(last)]]
        # With the deck through, the next shuffle lacks what was dealt ahead of it.
        rest = order[len(last) :][~dealt[len(last) :]]
        behind = np.concatenate([rest, last])
        self._left = passed_over if len(passed_over) else self._random.permutation(behind)
        return order[dealt]

    def _deal_and_shuffle(self, count: int) -> np.ndarray:
        last = self._left
        order = self._random.permutation(self._size)
        order = order[~self._mask([last])[order]]
        held = self._mask(self._held)[order]
        order = np.concatenate([order[~held], order[held]])
        first = order[: count - len(last)]
        # Shuffled again: by now the order says what this step has had.
        self._left = self._random.permutation(np.concatenate([order[len(first) :], last]))
        self._mixed = True
        return np.concatenate([last, first])

    def _mask(self, cards: list[np.ndarray]) -> np.ndarray:
        found = np.zeros(self._size, dtype=bool)
        for some in cards:
            found[some] = True
        return found


class Classes:
    """The items of each class.

    Args:
        labels: ``[N]`` class of each item, anything numpy can sort.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self.names, inverse, self.counts = np.unique(
            labels, return_inverse=True, return_counts=True
        )
        self._order = np.argsort(inverse.reshape(-1), kind="stable")
        self._start = np.cumsum(self.counts) - self.counts

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def digest(self) -> int:
        """A number that tells which items each class has."""
        return zlib.crc32(self._order.tobytes(), zlib.crc32(self.counts.tobytes()))

    def pick(self, of: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Indices of the items of that place (``which``) in their class (``of``), elementwise."""
        return self._order[self._start[of] + which]

    def items(self, of: int) -> np.ndarray:
        """Indices of the items of a class, which is given by its number, in ascending order."""
        start = self._start[of]
        return self._order[start : start + self.counts[of]]


class ItemDecks:
    """A deck of items for every class, made when the class first comes up."""

    def __init__(self, classes: Classes, random: np.random.Generator) -> None:
        self._classes = classes
        self._random = random
        self._decks: dict[int, Deck] = {}

    def deal(self, of: int, count: int, step: int) -> np.ndarray:
        """``count`` items of a class; see :meth:`Deck.deal`."""
        deck = self._decks.get(of)
        if deck is None:
            deck = self._decks[of] = Deck(int(self._classes.counts[of]), self._random)
        return self._classes.items(of)[deck.deal(count, step)]
