"""Writes the audit trail: append-only JSON lines, rotated, chained, shared by all workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrpguard.errors import AuditError
from lrpguard.serving.chain import Head, file_name, file_number, last_head, link, trail_files
from lrpguard.serving.config import Fsync

FSYNC_SECONDS = 1.0
"""Time between two flushes to the disk under ``interval``."""

LOCK_NAME = "lock"
PROBE_NAME = "probe"
PROBE_BYTES = 64 * 1024
"""Room that a folder must have to be taken for writable again."""


class AuditTrail:
    """Appends records to the chain of a folder, from several threads and processes.

    Each append holds a lock on the folder, so that there is one chain however many workers
    write it. A line that a crash or a full disk cut off is taken away by the next append: it was
    never acknowledged.

    Args:
        folder: Where the files are; it is made.
        fsync: When lines are flushed to the disk: ``"always"`` before an append returns,
            ``"interval"`` at the first append a second after the last flush, and when the trail
            is closed, ``"never"`` leaves it to the system. Lines survive the death of the process
            under each; that of the machine only under ``"always"``.
        rotate_bytes: Size at which a new file begins.
        key: Key of the chain.

    Raises:
        AuditError: The folder's trail belongs to another key, or is broken at its end.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, *, fsync: Fsync, rotate_bytes: int, key: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._fsync = fsync
        self._rotate_bytes = rotate_bytes
        self._key = key
        self._thread_lock = threading.Lock()
        self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o640)
        self._file = -1
        self._number = 0
        self._size = 0
        self._head = Head()
        self._flushed = time.monotonic()
        try:
            with self._locked():
                self._catch_up()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Head:
        """The chain's end, as this writer last saw it."""
        return self._head

    def append(self, entries: Sequence[Mapping[str, Any]]) -> Head:
        """Write records, all of them or none.

        Returns:
            The chain's new head.

        Raises:
            OSError: They cannot be written; none of them stands in the trail.
            AuditError: The trail was damaged by others at its end, removed or replaced.
        """
        with self._locked():
            self._catch_up()
            if self._size >= self._rotate_bytes:
                self._open(self._number + 1, os.O_EXCL)
            lines, head = [], self._head
            for entry in entries:
                line, head = link(entry, head, self._key)
                lines.append(line)
            self._write(b"".join(lines))
            self._head = head
        return head

    def probe(self) -> None:
        """Try whether the folder can be written, and the trail goes on in it.

        Raises:
            OSError: It cannot, e.g. because the disk is full.
            AuditError: The trail was damaged by others at its end, removed or replaced.
        """
        path = self._folder / f"{PROBE_NAME}-{os.getpid()}"
        try:
            with path.open("wb") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
        with self._locked():
            self._catch_up()

    def close(self) -> None:
        """Flush and close the files."""
        with self._thread_lock:
            if self._file >= 0:
                if self._fsync != "never":
                    with contextlib.suppress(OSError):
                        os.fsync(self._file)
                os.close(self._file)
                self._file = -1
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread_lock:
            if self._lock < 0:
                raise AuditError("the audit trail is closed.")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Take in what other writers have appended since."""
        if self._file < 0:
            files = trail_files(self._folder)
            self._open(file_number(files[-1]) if files else 1)
        while (self._folder / file_name(self._number + 1)).exists():
            self._open(self._number + 1)
        self._check_in_place(self._lock, LOCK_NAME)
        self._check_in_place(self._file, file_name(self._number))
        if os.fstat(self._file).st_size != self._size:
            self._read_end()

    def _check_in_place(self, opened: int, name: str) -> None:
        """Refuse to go on with a file that no longer stands in the folder: nobody would read it."""
        path = self._folder / name
        try:
            in_place = os.path.samestat(os.fstat(opened), os.stat(path))
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise AuditError(
                f"{path} was removed or replaced while it was in use; expected the file that this "
                "process has opened. Put it back, or start the service anew."
            )

    def _open(self, number: int, flags: int = 0) -> None:
        path = self._folder / file_name(number)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags, 0o640)
        if self._file >= 0:
            if self._fsync != "never":
                os.fsync(self._file)
            os.close(self._file)
        self._file, self._number = file, number
        self._read_end()

    def _read_end(self) -> None:
        """Find the head in the open file, else in the one before; drop a torn line."""
        path = self._folder / file_name(self._number)
        head, torn = last_head(path, self._key)
        self._size = os.fstat(self._file).st_size - torn
        if torn:
            os.ftruncate(self._file, self._size)
        if head is None and self._number > 1:
            head, _ = last_head(self._folder / file_name(self._number - 1), self._key)
            if head is None:
                raise AuditError(
                    f"{self._folder / file_name(self._number - 1)} is empty: its lines were "
                    "removed. Begin a new folder, and keep this one as it is."
                )
        self._head = head or Head()

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._file, view) :]
            if self._fsync == "always" or (
                self._fsync == "interval" and time.monotonic() - self._flushed > FSYNC_SECONDS
            ):
                os.fsync(self._file)
                self._flushed = time.monotonic()
        except OSError:
            with contextlib.suppress(OSError):  # else the next append drops the torn line
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)
