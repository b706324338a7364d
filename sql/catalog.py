"""The catalogue: databases, tables and sequences as rows of the system range, read whole and changed by one transaction a DDL.

    system_key("catalog", "version")            the version: grows by one with every change
    system_key("next_id", "descriptor")         next id of a database, table or sequence
    system_key("database" | "table" | "sequence", id)     descriptors, as MessagePack
    system_key("namespace", parent id, name)    id: of a database (parent 0), of a table or sequence (parent: its database)
    system_key("garbage", database id, table id, index id)   an index that no descriptor names any more: its keys may be removed

Invariants:
- Every change reads and writes the version: two changes never commit at the same version, and a loaded catalogue is one state.
- A name is given once: tables and sequences of a database share one name space.
- Ids are never reused.

Not here: which version statements may use (`catalog_lease`), what a statement changes (`execute.ddl`).
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from dsdb.sql.ports import Transaction
from dsdb.sql.schema import DEFAULT_DATABASE, FIRST_DATABASE_ID, DatabaseDescriptor, SequenceDescriptor, TableDescriptor
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import prefix_span, system_key
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp

VERSION_KEY = system_key("catalog", "version")
NEXT_ID_KEY = system_key("next_id", "descriptor")
FIRST_FREE_ID = FIRST_DATABASE_ID + 1
_NO_PARENT = 0

Descriptor = TypeVar("Descriptor", DatabaseDescriptor, TableDescriptor, SequenceDescriptor)

_encode = msgspec.msgpack.Encoder().encode
_decode_int = msgspec.msgpack.Decoder(int).decode


class IndexGarbage(msgspec.Struct, frozen=True, array_like=True):
    """An index whose rows nobody can name any more."""

    database_id: int
    table_id: int
    index_id: int


class Catalog:
    """The catalogue at one version (`ports.CatalogSnapshot`); frozen but for its lease."""

    def __init__(
        self,
        version: int,
        databases: Sequence[DatabaseDescriptor],
        tables: Sequence[TableDescriptor],
        sequences: Sequence[SequenceDescriptor],
        *,
        lease_expiration: Timestamp = MAX_TIMESTAMP,
    ) -> None:
        self.version = version
        self.lease_expiration = lease_expiration
        self._databases = {database.name: database for database in sorted(databases, key=lambda each: each.name)}
        self._tables: dict[int, dict[str, TableDescriptor]] = {database.database_id: {} for database in databases}
        self._sequences: dict[tuple[int, str], SequenceDescriptor] = {}
        self._sequences_by_id = {sequence.sequence_id: sequence for sequence in sequences}
        for table in sorted(tables, key=lambda each: each.name):
            self._tables[table.database_id][table.name] = table
        for sequence in sorted(sequences, key=lambda each: each.name):
            self._sequences[sequence.database_id, sequence.name] = sequence

    def database(self, name: str) -> DatabaseDescriptor | None:
        """Give a database by name."""
        return self._databases.get(name)

    def databases(self) -> Sequence[DatabaseDescriptor]:
        """Give all databases, by name."""
        return tuple(self._databases.values())

    def table(self, database_id: int, name: str) -> TableDescriptor | None:
        """Give a table by its exact name."""
        return self._tables.get(database_id, {}).get(name)

    def tables(self, database_id: int) -> Sequence[TableDescriptor]:
        """Give the tables of a database, by name."""
        return tuple(self._tables.get(database_id, {}).values())

    def sequence(self, database_id: int, name: str) -> SequenceDescriptor | None:
        """Give a sequence by its exact name."""
        return self._sequences.get((database_id, name))

    def sequence_by_id(self, sequence_id: int) -> SequenceDescriptor | None:
        """Give a sequence by id."""
        return self._sequences_by_id.get(sequence_id)

    def sequences(self, database_id: int) -> Sequence[SequenceDescriptor]:
        """Give the sequences of a database, by name."""
        return tuple(sequence for (owner, _), sequence in self._sequences.items() if owner == database_id)


async def read_version(txn: Transaction) -> int:
    """Read the catalogue's version; 0 before `bootstrap`."""
    [stored] = await txn.get([VERSION_KEY])
    return 0 if stored is None else _decode_int(stored)


async def load_catalog(txn: Transaction) -> Catalog:
    """Read the whole catalogue at the transaction's timestamp."""
    version = await read_version(txn)
    return Catalog(
        version,
        await _load(txn, "database", DatabaseDescriptor),
        await _load(txn, "table", TableDescriptor),
        await _load(txn, "sequence", SequenceDescriptor),
    )


async def _load(txn: Transaction, tag: str, kind: type[Descriptor]) -> list[Descriptor]:
    decode = msgspec.msgpack.Decoder(kind).decode
    try:
        return [decode(value) for _, value in await txn.scan(prefix_span(system_key(tag)))]
    except msgspec.DecodeError as error:
        raise CorruptionError(f"a stored {tag} descriptor does not decode: {error}") from error


