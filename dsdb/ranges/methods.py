"""The one method by which a gateway asks a range: any request in, its reply or a KvError out."""

from dsdb.kv.errors import KvError, KvErrorDetail
from dsdb.kv.requests import Reply, Request
from dsdb.rpc import Method, MethodKind

KV_CALL: Method[Request, Reply] = Method(10, "kv", MethodKind.CALL, Request, Reply, error_type=KvErrorDetail, error_exception=KvError)
