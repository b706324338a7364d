"""Functions of any type: GREATEST, LEAST, NULLIF, and what has no better place."""

import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from dsdb.sql.functions.casts import interval_span
from dsdb.sql.functions.registry import Volatility, define
from dsdb.sql.types import SqlType, TypeName


def _extreme(choose: Callable[..., Any]) -> Callable[[Sequence[SqlType], SqlType], Callable[..., Any]]:
    def make(types: Sequence[SqlType], _: SqlType) -> Callable[..., Any]:
        key = interval_span if types[0].name is TypeName.INTERVAL else None

        def evaluate(*values: Any) -> Any:
            present = [value for value in values if value is not None]
            return choose(present, key=key) if present else None

        return evaluate

    return make


def _nullif(left: Any, right: Any) -> Any:
    return None if left is not None and left == right else left


def _random_uuid() -> bytes:
    return uuid.UUID(int=random.getrandbits(128), version=4).bytes


define("greatest(any...) -> any", engine="greatest({all})", evaluate=_extreme(max), typed=True, strict=False)
define("least(any...) -> any", engine="least({all})", evaluate=_extreme(min), typed=True, strict=False)
define("nullif(any, any) -> any", engine="nullif({0}, {1})", evaluate=_nullif, strict=False)
define("random() -> float8", engine="random()", evaluate=random.random, volatility=Volatility.VOLATILE, never_null=True)
define("gen_random_uuid() -> uuid", engine="uuid()", evaluate=_random_uuid, volatility=Volatility.VOLATILE, never_null=True)
define("pi() -> float8", engine="pi()", evaluate=lambda: 3.141592653589793, never_null=True)
