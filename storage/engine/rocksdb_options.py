"""How RocksDB is tuned: what each family holds decides its compression, filters and buffers.

Invariants:
- Memory is bounded: one block cache for all families, indexes and filters inside it, and two write buffers' worth of memtables.
- The log is one file set for all families, of bounded size: a quiet family is flushed when the log grows past its limit.
"""

import rocksdict
from rocksdict import DBCompressionType, DBRecoveryMode

from dsdb.storage.engine.port import Family

DELTA_PREFIX_BYTES = 16
"""Bytes of a key in the prefix bloom filter of DELTA: tag and ids take 7, an integer key the rest."""

LOG_FILES_MAX = 4
LOG_FILE_BYTES_MAX = 4 << 20
OPEN_FILES_MAX = 512
META_PART_BYTES = 8 << 10
"""Size of the parts in which indexes and filters of table files are read and cached."""
BACKGROUND_JOBS = 2
BYTES_PER_SYNC = 1 << 20
"""Write-back of table files in steps, so that a sync of the log does not wait behind a compaction's whole output."""


def database_options(*, create: bool, write_buffer_bytes: int) -> rocksdict.Options:
    """Give the options of the database as a whole."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    options.set_error_if_exists(create)
    # The default recovery dropped half of the synced rows after one flipped bit, silently.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_db_write_buffer_size(2 * write_buffer_bytes)
    options.set_max_total_wal_size(4 * write_buffer_bytes)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_max_background_jobs(BACKGROUND_JOBS)
    options.set_bytes_per_sync(BYTES_PER_SYNC)
    options.set_keep_log_file_num(LOG_FILES_MAX)
    options.set_max_log_file_size(LOG_FILE_BYTES_MAX)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def family_options(family: Family, cache: rocksdict.Cache, write_buffer_bytes: int) -> rocksdict.Options:
    """Give the options of one family."""
    options = rocksdict.Options(raw_mode=True)
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_max_write_buffer_number(3)
    options.set_compression_type(DBCompressionType.lz4())
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_format_version(5)
    # A table file's filter as one block is larger than a shard of the cache (a 64th of it), so that every read fetched it anew.
    table.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(META_PART_BYTES)
    table.set_pin_top_level_index_and_filter(True)
    if family is Family.DELTA:
        options.set_prefix_extractor(rocksdict.SliceTransform.create_max_len_prefix(DELTA_PREFIX_BYTES))
        table.set_bloom_filter(10, False)
    elif family is Family.BLOCK:
        # A value is a column of some 16 k rows, compressed as far as that is worth its time (`columnar.chunk`); it has a block to itself.
        options.set_compression_type(DBCompressionType.none())
        table.set_block_size(16 << 10)
    elif family in (Family.META, Family.RAFT):
        # Small, hot, soon deleted: rarely worth compressing in the upper levels, where nearly all of it lives.
        options.set_compression_type(DBCompressionType.none())
        options.set_bottommost_compression_type(DBCompressionType.lz4())
    options.set_block_based_table_factory(table)
    return options
