"""One node: everything put together (`node`), its place in the cluster (`directory`, `membership`), and its front doors.

Imported by `dsdb.cli` and, for embedded use, by `dsdb.driver`.
"""
