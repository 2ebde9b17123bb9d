"""The kinds of link between a parent and its domain."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from domains.launcher.links import ZeroMQKind


def test_the_directory_for_sockets_is_made_after_it_can_be_said_what_to_remove():
    kind = ZeroMQKind()
    (path,) = kind.remains()
    assert not os.path.exists(path)
    assert kind.remains() == [path]
    assert kind.new_address() == f"ipc://{path}/1"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    kind.close()
    assert not os.path.exists(path)


def test_after_it_was_removed_another_directory_is_used():
    kind = ZeroMQKind()
    (first,) = kind.remains()
    kind.new_address()
    kind.clear()
    assert not os.path.exists(first)
    (second,) = kind.remains()
    assert second != first
    kind.close()


def test_no_other_file_is_made_to_find_the_place_for_it():
    """Of which nobody knows that it must be removed if this process is killed."""
    program = """
import os, sys

def look(event, arguments):
    if event == "open" and str(arguments[0]).startswith(os.environ["TMPDIR"]):
        opened.append(arguments)

opened = []
sys.addaudithook(look)
from domains.launcher.links import ZeroMQKind
kind = ZeroMQKind()
(path,) = kind.remains()
assert kind.new_address() == f"ipc://{path}/1"
print(path, opened)
kind.close()
"""
    with tempfile.TemporaryDirectory(prefix="links-", dir="/tmp") as place:
        command = [sys.executable, "-c", program]
        said = subprocess.run(command, env={**os.environ, "TMPDIR": place}, capture_output=True, text=True, check=True)
    path, opened = said.stdout.split(maxsplit=1)
    assert os.path.dirname(path) == place
    assert opened == "[]\n"


@pytest.mark.parametrize(
    ("places", "chosen"),
    [
        ({"TMPDIR": "one", "TEMP": "two"}, "one"),
        ({"TMPDIR": "", "TMP": "two"}, "two"),
        ({"TMPDIR": "missing", "TEMP": "a file", "TMP": "two"}, "two"),
        ({"TMPDIR": "missing"}, "/tmp"),
        ({}, "/tmp"),
    ],
)
def test_the_place_for_it_is_that_for_temporary_files(places, chosen, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    with tempfile.TemporaryDirectory(prefix="links-", dir="/tmp") as place:
        monkeypatch.chdir(place)
        for name in ("one", "two"):
            os.mkdir(name)
        Path("a file").touch()
        for name in ("TMPDIR", "TEMP", "TMP"):
            monkeypatch.delenv(name, raising=False)
        for name, value in places.items():
            monkeypatch.setenv(name, value)
        (path,) = ZeroMQKind().remains()
        assert os.path.dirname(path) == os.path.dirname(os.path.join(place, chosen, "it"))
        monkeypatch.setattr(tempfile, "tempdir", os.fsencode(place))
        (path,) = ZeroMQKind().remains()
        assert os.path.dirname(path) == place
        monkeypatch.undo()
