"""How a session stands to transactions: what its client is told, and what it may ask for.  Light, as the client library has it too."""

import enum


class TransactionStatus(enum.IntEnum):
    """Whether a transaction is open; told with each answer."""

    NONE = 0
    ACTIVE = 1
    FAILED = 2


class Begin(enum.IntEnum):
    """What a statement that comes without an open transaction begins.

    IMPLICIT: a transaction, as a client without autocommit has it: a change of the catalogue that comes first commits by itself;
    BLOCK: one like that of BEGIN.
    """

    NO = 0
    IMPLICIT = 1
    BLOCK = 2
