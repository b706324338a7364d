"""Making room among blocks for one that is laid whole: those around its span are parted, and what is left within goes.

Replicas collect and fold each for itself.  So where one has nothing in a span, as what was there is removed and collected, another may
still have versions that no read sees, or a block that goes around the span.

Invariants:
- What a batch has parted is parted further as the batch has left it, not as the engine still shows it.
- All that is made room for lies at or below the garbage collection threshold: whoever asks has seen to it.
"""

from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.content import Content, cut_content, read_content, remove_block, write_contents
from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.engine.port import Family, WriteBatch
from dsdb.storage.keys import key_after
from dsdb.storage.versions import SUFFIXES_END

Piece = tuple[BlockEntry, Content]


class Parting:
    """What one batch makes of blocks that were in the way; the same for all of the batch."""

    def __init__(self) -> None:
        self._pieces: dict[bytes, list[Piece]] = {}
        """Last key of a block that the engine still shows → what the batch has in its place, in order."""

    def begin_batch(self) -> None:
        """Note that the engine shows all that was parted."""
        self._pieces.clear()

    def part(self, blocks: Blocks, batch: WriteBatch, bound: bytes) -> bool:
        """Make two of the block that has keys below a bound and others at or above it; say whether there was one.

        Raises CorruptionError.
        """
        found = self._at(blocks, bound)
        if found is None or found[1].first_key >= bound:
            return False
        shown, entry, content = found
        left, right = cut_content(content or read_content(blocks.checked(), entry), bound)
        remove_block(batch, entry)
        made = [piece for side in (left, right) for piece in _written(batch, side, entry.generation + 1)]
        pieces = self._pieces.get(shown, [])
        at = next((place for place, piece in enumerate(pieces) if piece[0] is entry), 0)
        self._pieces[shown] = [*pieces[:at], *made, *pieces[at + 1 :]]
        return True

    def make_room(self, blocks: Blocks, batch: WriteBatch, first_key: bytes, last_key: bytes) -> bool:
        """Remove all that a span has in blocks and beside them; say whether there was anything.  Raises CorruptionError."""
        end = key_after(last_key)
        has_changed = self.part(blocks, batch, first_key)
        has_changed |= self.part(blocks, batch, end)
        while (found := self._at(blocks, first_key)) is not None and found[1].last_key < end:
            shown, entry, _ = found
            remove_block(batch, entry)
            self._pieces[shown] = [piece for piece in self._pieces.get(shown, []) if piece[0] is not entry]
            has_changed = True
        if blocks.reader.first(Family.DELTA, first_key, last_key + SUFFIXES_END) is not None:
            batch.delete_range(Family.DELTA, first_key, last_key + SUFFIXES_END)
            has_changed = True
        return has_changed

    def _at(self, blocks: Blocks, key: bytes) -> tuple[bytes, BlockEntry, Content | None] | None:
        """Give the block with the least last key at or above a key: as the engine shows it, as it is now, and its content, if known."""
        entry = blocks.entry_at(key)
        while entry is not None:
            shown = entry.last_key
            if shown not in self._pieces:
                return shown, entry, None
            for piece, content in self._pieces[shown]:
                if piece.last_key >= key:
                    return shown, piece, content
            entry = blocks.entry_at(key_after(shown))
        return None


def _written(batch: WriteBatch, content: Content, generation: int) -> list[Piece]:
    entries = write_contents(batch, content, generation)
    pieces: list[Piece] = []
    for entry in entries:
        head, content = cut_content(content, key_after(entry.last_key))
        pieces.append((entry, head))
    return pieces
