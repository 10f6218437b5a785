"""Writing the trail: several writers, crashes, a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrpguard.errors import AuditError
from lrpguard.serving.audit import AuditTrail
from lrpguard.serving.chain import file_name, records, verify


def trail(folder: Path, *, rotate_bytes: int = 1 << 20) -> AuditTrail:
    return AuditTrail(folder, fsync="interval", rotate_bytes=rotate_bytes, key=b"")


def write_many(folder: Path, writer: int, count: int) -> None:
    log = trail(folder, rotate_bytes=4096)
    for i in range(count):
        log.append([{"writer": writer, "number": i}, {"writer": writer, "number": i + 0.5}])
    log.close()


def test_a_trail_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = trail(tmp_path)
    head = first.append([{"a": 1}])
    first.close()
    second = trail(tmp_path)
    assert second.head == head
    second.append([{"a": 2}])
    second.close()
    assert [r["a"] for r in records(tmp_path, key=b"")] == [1, 2]


def test_processes_write_one_chain_and_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, w, 40)) for w in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = list(records(tmp_path, key=b""))
    assert verify(tmp_path, key=b"").files > 1
    assert len(found) == 3 * 80
    for w in range(3):
        numbers = [r["number"] for r in found if r["writer"] == w]
        assert numbers == sorted(numbers)


def test_threads_write_one_chain(tmp_path: Path) -> None:
    log = trail(tmp_path)
    threads = [
        threading.Thread(target=lambda: [log.append([{"i": i}]) for i in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert verify(tmp_path, key=b"").head.seq == 200


def test_a_line_that_a_crash_cut_off_is_dropped_by_the_next(tmp_path: Path) -> None:
    log = trail(tmp_path)
    log.append([{"a": 1}])
    with (tmp_path / file_name(1)).open("ab") as file:
        file.write(b'{"a":2,')
    log.append([{"a": 3}])
    log.close()
    assert [r["a"] for r in records(tmp_path, key=b"")] == [1, 3]


def test_the_end_is_found_behind_a_line_of_any_length(tmp_path: Path) -> None:
    log, other = trail(tmp_path), trail(tmp_path)
    for length in (10, 9_000, 200_000):
        log.append([{"filling": "x" * length}])
        other.append([{"filling": "y" * length}])
    log.close()
    other.close()
    assert verify(tmp_path, key=b"").head.seq == 6


def test_a_crash_that_left_an_empty_file_breaks_nothing(tmp_path: Path) -> None:
    log = trail(tmp_path)
    log.append([{"a": 1}])
    log.close()
    (tmp_path / file_name(2)).touch()
    log = trail(tmp_path)
    log.append([{"a": 2}])
    log.close()
    assert verify(tmp_path, key=b"").head.seq == 2


def test_an_emptied_file_is_not_written_on(tmp_path: Path) -> None:
    log = trail(tmp_path)
    log.append([{"a": 1}])
    log.close()
    (tmp_path / file_name(1)).write_bytes(b"")
    (tmp_path / file_name(2)).touch()
    with pytest.raises(AuditError, match="its lines were removed"):
        trail(tmp_path)


def test_a_trail_of_another_key_is_left_alone(tmp_path: Path) -> None:
    log = trail(tmp_path)
    log.append([{"a": 1}])
    log.close()
    before = (tmp_path / file_name(1)).read_bytes()
    with pytest.raises(AuditError, match="another key"):
        AuditTrail(tmp_path, fsync="never", rotate_bytes=4096, key=b"k" * 32)
    assert (tmp_path / file_name(1)).read_bytes() == before


def test_a_closed_trail_refuses(tmp_path: Path) -> None:
    log = trail(tmp_path)
    log.close()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append([{"a": 1}])


def removed(folder: Path) -> None:
    (folder / file_name(1)).unlink()


def replaced(folder: Path) -> None:
    file = folder / file_name(1)
    copy = folder / "copy"
    shutil.copy(file, copy)
    copy.replace(file)


def folder_made_anew(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    trail(folder).close()


@pytest.mark.parametrize("harm", [removed, replaced, folder_made_anew])
def test_a_file_that_no_longer_stands_there_is_not_written_on(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "audit"
    log = trail(folder)
    log.append([{"a": 1}])
    harm(folder)
    with pytest.raises(AuditError, match="removed or replaced"):
        log.append([{"a": 2}])
    with pytest.raises(AuditError, match="removed or replaced"):
        log.probe()
    log.close()


def test_a_file_that_is_put_back_is_written_on(tmp_path: Path) -> None:
    log = trail(tmp_path / "audit")
    log.append([{"a": 1}])
    moved = (tmp_path / "audit").rename(tmp_path / "moved")
    with pytest.raises(AuditError, match="removed or replaced"):
        log.append([{"a": 2}])
    moved.rename(tmp_path / "audit")
    log.probe()
    log.append([{"a": 3}])
    log.close()
    assert [r["a"] for r in records(tmp_path / "audit", key=b"")] == [1, 3]


def test_a_full_file_may_be_moved_away(tmp_path: Path) -> None:
    log, other = trail(tmp_path, rotate_bytes=10), trail(tmp_path, rotate_bytes=10)
    log.append([{"a": 1}])
    log.append([{"a": 2}])
    (tmp_path / file_name(1)).unlink()
    assert other.append([{"a": 3}]).seq == 3
    assert log.append([{"a": 4}]).seq == 4
    log.close()
    other.close()


def test_values_that_are_no_json_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    log = trail(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        log.append([{"a": 1.0}, {"a": float("nan")}])
    log.append([{"a": 2}])
    log.close()
    assert verify(tmp_path, key=b"").head.seq == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_an_append_is_refused_whole_and_goes_on_later(small_disk: Path) -> None:
    log = trail(small_disk)
    written = 0
    failure: OSError | None = None
    while failure is None:
        try:
            log.append([{"number": written, "filling": "x" * 3000}])
            written += 1
        except OSError as error:
            failure = error
    assert failure.errno == errno.ENOSPC
    assert verify(small_disk, key=b"").head.seq == written > 5
    assert verify(small_disk, key=b"").torn == 0
    subprocess.run(["mount", "-o", "remount,size=256k", str(small_disk)], check=True)
    log.append([{"number": written}])
    log.close()
    assert [r["number"] for r in records(small_disk, key=b"")] == list(range(written + 1))
