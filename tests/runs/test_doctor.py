import os
import platform
from pathlib import Path

import pytest


@pytest.fixture
def lines(cli):
    code, out, err = cli("doctor")
    assert not err
    return code, out.splitlines()


def test_every_line_has_a_plain_verdict(lines):
    code, out = lines
    *found, last = out
    assert all(line.split()[0] in ("ok", "note", "wrong") for line in found)
    assert code == 0, out
    assert last == "Nothing is wrong here."
    names = " ".join(line.split(":")[0] for line in found)
    for name in ("torch", "openvino", "processor", "memory", "GPU", "cache folder", "bfloat16"):
        assert name in names
    assert any("convolutions right" in line for line in found)


def test_nothing_in_it_names_a_person_a_host_or_a_path(lines):
    text = "\n".join(lines[1])
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert "/" not in text.replace("torch: 2.13.0+cpu", "")


def test_a_cache_that_cannot_be_written_is_wrong(cli, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DCAMT_CACHE", str(tmp_path / "file" / "cache"))
    code, out, _ = cli("doctor")
    assert code == 1
    (line,) = (line for line in out.splitlines() if line.startswith("wrong"))
    assert "DCAMT_CACHE" in line
    assert str(tmp_path) not in out
    assert os.environ["DCAMT_CACHE"] not in out
