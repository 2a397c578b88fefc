"""A receiver of webhooks: a real HTTP server in threads of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kit.system import free_port, poll


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int  #: what was answered

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


#: Status and headers for a request, by how many came to its path before it.
Answer = Callable[[int], tuple[int, dict[str, str]]]


class Receiver:
    """Answers 200, or what ``answer`` says; ``hanging`` paths are answered when the receiver is stopped."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self.answers: dict[str, Answer] = {}
        self.got: list[Received] = []
        self.begun = 0  #: requests that came, answered or not
        self.release = threading.Event()
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._server: ThreadingHTTPServer | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def on(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return self.url(path)

    def hang(self, path: str) -> str:
        def wait(_: int) -> tuple[int, dict[str, str]]:
            self.release.wait(60)
            return 200, {}

        return self.on(path, wait)

    def at(self, path: str) -> list[Received]:
        return [request for request in list(self.got) if request.path == path]

    def await_at(self, path: str, count: int = 1, timeout: float = 20) -> list[Received]:
        poll(lambda: len(self.at(path)) >= count, timeout, f"{count} requests to {path}")
        return self.at(path)

    def start(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._lock:
                    count = receiver._counts.get(self.path, 0)
                    receiver._counts[self.path] = count + 1
                    receiver.begun += 1
                status, headers = receiver.answers.get(self.path, lambda _: (200, {}))(count)
                sent = {name.lower(): value for name, value in self.headers.items()}
                receiver.got.append(Received(self.path, sent, body, status))
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": "0", **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                except OSError:
                    pass  # its sender has gone

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None: ...

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.release.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
