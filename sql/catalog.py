"""The catalogue: databases, tables and sequences as rows of the system range, read whole and changed by transactions.

    system_key("catalog", "version")            the version: grows by one with every change
    system_key("next_id", "descriptor")         next id of a database, table or sequence
    system_key("database" | "table" | "sequence", id)     descriptors, as MessagePack
    system_key("namespace", parent id, name)    id: of a database (parent 0), of a table or sequence (parent: its database)
    system_key("garbage", database id, table id, index id)   an index that no descriptor names any more: its keys may be removed
    system_key("ranges", table id)              what ALTER TABLE … CONFIGURE said; here only removed, with the table
    system_key("fence", table id)               a table that nobody but one transaction may use: it is about to empty it

Invariants:
- Every change reads and writes the version: two changes never commit at the same version, and a loaded catalogue is one state.
- A name is given once: tables and sequences of a database share one name space.
- Ids are never reused.

Not here: which version statements may use (`catalog_lease`), what a statement changes (`execute.ddl`).
"""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

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

AnyDescriptor: TypeAlias = DatabaseDescriptor | TableDescriptor | SequenceDescriptor
Changes: TypeAlias = Mapping[tuple[str, int], tuple[AnyDescriptor | None, AnyDescriptor | None]]
"""By kind (`database`, `table`, `sequence`) and id: what was there before, and what is there then."""

_encode = msgspec.msgpack.Encoder().encode
_decode_int = msgspec.msgpack.Decoder(int).decode


class IndexGarbage(msgspec.Struct, frozen=True, array_like=True):
    """An index whose rows nobody can name any more."""

    database_id: int
    table_id: int
    index_id: int


class Fence(msgspec.Struct, frozen=True, array_like=True):
    """Keeps all transactions but one (`owner`) from a table, for as long as it stands.  Behind `until` anybody may take it away."""

    table_id: int
    owner: bytes
    until: Timestamp


Stored = TypeVar("Stored", DatabaseDescriptor, TableDescriptor, SequenceDescriptor, Fence)

_draft_versions = itertools.count(-1, -1)


class Catalog:
    """The catalogue at one version (`ports.CatalogSnapshot`); frozen but for its lease.

    fences: by table id.  A version below zero is that of a draft, which only the transaction that made it has seen.
    """

    def __init__(
        self,
        version: int,
        databases: Sequence[DatabaseDescriptor],
        tables: Sequence[TableDescriptor],
        sequences: Sequence[SequenceDescriptor],
        *,
        fences: Iterable[Fence] = (),
        lease_expiration: Timestamp = MAX_TIMESTAMP,
    ) -> None:
        self.version = version
        self.fences = {fence.table_id: fence for fence in fences}
        self.lease_expiration = lease_expiration
        self._databases = {database.name: database for database in sorted(databases, key=lambda each: each.name)}
        self._tables: dict[int, dict[str, TableDescriptor]] = {database.database_id: {} for database in databases}
        self._sequences: dict[tuple[int, str], SequenceDescriptor] = {}
        self._sequences_by_id = {sequence.sequence_id: sequence for sequence in sequences}
        self._tables_by_id = {table.table_id: table for table in tables}
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

    def table_by_id(self, table_id: int) -> TableDescriptor | None:
        """Give a table by id."""
        return self._tables_by_id.get(table_id)

    def sequence(self, database_id: int, name: str) -> SequenceDescriptor | None:
        """Give a sequence by its exact name."""
        return self._sequences.get((database_id, name))

    def sequence_by_id(self, sequence_id: int) -> SequenceDescriptor | None:
        """Give a sequence by id."""
        return self._sequences_by_id.get(sequence_id)

    def sequences(self, database_id: int) -> Sequence[SequenceDescriptor]:
        """Give the sequences of a database, by name."""
        return tuple(sequence for (owner, _), sequence in self._sequences.items() if owner == database_id)

    def descriptor(self, kind: str, number: int) -> AnyDescriptor | None:
        """Give what there is of a kind by id."""
        if kind == "database":
            return next((database for database in self._databases.values() if database.database_id == number), None)
        return self._tables_by_id.get(number) if kind == "table" else self._sequences_by_id.get(number)

    def changed(self, changes: Changes) -> "Catalog":
        """Give a draft: this catalogue with some changes, under the same lease."""
        kept: dict[tuple[str, int], AnyDescriptor] = {("database", each.database_id): each for each in self._databases.values()}
        kept.update({("table", each.table_id): each for each in self._tables_by_id.values()})
        kept.update({("sequence", each.sequence_id): each for each in self._sequences_by_id.values()})
        for key, (_, new) in changes.items():
            if new is None:
                kept.pop(key, None)
            else:
                kept[key] = new
        everything = kept.values()
        return Catalog(
            next(_draft_versions),
            [each for each in everything if isinstance(each, DatabaseDescriptor)],
            [each for each in everything if isinstance(each, TableDescriptor)],
            [each for each in everything if isinstance(each, SequenceDescriptor)],
            fences=self.fences.values(),
            lease_expiration=self.lease_expiration,
        )


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
        fences=await _load(txn, "fence", Fence),
    )


async def _load(txn: Transaction, tag: str, kind: type[Stored]) -> list[Stored]:
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


