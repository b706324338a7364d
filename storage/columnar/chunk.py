"""A column of a block: an Arrow array as few bytes as can be had without slowing the way back.

    header │ validity bits │ numbers: values less their least, lengths, or places in the dictionary │ data │ ends of the dictionary's values
             └ each part compressed with lz4, where that is worth its time

    encoding     types                                       numbers                          data
    INTEGERS     bool, integers, dates, times, decimals      0, 1, 2, 4 or 8 bytes a row
    RAW          floats, wide decimals, intervals, UUIDs                                      the values, side by side
    TEXT         string, binary                              lengths, 1, 2 or 4 bytes a row   the values, end to end
    DICTIONARY   string, binary of few distinct values       places, 0, 1 or 2 bytes a row    the distinct values, end to end

Narrow numbers do what compression would, at the speed of one addition; RocksDB is left nothing to compress: that cost five times the
scan.

Invariants:
- Decoding gives the array that was encoded, bit by bit (NaN and −0.0 included); nothing is said of what is under a NULL.
- Parts fit their sizes, lengths their data, places their dictionary; else CorruptionError.

Not here: checksums, and which chunk is which column (`entry`).
"""

import enum
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsdb.storage.errors import CorruptionError, ValueRangeError
from dsdb.storage.rowarrow import narrow_type

Numbers = npt.NDArray[Any]

DICTIONARY_VALUES_MAX = 4096
DICTIONARY_SHARE = 8
"""A dictionary has at most one value for so many rows."""
_SAMPLE_ROWS = 1024
PART_BYTES_MAX = 2**31 - 1
"""Offsets of Arrow's strings are 32 bits wide."""
_LEAST_COMPRESSED_BYTES = 512
_WORTHWHILE_PERCENT = (50, 50, 75, 75)
"""Of its size, by part, what compression must bring it down to: narrow numbers that shrink by a third cost more time than they save."""
_MASK64 = (1 << 64) - 1

_HEADER = struct.Struct("<BBBxIQ4I4I")
_codec = pa.Codec("lz4_raw")
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


class Encoding(enum.IntEnum):
    """How a chunk holds its values.  The numbers are on disk."""

    INTEGERS = 1
    RAW = 2
    TEXT = 3
    DICTIONARY = 4


class Patch(NamedTuple):
    """Values that take the place of some of a chunk's."""

    places: npt.NDArray[np.int64]
    """Ascending rows of the chunk."""
    values: pa.Array
    """One for each, of the chunk's own type; for a DICTIONARY, also as a dictionary."""


# ---- Encoding -----------------------------------------------------------------------------------------------------------------------


def encode_chunk(array: pa.Array) -> bytes:
    """Encode an array of one of storage's Arrow types.  Raises ValueRangeError above 2 GiB."""
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    validity = b"" if valid is None else np.packbits(valid, bitorder="little").tobytes()
    if is_text(array.type):
        return _encode_text(array, validity)
    width = _fixed_width(array.type)
    integers = _as_integers(array, width)
    if integers is None:
        raw = _raw_matrix(array, width)
        if valid is not None:
            raw = raw * valid[:, None]
        return _sealed(Encoding.RAW, width, len(array), 0, (validity, b"", raw.tobytes(), b""))
    least, narrow = narrowed(integers, valid)
    return _sealed(Encoding.INTEGERS, _width_of(narrow), len(array), least, (validity, _bytes_of(narrow), b"", b""))


def encode_numbers(numbers: npt.NDArray[np.uint64]) -> bytes:
    """Encode unsigned 64-bit numbers, which `decode_numbers` gives back."""
    least, narrow = narrowed(numbers, None)
    return _sealed(Encoding.INTEGERS, _width_of(narrow), len(numbers), least, (b"", _bytes_of(narrow), b"", b""))


def is_text(data_type: pa.DataType) -> bool:
    """Say whether values of a type have lengths of their own."""
    return bool(pa.types.is_string(data_type) or pa.types.is_binary(data_type))


