"""HTTP for people and Prometheus: /health and /metrics, in a thread of the standard library's server.

It reads snapshots that the node makes, and touches nothing else; a scrape costs the event loop nothing but the GIL for a moment.  A node
with certificates serves it by HTTPS, to anybody: a scraper has no certificate of the cluster's, and what is told is no user's data.
"""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from dsdb.env import Address
from dsdb.tls.credentials import NodeCredentials

REQUEST_S = 10.0
"""How long a client may take for its handshake, and for each request."""
_TLS_HANDSHAKE = b"\x16"
_PLAIN = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS.\n"


class NodeMetrics:
    """A Prometheus collector over the node's own snapshot: name → (help, value, is a counter)."""

    def __init__(self, snapshot: Callable[[], dict[str, tuple[str, float, bool]]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Give all metrics as they are now."""
        for name, (help_text, value, is_counter) in sorted(self._snapshot().items()):
            family = CounterMetricFamily if is_counter else GaugeMetricFamily
            yield family(f"dsdb_{name}", help_text, value=value)


class HttpServer:
    """Serves health and metrics until closed."""

    def __init__(
        self,
        address: Address,
        health: Callable[[], tuple[bool, dict[str, Any]]],
        metrics: NodeMetrics,
        credentials: NodeCredentials | None = None,
    ) -> None:
        registry = CollectorRegistry()
        registry.register(metrics)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = REQUEST_S

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path in ("/", "/health"):
                    is_healthy, body = health()
                    self._answer(200 if is_healthy else 503, "application/json", json.dumps(body, indent=2).encode() + b"\n")
                else:
                    self._answer(404, "text/plain", b"There is /health and /metrics.\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: scrapes are not news."""

        self._server = _Server((address.host, address.port), Handler, credentials)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 1.0}, name="dsdb-http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Give where it listens."""
        host, port = self._server.server_address[:2]
        return Address(str(host), int(port))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    """Shakes hands in the connection's own thread, so that a slow client holds up nobody."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], credentials: NodeCredentials | None) -> None:
        self._credentials = credentials
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; `request` is its socket."""
        if self._credentials is None:
            super().finish_request(request, client_address)
            return
        try:
            request.settimeout(REQUEST_S)
            if request.recv(1, socket.MSG_PEEK) not in (_TLS_HANDSHAKE, b""):
                request.sendall(_PLAIN)
                return
            with self._credentials.http().wrap_socket(request, server_side=True) as encrypted:
                super().finish_request(encrypted, client_address)
        except (ssl.SSLError, OSError):
            pass  # a client that does not trust us, is too slow, or went away
