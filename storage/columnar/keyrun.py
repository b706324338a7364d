"""The keys of a block: ascending, distinct, and found by one 64-bit comparison each.

What all keys of a block share is kept once; what is left of a key begins with its *word*, 8 bytes read as a number, which order as keys do:

    fixed, all keys of one length:    10 01 05 02 81 00 00 00 00 00 5b 8d a1 81 00 00 00 00 00 00 03
                                      └ bytes that are the same in every key: the template  ▲▲ └ ▲ elsewhere
                                        the bytes that differ, side by side: 8d a1 03  ──▶  word
    of several lengths:               shared beginning │ rest  ──▶  the rest's first 8 bytes, filled up with zeros ──▶ word

Dropping the bytes that are everywhere the same is what makes words of composite keys tell rows apart: an order's number and a line's
number are 18 bytes of key, whose first 8 are those of the order alone; the bytes that differ within a block are three or four.
Where at most 8 differ, words are exact.  Else ties are resolved by comparing whole keys, of the tied rows only.

Invariants:
- Keys ascend, and no key stands twice; words never descend.
- `find` is exact for every key that could be stored, and for every bound of a span.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dsdb.storage.columnar.chunk import decode_numbers, encode_numbers
from dsdb.storage.errors import CorruptionError

WORD_BYTES = 8

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


class _StoredKeys(msgspec.Struct, frozen=True, array_like=True):
    shared: bytes
    """Fixed: the template, a whole key.  Else what all keys begin with."""
    differing: tuple[int, ...] | None
    """Fixed: places of the bytes that differ, ascending.  None: keys of several lengths."""
    words: bytes
    """Chunk of the words; of fixed keys of which more than 8 bytes differ, and of others, there are `rests` too."""
    rests: bytes
    """What is left of each key, end to end; empty where words are exact."""
    ends: bytes
    """Where each rest ends, u32; empty for fixed keys."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_StoredKeys)


def encode_keys(keys: Sequence[bytes]) -> bytes:
    """Encode the keys of a block: at least one, ascending."""
    length = len(keys[0])
    if len(set(map(len, keys))) == 1:
        matrix = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), length)
        differing = np.flatnonzero((matrix != matrix[0]).any(axis=0))
        rests = np.ascontiguousarray(matrix[:, differing])
        words = encode_numbers(_words_of(rests))
        is_exact = len(differing) <= WORD_BYTES
        return _encoder.encode(_StoredKeys(keys[0], tuple(differing.tolist()), words, b"" if is_exact else rests.tobytes(), b""))
    shared = _shared_beginning(keys[0], keys[-1])
    tails = [key[len(shared) :] for key in keys]
    ends = np.cumsum(np.fromiter(map(len, tails), np.int64, len(tails))).astype("<u4").tobytes()
    words = encode_numbers(np.fromiter(map(_word_of, tails), np.uint64, len(tails)))
    return _encoder.encode(_StoredKeys(shared, None, words, b"".join(tails), ends))


def _words_of(rests: npt.NDArray[np.uint8]) -> Words:
    rows, width = rests.shape
    padded = np.zeros((rows, WORD_BYTES), np.uint8)
    kept = min(width, WORD_BYTES)
    # Shorter ones stand at the end: as numbers they are as small as they can be, and all have one length.
    padded[:, WORD_BYTES - kept :] = rests[:, :kept]
    return padded.view(">u8").reshape(-1).astype(np.uint64)


def _word_of(tail: bytes) -> int:
    return int.from_bytes(tail[:WORD_BYTES].ljust(WORD_BYTES, b"\x00"), "big")


def _shared_beginning(first: bytes, last: bytes) -> bytes:
    """Give what two keys begin with; all keys between them begin with it too."""
    length = next((index for index, (left, right) in enumerate(zip(first, last)) if left != right), min(len(first), len(last)))
    return first[:length]


