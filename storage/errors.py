"""What storage can answer instead of data.  Everything raised by `dsdb.storage` on purpose is a StorageError."""


class StorageError(Exception):
    """Base of all that storage raises on purpose."""


class CorruptionError(StorageError):
    """Stored bytes are not what was written: a checksum, a format or an invariant of the layout is broken.  Never a short result."""


class WriteStallError(StorageError):
    """The engine cannot take a write now without blocking; nothing was written, try again after a pause."""


class DiskFullError(StorageError):
    """The disk has no room; nothing was written, reads go on, writes may be probed again."""


class DiskError(StorageError):
    """The operating system failed a read, a write or a sync.  What the last write did is unknown: the store must stop."""


class StoreFormatError(StorageError):
    """The directory is not a store of ours, is of another cluster, or is of a newer format."""


class StoreLockedError(StorageError):
    """Another process has this store open."""


class KeyFormatError(StorageError):
    """Bytes given as a key do not decode as one."""


class ValueRangeError(StorageError):
    """A value lies outside what its kind can store (an integer above 64 bits, a date beyond the calendar, …)."""
