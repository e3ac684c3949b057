"""A small S3-compatible server on loopback, for tests: one bucket in memory.

It knows what this package needs: put (also ``If-None-Match: *``), get with ranges, head, list,
delete of many, and multipart uploads. Signatures are not checked. It can lose answers: the request
lands, and the client sees a closed connection.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

BUCKET = "bucket"


class LoopbackS3(ThreadingHTTPServer):
    """The server, on 127.0.0.1 only.

    Parameters
    ----------
    page : int
        How many keys a listing gives at once.
    lose_every : int
        Of so many puts one lands without an answer; 0 for none.

    Attributes
    ----------
    objects : dict of str to bytes
        What it holds.
    modified : dict of str to float
        When each was put, in seconds since 1970.
    lost : int
        How many answers it did not give.
    """

    daemon_threads = True
    request_queue_size = 128  # many processes connect at once

    def __init__(self, page: int = 1000, lose_every: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, float] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.page = page
        self.lock = threading.Lock()
        self.lost = 0
        self._lose_every = lose_every
        self._puts = 0

    def put(self, key: str, data: bytes) -> None:
        """Keep an object; the caller holds the lock."""
        self.objects[key] = data
        self.modified[key] = time.time()

    def remove(self, key: str) -> None:
        """Forget an object, if there is one; the caller holds the lock."""
        self.objects.pop(key, None)
        self.modified.pop(key, None)

    def loses_this(self) -> bool:
        """Whether the put that just landed gets no answer; the caller holds the lock."""
        self._puts += 1
        loses = self._lose_every > 0 and self._puts % self._lose_every == 0
        self.lost += loses
        return loses

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
def loopback_s3(page: int = 1000, lose_every: int = 0) -> Iterator[LoopbackS3]:
    """Run a server in a thread of this process."""
    server = LoopbackS3(page, lose_every)
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
    # Headers and body in one packet: sent one by one, the second waits for the first one's
    # acknowledgement, which takes a client 40 ms.
    wbufsize = 2**16
    disable_nagle_algorithm = True

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
                self.server.put(key, body)
            loses = self.server.loses_this()
        if loses:
            self.close_connection = True
            return None
        return self._answer(200, ETag=_etag(body))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "list-type" in self._query:
            return self._list()
        with self.server.lock:
            data = self.server.objects.get(self._key)
            modified = self.server.modified.get(self._key, 0.0)
        if data is None:
            return self._fail(404, "NoSuchKey")
        headers = {
            "ETag": _etag(data),
            "Last_Modified": _moment(modified).strftime("%a, %d %b %Y %H:%M:%S GMT"),
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
            found = {
                key: (len(self.server.objects[key]), _moment(self.server.modified[key]))
                for key in page
            }
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key>"
            f"<LastModified>{modified:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
            f"<ETag>x</ETag><Size>{size}</Size></Contents>"
            for key, (size, modified) in found.items()
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
                    self.server.remove(unescape(name))
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
            self.server.put(key, b"".join(parts[number] for number in sorted(parts)))
        answer = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        return self._answer(200, answer.encode())

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.remove(self._key)
        self._answer(204)


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _etag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'
