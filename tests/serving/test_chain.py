"""The hash chain: what is altered, removed, added, moved or cut off is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrpguard.errors import AuditError
from lrpguard.serving.audit import AuditTrail
from lrpguard.serving.chain import chain_key, file_name, records, verify

KEY = chain_key(b"k" * 32)


def written(folder: Path, *, lines: int = 12, rotate_bytes: int = 4096, key: bytes = KEY) -> Path:
    trail = AuditTrail(folder, fsync="never", rotate_bytes=rotate_bytes, key=key)
    for i in range(lines):
        trail.append([{"number": i, "filling": "x" * 500}])
    trail.close()
    return folder


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def test_a_whole_trail_verifies_over_its_files(tmp_path: Path) -> None:
    found = verify(written(tmp_path), key=KEY)
    assert (found.head.seq, found.files, found.torn) == (12, 2, 0)
    assert [record["number"] for record in records(tmp_path, key=KEY)] == list(range(12))


def test_an_empty_trail_verifies(tmp_path: Path) -> None:
    assert verify(written(tmp_path, lines=0), key=KEY).head.seq == 0


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_removed_line_is_found(tmp_path: Path, number: int) -> None:
    file = written(tmp_path) / file_name(1)
    kept = lines_of(file)
    del kept[number]
    file.write_bytes(b"".join(kept))
    with pytest.raises(AuditError, match="lines were removed, added or moved"):
        verify(tmp_path, key=KEY)


def test_a_moved_line_is_found(tmp_path: Path) -> None:
    file = written(tmp_path) / file_name(1)
    kept = lines_of(file)
    kept[1], kept[2] = kept[2], kept[1]
    file.write_bytes(b"".join(kept))
    with pytest.raises(AuditError, match="line 2: it is line 3"):
        verify(tmp_path, key=KEY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"number":3', b'"number":4'),
        (b'"number":3', b'"number": 3'),
        (b'"number":3', b'"number":3,"number":3'),
        (b'"seq":4', b'"seq":5'),
        (b'{"filling"', b'["filling"'),
        (b"x", b"\xff"),
    ],
)
def test_an_altered_line_is_found(tmp_path: Path, old: bytes, new: bytes) -> None:
    file = written(tmp_path) / file_name(1)
    kept = lines_of(file)
    kept[3] = kept[3].replace(old, new, 1)
    file.write_bytes(b"".join(kept))
    with pytest.raises(AuditError, match=r"line 4: .*altered"):
        verify(tmp_path, key=KEY)


def test_a_line_hashed_anew_without_the_key_is_found(tmp_path: Path) -> None:
    file = written(tmp_path, lines=3) / file_name(1)
    forged = written(tmp_path / "forged", lines=3, key=b"") / file_name(1)
    file.write_bytes(forged.read_bytes())
    verify(tmp_path / "forged", key=b"")
    with pytest.raises(AuditError, match="another key"):
        verify(tmp_path, key=KEY)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    written(tmp_path, lines=20)
    (tmp_path / file_name(2)).unlink()
    with pytest.raises(AuditError, match=f"{file_name(2)} is missing"):
        verify(tmp_path, key=KEY)


def test_a_missing_first_file_is_found(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / file_name(1)).unlink()
    with pytest.raises(AuditError, match=f"{file_name(1)} is missing"):
        verify(tmp_path, key=KEY)


def test_a_cut_off_end_is_found_by_a_head_that_is_known(tmp_path: Path) -> None:
    file = written(tmp_path) / file_name(2)
    known = verify(tmp_path, key=KEY).head.hash
    assert verify(tmp_path, key=KEY, known=known).head.hash == known
    file.write_bytes(b"".join(lines_of(file)[:-1]))
    verify(tmp_path, key=KEY)  # the chain alone cannot show it
    with pytest.raises(AuditError, match="cut off"):
        verify(tmp_path, key=KEY, known=known)


def test_a_torn_last_line_is_told_and_no_record(tmp_path: Path) -> None:
    file = written(tmp_path, lines=3) / file_name(1)
    with file.open("ab") as end:
        end.write(b'{"number":')
    found = verify(tmp_path, key=KEY)
    assert (found.head.seq, found.torn) == (3, 10)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no such folder"):
        verify(tmp_path / "none", key=KEY)


def test_a_folder_that_holds_no_trail_is_no_whole_trail(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "audit-1.jsonl").touch()
    with pytest.raises(AuditError, match=f"holds no {file_name(1)}; expected the audit.folder"):
        verify(tmp_path, key=KEY)
    with pytest.raises(AuditError, match="holds no"):
        list(records(tmp_path, key=KEY))


def test_a_line_is_plain_json_that_names_its_place(tmp_path: Path) -> None:
    first, second = (json.loads(line) for line in lines_of(written(tmp_path) / file_name(1))[:2])
    assert (first["seq"], first["prev"]) == (1, "0" * 64)
    assert (second["seq"], second["prev"]) == (2, first["hash"])


def test_without_a_secret_the_chain_has_no_key() -> None:
    assert chain_key(None) == b""
    assert chain_key(b"k" * 32) != chain_key(b"l" * 32)
