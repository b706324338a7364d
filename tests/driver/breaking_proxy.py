"""A proxy that breaks connections at a byte."""

from __future__ import annotations

import socket
import threading


class BreakingProxy:
    """Passes bytes on until told to break: from then on it swallows answers, and closes."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target = port
        self.breaks_after: bytes | None = None
        self._is_swallowing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            threads = [threading.Thread(target=self._pump, args=pair, daemon=True) for pair in ((near, far), (far, near))]
            for thread in threads:
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with source:
            while True:
                try:
                    data = source.recv(65536)
                    # Before the bytes go on: their answer may be quick.
                    is_last = self.breaks_after is not None and self.breaks_after in data
                    self._is_swallowing |= is_last
                    if data and (is_last or not self._is_swallowing):
                        sink.sendall(data)
                except OSError:
                    data = b""
                if not data or is_last:
                    for end in (source, sink):
                        try:
                            end.shutdown(socket.SHUT_RDWR)
                        except OSError:
                            pass
                    return

    def heal(self) -> None:
        self.breaks_after = None
        self._is_swallowing = False

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
