"""A small S3-compatible server on loopback, for tests: one bucket in memory.

It knows what this package needs: put (also ``If-None-Match: *``), get with ranges, head, list,
delete of many, and multipart uploads. Signatures are not checked.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

BUCKET = "bucket"


class LoopbackS3(ThreadingHTTPServer):
    """The server; ``objects`` is what it holds, ``page`` how many keys a listing gives at once."""

    daemon_threads = True

    def __init__(self, page: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.page = page
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """The ``AWS_*`` variables that lead ``s3://bucket/...`` here."""
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }


@contextmanager
def loopback_s3(page: int = 1000) -> Iterator[LoopbackS3]:
    """Run a server in a thread of this process."""
    server = LoopbackS3(page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackS3

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        """Say nothing."""

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

    @property
    def _query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def do_PUT(self) -> None:
        body, key, query = self._body(), self._key, self._query
        with self.server.lock:
            if "uploadId" in query:
                self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
            elif self.headers.get("If-None-Match") == "*" and key in self.server.objects:
                return self._fail(412, "PreconditionFailed")
            else:
                self.server.objects[key] = body
        return self._answer(200, ETag=_etag(body))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "list-type" in self._query:
            return self._list()
        with self.server.lock:
            data = self.server.objects.get(self._key)
        if data is None:
            return self._fail(404, "NoSuchKey")
        headers = {
            "ETag": _etag(data),
            "Last_Modified": dt.datetime.now(dt.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, data, Content_Length=str(len(data)), **headers)
        start = int(wanted[1])
        if start >= len(data):
            return self._fail(416, "InvalidRange")
        part = data[start : int(wanted[2]) + 1 if wanted[2] else None]
        headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return self._answer(206, part, **headers)

    def _list(self) -> None:
        query = self._query
        with self.server.lock:
            keys = sorted(
                key
                for key in self.server.objects
                if key.startswith(query.get("prefix", ""))
                and key > query.get("continuation-token", "")
            )
            page = keys[: self.server.page]
            sizes = {key: len(self.server.objects[key]) for key in page}
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{now}</LastModified>"
            f"<ETag>x</ETag><Size>{sizes[key]}</Size></Contents>"
            for key in page
        )
        more = len(keys) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}"
            "</ListBucketResult>".encode(),
        )

    def do_POST(self) -> None:
        body, key, query = self._body(), self._key, self._query
        with self.server.lock:
            if "delete" in query:
                names = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for name in names:
                    self.server.objects.pop(unescape(name), None)
                done = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
                return self._answer(200, f"<DeleteResult>{done}</DeleteResult>".encode())
            if "uploads" in query:
                upload = str(len(self.server.uploads))
                self.server.uploads[upload] = {}
                answer = (
                    f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                    "</InitiateMultipartUploadResult>"
                )
                return self._answer(200, answer.encode())
            parts = self.server.uploads.pop(query["uploadId"])
            self.server.objects[key] = b"".join(parts[number] for number in sorted(parts))
        answer = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        return self._answer(200, answer.encode())

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.objects.pop(self._key, None)
        self._answer(204)


def _etag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'