def narrowed(integers: npt.NDArray[np.uint64], valid: npt.NDArray[np.bool_] | None) -> tuple[int, Numbers | None]:
    """Give the least of numbers (as signed ones order), and how far above it each is, as narrow as that can be; None: all are the least."""
    signed = integers.view(np.int64)
    known = signed if valid is None else signed[valid]
    if len(known) == 0:
        return 0, None
    least, most = int(known.min()), int(known.max())
    if least == most:
        return least & _MASK64, None
    width = next(width for width in _UNSIGNED if most - least < 1 << (8 * width))
    narrow = (integers - np.uint64(least & _MASK64)).astype(_UNSIGNED[width])
    if valid is not None:
        narrow *= valid
    return least & _MASK64, narrow


def _width_of(narrow: Numbers | None) -> int:
    return 0 if narrow is None else narrow.dtype.itemsize


def _bytes_of(narrow: Numbers | None) -> bytes:
    return b"" if narrow is None else narrow.tobytes()


def _fixed_width(data_type: pa.DataType) -> int:
    """Give the bytes of a value; 1 for a bool."""
    width: int = data_type.bit_width
    return max(width // 8, 1)


def _raw_matrix(array: pa.Array, width: int) -> npt.NDArray[np.uint8]:
    buffer = array.buffers()[1]
    raw = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    return raw[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)


def _as_integers(array: pa.Array, width: int) -> npt.NDArray[np.uint64] | None:
    """Give the values as 64-bit integers, whatever is under NULLs; None if they are none, or wider."""
    data_type = array.type
    if pa.types.is_boolean(data_type):
        bits: npt.NDArray[np.uint64] = array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint64)
        return bits
    if pa.types.is_decimal(data_type):
        halves = _raw_matrix(array, width).reshape(-1).view("<i8").reshape(len(array), 2)
        low = np.ascontiguousarray(halves[:, 0])
        differs = halves[:, 1] != low >> 63
        if array.null_count:
            differs = differs & array.is_valid().to_numpy(zero_copy_only=False)
        return None if differs.any() else low.view(np.uint64)
    if pa.types.is_integer(data_type) or pa.types.is_date(data_type) or pa.types.is_time(data_type) or pa.types.is_timestamp(data_type):
        signed = _raw_matrix(array, width).reshape(-1).view(f"<i{width}").astype(np.int64)
        return signed.view(np.uint64)
    return None


def _encode_text(array: pa.Array, validity: bytes) -> bytes:
    values = array.cast(pa.binary())
    if array.null_count:
        values = values.fill_null(b"")
    found = _dictionary_of(values)
    if found is not None:
        places, width = found.indices.to_numpy(), 1 if len(found.dictionary) <= 256 else 2
        narrow = None if len(found.dictionary) <= 1 else places.astype(_UNSIGNED[width])
        lengths, data = _lengths_and_data(found.dictionary)
        parts = (validity, _bytes_of(narrow), data, np.cumsum(lengths, dtype="<u4").tobytes())
        return _sealed(Encoding.DICTIONARY, _width_of(narrow), len(array), 0, parts)
    lengths, data = _lengths_and_data(values)
    width = 1 if lengths.max() < 1 << 8 else 2 if lengths.max() < 1 << 16 else 4
    return _sealed(Encoding.TEXT, width, len(array), 0, (validity, lengths.astype(_UNSIGNED[width]).tobytes(), data, b""))


