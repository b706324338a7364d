"""What an open transaction has changed in the catalogue: a draft, which its own statements see, and its COMMIT publishes.

    base (the transaction's catalogue) ─ CREATE TABLE u ─▶ draft 1 ─ DROP TABLE t ─▶ draft 2 … ─ COMMIT ─▶ the same changes, made to
                                                                                               the catalogue of the day

A draft is a value: going back to a savepoint is going back to the draft that was kept there.

Invariants:
- A draft is published only onto a catalogue in which everything that it replaces is as it was, and every name that it takes is free.
- Ids of what was made are taken for good, whatever becomes of the transaction.

Not here: when it is published, and who waits for that (`catalog_lease`); what DDL statements do (`execute.ddl`).
"""

from collections.abc import Collection

import msgspec

from dsdb.sql.catalog import AnyDescriptor, Catalog, CatalogEditor, Changes, IndexGarbage, write_changes
from dsdb.sql.errors import SerializationError
from dsdb.sql.ports import Transaction
from dsdb.sql.schema import DatabaseDescriptor, SequenceDescriptor, TableDescriptor

_AGAIN = "Run the transaction again."


class CatalogDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that are not committed.

    catalog: the transaction's, with them; discarded: indexes whose rows nobody can name then; own_sequences: ids of those that the
    transaction has made or begun anew, whose values nobody else takes before its commit.
    """

    catalog: Catalog
    changes: Changes
    discarded: tuple[IndexGarbage, ...] = ()
    own_sequences: frozenset[int] = frozenset()

    def edited(self, editor: CatalogEditor) -> "CatalogDraft":
        """Give the draft with what an editor of its catalogue has changed."""
        changes = dict(self.changes)
        for key, (old, new) in editor.changes.items():
            first = changes[key][0] if key in changes else old
            changes[key] = (first, new)
            if first is None and new is None:
                del changes[key]
        made = [number for (kind, number), (old, _) in editor.changes.items() if kind == "sequence" and old is None]
        return CatalogDraft(
            catalog=self.catalog.changed(editor.changes),
            changes=changes,
            discarded=(*self.discarded, *editor.discarded),
            own_sequences=self.own_sequences.union(made, (sequence.sequence_id for sequence in editor.restarted)),
        )

    @property
    def is_empty(self) -> bool:
        """Say whether nothing is left of its changes, not even rows of what was made and dropped again."""
        return not self.changes and not self.discarded

    @property
    def emptied(self) -> list[TableDescriptor]:
        """Give the tables, as they were, that it drops or truncates."""
        found: list[TableDescriptor] = []
        for old, new in self.changes.values():
            if isinstance(old, TableDescriptor) and not (isinstance(new, TableDescriptor) and new.primary.index_id == old.primary.index_id):
                found.append(old)
        return found

    def onto(self, catalog: Catalog) -> "CatalogDraft":
        """Give the same changes of another catalogue.  Raises SerializationError if others have changed what it changes."""
        # Tables first: who made one of the same name has made sequences of the same names, too.
        for (kind, number), (old, new) in sorted(self.changes.items(), key=lambda change: change[0][0] != "table"):
            if catalog.descriptor(kind, number) != old:
                raise changed_by_others(old or new, catalog)
            if new is not None and old is None:
                _check_free(new, catalog, self)
        return msgspec.structs.replace(self, catalog=catalog.changed(self.changes))

    def write(self, txn: Transaction, catalog: Catalog) -> int:
        """Buffer the changes of a catalogue, read by the same transaction, that `onto` takes; give its next version."""
        return write_changes(txn, catalog, self.changes, dict.fromkeys(self.discarded))


def draft_of(catalog: Catalog) -> CatalogDraft:
    """Give a draft without changes."""
    return CatalogDraft(catalog=catalog, changes={})


def check_used(tables: Collection[int], base: Catalog, present: Catalog, *, owner: bytes | None = None) -> None:
    """See that tables are as they were, and that no fence but the owner's keeps us from them.  Raises SerializationError."""
    for table_id in tables:
        used = base.table_by_id(table_id)
        if used is None:
            continue  # made in a draft
        fence = present.fences.get(table_id)
        if present.table_by_id(table_id) != used or (fence is not None and fence.owner != owner):
            raise changed_by_others(used, present)


def changed_by_others(descriptor: AnyDescriptor | None, present: Catalog) -> SerializationError:
    """Say what another transaction has changed."""
    assert descriptor is not None, "a change of nothing"
    match descriptor:
        case TableDescriptor():
            what, is_there = f'table "{descriptor.name}"', present.table_by_id(descriptor.table_id) is not None
        case SequenceDescriptor():
            what, is_there = f'sequence "{descriptor.name}"', present.sequence_by_id(descriptor.sequence_id) is not None
        case DatabaseDescriptor():
            what, is_there = f'database "{descriptor.name}"', present.database(descriptor.name) is not None
    verb = "changed" if is_there else "dropped"
    return SerializationError(f"could not serialize access: {what} was {verb} by another transaction", hint=_AGAIN)


def _check_free(new: AnyDescriptor, catalog: Catalog, draft: CatalogDraft) -> None:
    """See that a name that is taken is free, or made free by the draft."""
    if isinstance(new, DatabaseDescriptor):
        taken: AnyDescriptor | None = catalog.database(new.name)
    else:
        if catalog.descriptor("database", new.database_id) is None:
            raise SerializationError("could not serialize access: the database was dropped by another transaction", hint=_AGAIN)
        taken = catalog.table(new.database_id, new.name) or catalog.sequence(new.database_id, new.name)
    if taken is not None and not any(old == taken for old, _ in draft.changes.values()):
        raise SerializationError(f'could not serialize access: "{new.name}" was created by another transaction', hint=_AGAIN)


__all__ = ["CatalogDraft", "changed_by_others", "check_used", "draft_of"]
