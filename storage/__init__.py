"""Bytes, versions and blocks: all that dsdb knows of a disk.

Synchronous; no SQL, no cluster, no clock, no chance, no event loop.  Read in this order: `keys` (the keyspace in one drawing), `datum`
(values as they are stored), `keycodec` and `rowcodec` (values to bytes), `engine` (ordered bytes on disk), `mvcc` (versions of keys).
"""
