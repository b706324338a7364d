"""How large transactions may be, and from where on they are flushed (rule 27)."""

import msgspec


class TxnLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Of the transactions of one node.  Raises ValueError on values that could never work."""

    flush_bytes: int = 8 * 1024 * 1024
    """Keys and values in a buffer, with what they replaced, above which it is flushed as intents."""
    flush_keys: int = 32_768
    """The same in keys: what may be sorted and sent without a pause that others notice."""
    transaction_bytes_max: int = 16 * 1024**3
    """Keys and values that one transaction may write: its intents take disk on each replica until it ends, and twice that after."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
