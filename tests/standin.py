"""A store on this computer: enough of the S3 protocol for the program that fetches from the real one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Store:
    "Files by `bucket/key`, and how the store behaves."

    objects: dict[str, bytes] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # listed, but never given
    seconds: float = 0.0  # before each file
    asked: list[str] = field(default_factory=list)  # the files that were asked for
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listing(self, bucket: str, prefix: str) -> str:
        rows = "".join(
            f"<Contents><Key>{escape(path.partition('/')[2])}</Key><Size>{len(data)}</Size>"
            '<ETag>"0"</ETag><LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>'
            for path, data in sorted(self.objects.items())
            if path.startswith(f"{bucket}/{prefix}")
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"


def _handler(store: Store) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self):
            path = unquote(urlsplit(self.path).path).strip("/")
            body = store.objects.get(path)
            self.answer(200 if "/" not in path or body is not None else 404, body or b"")

        def do_GET(self):
            url = urlsplit(self.path)
            path, query = unquote(url.path).strip("/"), parse_qs(url.query)
            if "list-type" in query:
                return self.answer(200, store.listing(path, query.get("prefix", [""])[0]).encode())
            with store.lock:  # one file at a time, so that `seconds` are those of every file
                store.asked.append(path)
                time.sleep(store.seconds)
            if path in store.refused:
                return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            if path not in store.objects:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            body = store.objects[path]
            if "Range" not in self.headers:
                return self.answer(200, body)
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = body[int(first) : int(last) + 1]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            return self.answer(206, part, Content_Range=span)

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):  # the other side was killed
                self.close_connection = True

    return Handler


@contextmanager
def serving(store: Store) -> Iterator[Store]:
    "Serve a store; `address` says where."
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