async def bootstrap(txn: Transaction) -> bool:
    """Buffer the first catalogue, with the default database alone, if there is none.  Say whether there was none."""
    if await read_version(txn) > 0:
        return False
    database = DatabaseDescriptor(database_id=FIRST_DATABASE_ID, name=DEFAULT_DATABASE)
    txn.put(VERSION_KEY, _encode(1))
    txn.put(NEXT_ID_KEY, _encode(FIRST_FREE_ID))
    txn.put(system_key("database", database.database_id), _encode(database))
    txn.put(_name_key(_NO_PARENT, database.name), _encode(database.database_id))
    return True


def _name_key(parent_id: int, name: str) -> bytes:
    return system_key("namespace", parent_id, name)


class CatalogEditor:
    """One change of the catalogue: what it is now, and the writes that make it what it will be.

    `catalog` is the state before the change, read by the same transaction; `finish` must be called before the commit.
    """

    def __init__(self, txn: Transaction, catalog: Catalog) -> None:
        self.txn = txn
        self.catalog = catalog
        self._next_id: int | None = None
        self._changed = False

    @property
    def is_changed(self) -> bool:
        """Say whether anything was edited: a change of nothing keeps the version."""
        return self._changed

    async def new_id(self) -> int:
        """Take an id for a database, table or sequence."""
        if self._next_id is None:
            [stored] = await self.txn.get([NEXT_ID_KEY])
            self._next_id = FIRST_FREE_ID if stored is None else _decode_int(stored)
        taken, self._next_id = self._next_id, self._next_id + 1
        return taken

    def add_database(self, database: DatabaseDescriptor) -> None:
        """Add a database whose name is free."""
        assert self.catalog.database(database.name) is None, database
        self._put("database", database.database_id, database)
        self.txn.put(_name_key(_NO_PARENT, database.name), _encode(database.database_id))

    def remove_database(self, database: DatabaseDescriptor) -> None:
        """Remove a database with all that is in it."""
        for table in self.catalog.tables(database.database_id):
            self.remove_table(table)
        for sequence in self.catalog.sequences(database.database_id):
            self.remove_sequence(sequence)
        self._delete("database", database.database_id)
        self.txn.delete(_name_key(_NO_PARENT, database.name))

    def add_table(self, table: TableDescriptor) -> None:
        """Add a table whose name is free."""
        self._put("table", table.table_id, table)
        self.txn.put(_name_key(table.database_id, table.name), _encode(table.table_id))

    def replace_table(self, old: TableDescriptor, new: TableDescriptor) -> None:
        """Put a table's next version in the place of the last one."""
        assert (new.table_id, new.name, new.version) == (old.table_id, old.name, old.version + 1), (old, new)
        self._put("table", new.table_id, new)
        if new.primary.index_id != old.primary.index_id:
            self._discard_index(old)

    def remove_table(self, table: TableDescriptor) -> None:
        """Remove a table and the sequences that it owns."""
        self._delete("table", table.table_id)
        self.txn.delete(_name_key(table.database_id, table.name))
        self._discard_index(table)
        for sequence in self.catalog.sequences(table.database_id):
            if sequence.owner_table_id == table.table_id:
                self.remove_sequence(sequence)

    def add_sequence(self, sequence: SequenceDescriptor) -> None:
        """Add a sequence whose name is free."""
        self._put("sequence", sequence.sequence_id, sequence)
        self.txn.put(_name_key(sequence.database_id, sequence.name), _encode(sequence.sequence_id))

    def remove_sequence(self, sequence: SequenceDescriptor) -> None:
        """Remove a sequence and its value."""
        self._delete("sequence", sequence.sequence_id)
        self.txn.delete(_name_key(sequence.database_id, sequence.name))
        self.txn.delete(sequence_value_key(sequence.sequence_id))

    def finish(self) -> int:
        """Write the next version, and give it.  Without edits nothing is written and the version stays."""
        if not self._changed:
            return self.catalog.version
        if self._next_id is not None:
            self.txn.put(NEXT_ID_KEY, _encode(self._next_id))
        self.txn.put(VERSION_KEY, _encode(self.catalog.version + 1))
        return self.catalog.version + 1

    def _put(self, tag: str, number: int, descriptor: msgspec.Struct) -> None:
        self._changed = True
        self.txn.put(system_key(tag, number), _encode(descriptor))

    def _delete(self, tag: str, number: int) -> None:
        self._changed = True
        self.txn.delete(system_key(tag, number))

    def _discard_index(self, table: TableDescriptor) -> None:
        garbage = IndexGarbage(table.database_id, table.table_id, table.primary.index_id)
        self.txn.put(system_key("garbage", garbage.database_id, garbage.table_id, garbage.index_id), _encode(garbage))


def sequence_value_key(sequence_id: int) -> bytes:
    """Give the key that holds a sequence's next value."""
    return system_key("sequence_value", sequence_id)
