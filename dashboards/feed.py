"""The live page's data: made anew only when somebody asks and the study has changed, once for all who ask."""

import gzip
import hashlib
import json
import threading
import time
from dataclasses import dataclass

from cser_ray.store.folder import Folder
from dashboards.snapshot import read_snapshot
from dashboards.views import payload

STALE_S = 20.0
"""After so long the data is made again without a change too: a silent run is stale by the clock alone."""


@dataclass(frozen=True)
class Data:
    """A payload as JSON, plain and packed; `tag` tells it from others."""

    tag: str
    plain: bytes
    packed: bytes


class Feed:
    """The payload of one results folder. Safe to ask from several threads."""

    def __init__(self, results: str, select: str | None = None):
        self.results, self.select = results, select
        self._lock = threading.Lock()
        self._data: Data | None = None
        self._files: object = None
        self._made_at = -float("inf")

    def get(self) -> Data:
        """The data as it is now. Raises what `read_snapshot` raises."""
        with self._lock:
            files = self._listing()
            if self._data is None or files != self._files or time.monotonic() - self._made_at > STALE_S:
                self._data, self._files = self._make(), files
                self._made_at = time.monotonic()
            return self._data

    def _make(self) -> Data:
        page = payload(read_snapshot(self.results, self.select))
        plain = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        page["study"].pop("at")  # the same rows read again are no news
        tag = hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()[:16]
        return Data(tag, plain, gzip.compress(plain, 5))

    def _listing(self) -> object:
        """What changes whenever a row is written: name, size and time of each file."""
        folder = Folder(self.results)
        return [
            (entry.path, entry.size, entry.mtime_ns)
            for name in ("", "trials", "history")
            for entry in folder.entries(name)
        ]