class KeyRun:
    """The stored keys of a block, of which any can be had, or found.  Raises CorruptionError."""

    def __init__(self, stored: bytes) -> None:
        try:
            decoded = _decoder.decode(stored)
        except msgspec.DecodeError as error:
            raise CorruptionError(f"the keys of a block cannot be read: {error}") from None
        self.words = decode_numbers(decoded.words)
        self.rows = len(self.words)
        self._shared = decoded.shared
        self._rests = decoded.rests
        self._differing = None if decoded.differing is None else np.array(decoded.differing, np.int64)
        self._ends: npt.NDArray[Any] | None = None
        if self._differing is None:
            self._ends = np.concatenate([np.zeros(1, np.int64), np.frombuffer(decoded.ends, "<u4").astype(np.int64)])
            fits = len(self._ends) == self.rows + 1 and int(self._ends[-1]) == len(self._rests)
            self.is_exact = False
        else:
            if any(not 0 <= place < len(self._shared) for place in decoded.differing):  # type: ignore[union-attr]
                raise CorruptionError("keys of a block differ behind their ends")
            is_same = np.ones(len(self._shared), np.bool_)
            is_same[self._differing] = False
            self._same = np.flatnonzero(is_same)
            self._template = np.frombuffer(self._shared, np.uint8)
            self._first_differing = decoded.differing[:WORD_BYTES]  # type: ignore[index]
            width = len(self._differing)
            self.is_exact = width <= WORD_BYTES
            fits = len(self._rests) == (0 if self.is_exact else self.rows * width)
        if self.rows == 0 or not fits:
            raise CorruptionError("the keys of a block do not fit together")

    @property
    def size_bytes(self) -> int:
        """Give about how much memory it takes."""
        return int(self.words.nbytes) + len(self._rests) + (0 if self._ends is None else int(self._ends.nbytes)) + 512

    def key(self, row: int) -> bytes:
        """Give the key of a row."""
        if self._ends is not None:
            return self._shared + self._rests[int(self._ends[row]) : int(self._ends[row + 1])]
        assert self._differing is not None
        width = len(self._differing)
        if self.is_exact:
            rest = int(self.words[row]).to_bytes(WORD_BYTES, "big")[WORD_BYTES - width :]
        else:
            rest = self._rests[row * width : (row + 1) * width]
        out = bytearray(self._shared)
        for place, byte in zip(self._differing.tolist(), rest):
            out[place] = byte
        return bytes(out)

    def keys(self, rows: Places | None = None) -> list[bytes]:
        """Give the keys of rows; of all, where none are named."""
        if self._ends is not None:
            ends, shared, rests = self._ends.tolist(), self._shared, self._rests
            return [shared + rests[ends[row] : ends[row + 1]] for row in (range(self.rows) if rows is None else rows.tolist())]
        assert self._differing is not None
        width, length = len(self._differing), len(self._shared)
        words = self.words if rows is None else self.words[rows]
        matrix = np.broadcast_to(self._template, (len(words), length)).copy()
        if self.is_exact:
            matrix[:, self._differing] = words.astype(">u8").view(np.uint8).reshape(len(words), WORD_BYTES)[:, WORD_BYTES - width :]
        else:
            stored = np.frombuffer(self._rests, np.uint8).reshape(self.rows, width)
            matrix[:, self._differing] = stored if rows is None else stored[rows]
        joined = matrix.tobytes()
        return [joined[start : start + length] for start in range(0, len(joined), length)]

    def lower(self, bound: bytes) -> int:
        """Give how many keys are below a bound, any bytes."""
        return bisect_left(range(self.rows), bound, key=self.key)

    def row_of(self, key: bytes) -> int | None:
        """Find the row of one key; None if it is not here."""
        if self._differing is None:
            word = _word_of(key[len(self._shared) :])
        elif len(key) != len(self._shared):
            return None
        else:
            word = int.from_bytes(bytes([key[place] for place in self._first_differing]), "big")
        row = int(np.searchsorted(self.words, np.uint64(word)))
        if not self.is_exact:
            row += bisect_left(range(row, int(np.searchsorted(self.words, np.uint64(word), "right"))), key, key=self.key)
        return row if row < self.rows and self.key(row) == key else None

    def find(self, keys: Sequence[bytes]) -> tuple[Places, npt.NDArray[np.bool_]]:
        """Give for each key how many of the block's are below it, and whether the next one equals it."""
        places = np.zeros(len(keys), np.int64)
        words, is_known = self._words_of_foreign(keys)
        lows = np.searchsorted(self.words, words, "left")
        places[is_known] = lows[is_known]
        within = np.minimum(lows, self.rows - 1)
        found = is_known & (lows < self.rows) & (self.words[within] == words)
        if not self.is_exact:
            highs = np.searchsorted(self.words, words, "right")
            for index in np.flatnonzero(found).tolist():
                low, high, key = int(lows[index]), int(highs[index]), keys[index]
                place = low + bisect_left(range(low, high), key, key=self.key)
                places[index] = place
                found[index] = place < high and self.key(place) == key
        for index in np.flatnonzero(~is_known).tolist():
            # A key without what all keys of the block share: equal to none of them, but it may lie between two.
            places[index] = self.lower(keys[index])
        return places, found

    def _words_of_foreign(self, keys: Sequence[bytes]) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Give the words of keys, and which of them have what all of the block's keys share; the others' words mean nothing."""
        if self._differing is None:
            shared, length = self._shared, len(self._shared)
            words = np.fromiter([_word_of(key[length:]) for key in keys], np.uint64, len(keys))
            return words, np.fromiter([key.startswith(shared) for key in keys], np.bool_, len(keys))
        length = len(self._shared)
        fitting = np.fromiter([len(key) == length for key in keys], np.bool_, len(keys))
        if not fitting.all():
            keys = [key if len(key) == length else self._shared for key in keys]
        matrix = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), length)
        fitting &= (matrix[:, self._same] == self._template[self._same]).all(axis=1)
        return _words_of(matrix[:, self._differing]), fitting
