"""dsdb: a distributed SQL database in Python."""
