"""A real HTTP server on this machine that answers as a price service does, or does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Answers:
    """By path: status, body and headers; ``asked`` has every address that was asked for."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.asked: list[str] = []
        self.url = ""

    def say(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        self.by_path[path] = (status, body, {k.replace("_", "-"): v for k, v in headers.items()})


@contextmanager
def serving() -> Iterator[Answers]:
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            self._answer()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            answers.asked.append(self.rfile.read(length).decode())
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            status, body, headers = answers.by_path.get(path, (404, b"", {}))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    answers.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