def _dictionary_of(values: pa.Array) -> pa.DictionaryArray | None:
    if len(values) > _SAMPLE_ROWS and len(values.slice(0, _SAMPLE_ROWS).unique()) > _SAMPLE_ROWS // 2:
        return None
    found = values.dictionary_encode()
    return found if len(found.dictionary) <= max(min(DICTIONARY_VALUES_MAX, len(values) // DICTIONARY_SHARE), 1) else None


def _lengths_and_data(values: pa.Array) -> tuple[npt.NDArray[np.int32], bytes]:
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    return np.diff(bounds), b"" if data is None else data.slice(int(bounds[0]), int(bounds[-1] - bounds[0])).to_pybytes()


def _sealed(encoding: Encoding, width: int, rows: int, base: int, parts: tuple[bytes, bytes, bytes, bytes]) -> bytes:
    flags, stored = 0, []
    for index, part in enumerate(parts):
        if len(part) > PART_BYTES_MAX:
            raise ValueRangeError(f"{len(part)} bytes in one column of a block")
        if len(part) >= _LEAST_COMPRESSED_BYTES:
            smaller = _codec.compress(part, asbytes=True)
            if len(smaller) <= len(part) * _WORTHWHILE_PERCENT[index] // 100:
                flags |= 1 << index
                part = smaller
        stored.append(part)
    return b"".join([_HEADER.pack(encoding, flags, width, rows, base, *map(len, parts), *map(len, stored)), *stored])


# ---- Decoding -----------------------------------------------------------------------------------------------------------------------


def decode_numbers(stored: bytes) -> npt.NDArray[np.uint64]:
    """Give the numbers that `encode_numbers` was given.  Raises CorruptionError."""
    return Chunk(stored, pa.uint64()).integers(_UNSIGNED[8])


class Chunk:
    """A stored column, decompressed but narrow.  Raises CorruptionError where its parts do not fit."""

    def __init__(self, stored: bytes, data_type: pa.DataType) -> None:
        if len(stored) < _HEADER.size:
            raise CorruptionError("a chunk without its header")
        encoding, flags, self._width, self.rows, self._base, *sizes = _HEADER.unpack_from(stored)
        self.type = data_type
        self._parts = _opened(stored, flags, sizes)
        try:
            self.encoding = Encoding(encoding)
        except ValueError:
            raise CorruptionError(f"a chunk of the unknown encoding {encoding}") from None
        validity = self._parts[0]
        self._valid: npt.NDArray[np.bool_] | None = None
        """Which rows are not NULL; None: all."""
        if len(validity):
            self._require(len(validity) == (self.rows + 7) // 8)
            self._valid = np.unpackbits(np.frombuffer(validity, np.uint8), count=self.rows, bitorder="little").view(np.bool_)
        self._numbers: Numbers | None = None
        if self._width and self.encoding is not Encoding.RAW:
            self._require(self._width in _UNSIGNED and len(self._parts[1]) == self.rows * self._width)
            self._numbers = np.frombuffer(self._parts[1], _UNSIGNED[self._width])
        self._offsets: npt.NDArray[np.int32] | None = None
        self._dictionary: Any = None
        self._values: list[bytes] | None = None
        """Of the dictionary, once one was asked for."""
        self._check_data()

    def _check_data(self) -> None:
        if self.encoding is Encoding.RAW:
            self._require(len(self._parts[2]) == self.rows * _fixed_width(self.type) and not is_text(self.type))
        elif self.encoding is Encoding.DICTIONARY:
            ends = np.frombuffer(self._parts[3], "<u4")
            self._require(len(ends) > 0 and int(ends[-1]) == len(self._parts[2]) and is_text(self.type))
            offsets = np.concatenate([np.zeros(1, np.int32), ends.astype(np.int32)])
            self._require(bool((offsets[1:] >= offsets[:-1]).all()))
            self._dictionary = pa.Array.from_buffers(self.type, len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(self._parts[2])])
            self._require(self._numbers is None or int(self._numbers.max()) < len(ends))
        else:
            self._require(is_text(self.type) == (self.encoding is Encoding.TEXT))

    def _require(self, fits: bool) -> None:
        if not fits:
            raise CorruptionError(f"the parts of a chunk of {self.type} do not fit together")

    @property
    def size_bytes(self) -> int:
        """Give about how much memory it takes."""
        return sum(map(len, self._parts)) + (0 if self._valid is None else self.rows) + 512

    @property
    def null_count(self) -> int:
        """Count the NULLs."""
        return 0 if self._valid is None else self.rows - int(np.count_nonzero(self._valid))

    def integers(self, dtype: np.dtype[Any]) -> Numbers:
        """Give the numbers of INTEGERS in an unsigned type of the width that their column has, or a wider one; never the stored bytes."""
        self._require(self.encoding is Encoding.INTEGERS)
        out = np.empty(self.rows, dtype)
        base = dtype.type(self._base & ((1 << (8 * dtype.itemsize)) - 1))
        if self._numbers is None:
            out.fill(base)
        else:
            np.add(self._numbers, base, out=out, casting="unsafe")
        return out

    def array(self, patch: Patch | None = None, *, as_dictionary: bool = False, as_narrow: bool = False) -> pa.Array:
        """Give the column, with some values replaced.

        as_dictionary: that of a DICTIONARY as dictionary(int32, its type); as_narrow: decimals by `narrow_type`, also those of the patch.
        """
        if patch is not None and len(patch.places) == 0:
            patch = None
        if self.encoding is Encoding.DICTIONARY:
            return self._dictionary_array(patch, as_dictionary)
        validity = self._validity(patch)
        if self.encoding is Encoding.TEXT:
            offsets, data = self._text(patch)
            return pa.Array.from_buffers(self.type, self.rows, [validity, pa.py_buffer(offsets), data])
        if self.encoding is Encoding.RAW:
            self._require(not as_narrow or narrow_type(self.type) == self.type)
            return pa.Array.from_buffers(self.type, self.rows, [validity, pa.py_buffer(self._raw(patch))])
        data_type = narrow_type(self.type) if as_narrow else self.type
        return pa.Array.from_buffers(data_type, self.rows, [validity, pa.py_buffer(self._widened(patch, data_type))])

    def _validity(self, patch: Patch | None) -> pa.Buffer | None:
        if patch is None:
            return None if self._valid is None else pa.py_buffer(self._parts[0])
        if self._valid is None and patch.values.null_count == 0:
            return None
        valid = np.ones(self.rows, np.bool_) if self._valid is None else self._valid.copy()
        valid[patch.places] = patch.values.is_valid().to_numpy(zero_copy_only=False)
        return pa.py_buffer(np.packbits(valid, bitorder="little"))

    def _widened(self, patch: Patch | None, data_type: pa.DataType) -> Numbers:
        if pa.types.is_boolean(data_type):
            flags = self.integers(_UNSIGNED[1])
            if patch is not None:
                flags[patch.places] = patch.values.fill_null(False).to_numpy(zero_copy_only=False)
            return np.packbits(flags, bitorder="little")
        width = _fixed_width(data_type)
        if width == 16:
            halves = np.empty((self.rows, 2), np.int64)
            low = halves[:, 0].view(np.uint64)
            if self._numbers is None:
                low.fill(np.uint64(self._base))
            else:
                np.add(self._numbers, np.uint64(self._base), out=low, casting="unsafe")
            if self._base <= _MASK64 >> 2 and self._width < 8:
                halves[:, 1] = 0
            else:
                np.right_shift(halves[:, 0], 63, out=halves[:, 1])
            if patch is not None:
                halves[patch.places] = _raw_matrix(patch.values, width).view(np.int64)
            return halves
        values = self.integers(_UNSIGNED[width])
        if patch is not None:
            values[patch.places] = _raw_matrix(patch.values, width).view(_UNSIGNED[width])[:, 0]
        return values

    def _raw(self, patch: Patch | None) -> Any:
        if patch is None:
            return self._parts[2]
        width = _fixed_width(self.type)
        values = np.frombuffer(self._parts[2], np.uint8).reshape(self.rows, width).copy()
        values[patch.places] = _raw_matrix(patch.values, width)
        return values

    def _text_offsets(self) -> npt.NDArray[np.int32]:
        if self._offsets is None:
            assert self._numbers is not None
            offsets = np.zeros(self.rows + 1, np.int32)
            np.cumsum(self._numbers, out=offsets[1:], dtype=np.int32)
            self._require(int(offsets[-1]) == len(self._parts[2]))
            self._offsets = offsets
        return self._offsets

    def _text(self, patch: Patch | None) -> tuple[npt.NDArray[np.int32], pa.Buffer]:
        offsets = self._text_offsets()
        if patch is None:
            return offsets, pa.py_buffer(self._parts[2])
        # The pieces between replaced values are copied whole.
        lengths, fresh = _lengths_and_data(patch.values.cast(pa.binary()).fill_null(b""))
        cuts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]).tolist()
        data, done = memoryview(self._parts[2]), 0
        pieces: list[Any] = []
        starts, ends = offsets[patch.places].tolist(), offsets[patch.places + 1].tolist()
        for start, end, low, high in zip(starts, ends, cuts, cuts[1:]):
            pieces.append(data[done:start])
            pieces.append(fresh[low:high])
            done = end
        pieces.append(data[done:])
        all_lengths = np.diff(offsets)
        all_lengths[patch.places] = lengths
        whole = b"".join(pieces)
        if len(whole) > PART_BYTES_MAX:
            raise ValueRangeError(f"{len(whole)} bytes in one column of a record batch")
        moved = np.zeros(self.rows + 1, np.int32)
        np.cumsum(all_lengths, out=moved[1:], dtype=np.int32)
        return moved, pa.py_buffer(whole)

    def _dictionary_array(self, patch: Patch | None, as_dictionary: bool) -> pa.Array:
        dictionary = self._dictionary
        places = np.zeros(self.rows, np.int32) if self._numbers is None else self._numbers.astype(np.int32)
        if patch is not None:
            coded = patch.values if pa.types.is_dictionary(patch.values.type) else patch.values.dictionary_encode()
            at = pc.index_in(coded.dictionary, value_set=dictionary)
            if at.null_count:
                dictionary = pa.concat_arrays([dictionary, coded.dictionary.filter(at.is_null())])
                at = pc.index_in(coded.dictionary, value_set=dictionary)
            codes = coded.indices if coded.indices.null_count == 0 else coded.indices.fill_null(0)
            if len(at):
                places[patch.places] = at.to_numpy()[codes.to_numpy()]
        validity = self._validity(patch)
        indices = pa.Array.from_buffers(pa.int32(), self.rows, [validity, pa.py_buffer(places)])
        return pa.DictionaryArray.from_arrays(indices, dictionary) if as_dictionary else dictionary.take(indices)

    def stored_value(self, row: int) -> int | bytes | None:
        """Give one value without decoding the others: an integer (of a decimal: unscaled), or else its bytes; None for a NULL."""
        if self._valid is not None and not self._valid[row]:
            return None
        if self.encoding is Encoding.INTEGERS:
            number: int = (self._base + (0 if self._numbers is None else int(self._numbers[row]))) & _MASK64
            return number - ((number >> 63) << 64)
        if self.encoding is Encoding.DICTIONARY:
            if self._values is None:
                self._values = self._dictionary.cast(pa.binary()).to_pylist()
            return self._values[0 if self._numbers is None else int(self._numbers[row])]
        if self.encoding is Encoding.RAW:
            width = _fixed_width(self.type)
            return bytes(self._parts[2][row * width : (row + 1) * width])
        offsets = self._text_offsets()
        return bytes(self._parts[2][int(offsets[row]) : int(offsets[row + 1])])


def _opened(stored: bytes, flags: int, sizes: list[int]) -> list[Any]:
    """Give the parts of a chunk, decompressed: bytes-like, the uncompressed ones without a copy."""
    if _HEADER.size + sum(sizes[4:]) != len(stored):
        raise CorruptionError("the parts of a chunk do not fill it")
    parts, offset, view = [], _HEADER.size, memoryview(stored)
    for index, (size, stored_size) in enumerate(zip(sizes[:4], sizes[4:])):
        part: Any = view[offset : offset + stored_size]
        offset += stored_size
        if flags & 1 << index:
            try:
                part = memoryview(_codec.decompress(part, size))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise CorruptionError(f"a chunk cannot be decompressed: {error}") from error
        if len(part) != size:
            raise CorruptionError("a part of a chunk has not its size")
        parts.append(part)
    return parts