async def take_id(txn: Transaction) -> int:
    """Buffer the taking of an id for a database, table or sequence, and give it."""
    [stored] = await txn.get([NEXT_ID_KEY])
    taken = FIRST_FREE_ID if stored is None else _decode_int(stored)
    txn.put(NEXT_ID_KEY, _encode(taken + 1))
    return taken


class CatalogEditor:
    """One change of the catalogue: what it is now, and what becomes of it.  Nothing is written before `write_changes`.

    `catalog` is the state before the change; new_id: takes an id that is never given again; restarted: sequences that begin anew.
    """

    def __init__(self, catalog: Catalog, new_id: Callable[[], Awaitable[int]]) -> None:
        self.catalog = catalog
        self.new_id = new_id
        self.changes: dict[tuple[str, int], tuple[AnyDescriptor | None, AnyDescriptor | None]] = {}
        self.discarded: list[IndexGarbage] = []
        self.restarted: list[SequenceDescriptor] = []
        self.fences: dict[int, Fence | None] = {}

    @property
    def is_changed(self) -> bool:
        """Say whether anything was edited: a change of nothing keeps the version."""
        return bool(self.changes or self.fences)

    def add_database(self, database: DatabaseDescriptor) -> None:
        """Add a database whose name is free."""
        assert self.catalog.database(database.name) is None, database
        self.changes["database", database.database_id] = (None, database)

    def remove_database(self, database: DatabaseDescriptor) -> None:
        """Remove a database with all that is in it."""
        for table in self.catalog.tables(database.database_id):
            self.remove_table(table)
        for sequence in self.catalog.sequences(database.database_id):
            self.remove_sequence(sequence)
        self.changes["database", database.database_id] = (database, None)

    def add_table(self, table: TableDescriptor) -> None:
        """Add a table whose name is free."""
        self.changes["table", table.table_id] = (None, table)

    def replace_table(self, old: TableDescriptor, new: TableDescriptor) -> None:
        """Put a table's next version in the place of the last one."""
        assert (new.table_id, new.name, new.version) == (old.table_id, old.name, old.version + 1), (old, new)
        self.changes["table", new.table_id] = (old, new)
        if new.primary.index_id != old.primary.index_id:
            self._discard_index(old)

    def remove_table(self, table: TableDescriptor) -> None:
        """Remove a table and the sequences that it owns."""
        self.changes["table", table.table_id] = (table, None)
        self._discard_index(table)
        for sequence in self.catalog.sequences(table.database_id):
            if sequence.owner_table_id == table.table_id:
                self.remove_sequence(sequence)

    def add_sequence(self, sequence: SequenceDescriptor) -> None:
        """Add a sequence whose name is free."""
        self.changes["sequence", sequence.sequence_id] = (None, sequence)

    def remove_sequence(self, sequence: SequenceDescriptor) -> None:
        """Remove a sequence and its value."""
        self.changes["sequence", sequence.sequence_id] = (sequence, None)

    def restart_sequence(self, sequence: SequenceDescriptor) -> None:
        """Let a sequence begin anew."""
        self.restarted.append(sequence)

    def set_fence(self, fence: Fence) -> None:
        """Keep all but one from a table."""
        self.fences[fence.table_id] = fence

    def remove_fence(self, table_id: int) -> None:
        """Let everybody use a table again."""
        self.fences[table_id] = None

    def write(self, txn: Transaction) -> int:
        """Buffer the change, and give the next version; a change of nothing writes nothing, and the version stays."""
        if not self.is_changed:
            return self.catalog.version
        for sequence in self.restarted:
            txn.delete(sequence_value_key(sequence.sequence_id))
        for table_id, fence in self.fences.items():
            if fence is None:
                txn.delete(system_key("fence", table_id))
            else:
                txn.put(system_key("fence", table_id), _encode(fence))
        return write_changes(txn, self.catalog, self.changes, self.discarded)

    def _discard_index(self, table: TableDescriptor) -> None:
        self.discarded.append(IndexGarbage(table.database_id, table.table_id, table.primary.index_id))


def write_changes(txn: Transaction, catalog: Catalog, changes: Changes, discarded: Iterable[IndexGarbage]) -> int:
    """Buffer changes of a catalogue that was read by the same transaction, and its next version, which it gives."""
    for (kind, number), (old, new) in changes.items():
        if new is not None:
            continue
        assert old is not None, "a change of nothing"
        txn.delete(system_key(kind, number))
        txn.delete(_key_of_name(old))
        if kind == "sequence":
            txn.delete(sequence_value_key(number))
        if kind == "table":
            txn.delete(system_key("ranges", number))
    for (kind, number), (_, new) in changes.items():
        if new is not None:
            txn.put(system_key(kind, number), _encode(new))
            txn.put(_key_of_name(new), _encode(number))
        if kind == "table" and number in catalog.fences:
            txn.delete(system_key("fence", number))
    for garbage in discarded:
        txn.put(system_key("garbage", garbage.database_id, garbage.table_id, garbage.index_id), _encode(garbage))
    txn.put(VERSION_KEY, _encode(catalog.version + 1))
    return catalog.version + 1


def _key_of_name(descriptor: AnyDescriptor) -> bytes:
    return _name_key(_NO_PARENT if isinstance(descriptor, DatabaseDescriptor) else descriptor.database_id, descriptor.name)


def sequence_value_key(sequence_id: int) -> bytes:
    """Give the key that holds a sequence's next value."""
    return system_key("sequence_value", sequence_id)
