"""Columnar blocks: the older versions of an index's rows, a column at a time, and reads that merge them with the newer ones.

    DELTA   key │ inverted ts → row                     recent versions and intents, as rows (`dsdb.storage.mvcc`)
              │ fold: what is at or below the resolved timestamp
              ▼
    INDEX   last key of a block → entry                 first key, rows, timestamps, layouts, zone map        (`entry`)
    BLOCK   last key of a block │ slot → chunk          keys, versions, history, one column each              (`keyrun`, `chunk`)

Of each key a block holds the newest version that was folded, if that is a value: its *current* row.  Older versions that a reader of the
past may still ask for, and tombstones, are its *history*, rows in one value that only such readers load.  So a read of the present finds
every row of a block visible, but for those that the delta replaces.

Invariants:
- Blocks of a store never overlap, and never span indexes.  Every key is in its block's [first key, last key].
- Of one key, every version in the delta is newer than every one in a block.
- A version is in one place.  Folding, collecting and cutting move or remove versions in one write batch, and change no answer.

Reading order: `entry`, `chunk`, `keyrun`, `block`, `overlay`, `merge`, `rowscan`, `points`, `rows`, `fold`, `upkeep`.
"""
