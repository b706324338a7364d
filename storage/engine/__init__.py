"""Ordered bytes on a disk: the Protocol of an engine, its RocksDB form (`rocksdb`) and its in-memory form (`memory`)."""

from dsdb.storage.engine.port import Engine, EngineSnapshot, Family, Reader, WriteBatch

__all__ = ["Engine", "EngineSnapshot", "Family", "Reader", "WriteBatch"]
