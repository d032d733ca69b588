"""Files that are replaced whole, and JSON lines that may be damaged."""

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from verl_ext.runtime import files


def test_file_of_a_failed_write_is_the_old_one_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": "ü"})

    def fail():
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü"\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_file_is_the_old_one_where_nothing_was_written(tmp_path):
    files.write_text(tmp_path / "a", "old")
    with files.replacing(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_process_that_is_killed_in_the_middle_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    code = (
        "import os, signal, sys, pathlib\n"
        "from verl_ext.runtime.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[4])
    env = {**os.environ, "PYTHONPATH": root}
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a"], env=env, check=False).returncode == -9
    assert (tmp_path / "a").read_text() == "old"


def test_json_has_paths_and_dates_as_text_and_nothing_else(tmp_path):
    files.write_json(tmp_path / "a.json", {"path": Path("b"), "day": date(2026, 1, 2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": "b", "day": "2026-01-02"}
    with pytest.raises(TypeError, match="of type object"):
        files.write_json(tmp_path / "a.json", {"a": object()})


def test_line_is_read_as_it_was_written_whatever_its_text(tmp_path):
    # str.splitlines splits at each of these.
    samples = [{"text": f"a{mark}b"} for mark in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"]
    files.write_lines(tmp_path / "a.jsonl", samples)
    damaged: list[int] = []
    assert list(files.read_lines(tmp_path / "a.jsonl")) == samples
    assert list(files.read_lines(tmp_path / "a.jsonl", damaged=damaged)) == samples
    assert damaged == []


def test_lines_that_end_as_on_windows_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}\r\n')
    assert list(files.read_lines(tmp_path / "a.jsonl")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("line", [b'{"a": ', b"[1]", b"5", b"", b'{"a": "\xff"}'])
def test_strict_reader_names_file_and_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is "):
        list(files.read_lines(path))


def test_counting_reader_leaves_out_what_is_damaged(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": 1}\n\n[1]\n{"a": 2}\n{"a": "€'.encode()[:-1])
    damaged: list[int] = []
    assert list(files.read_lines(path, damaged=damaged)) == [{"a": 1}, {"a": 2}]
    assert damaged == [3, 5]


def test_parsed_lines_keep_their_numbers_and_the_text_of_what_is_no_object(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{broken\n')
    assert list(files.parse_lines(path)) == [(1, {"a": 1}), (2, "{broken\n")]
