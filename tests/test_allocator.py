"""The allocator's settings are taken where there are any, and harmless elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from netbore import allocator

#: Reads little into large buffers again and again, as sockets are read, and prints how often the kernel had to give pages.
SCRIPT = """
import os, resource, sys
from netbore.allocator import keep_buffers
if sys.argv[1] == "kept":
    assert keep_buffers()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
out, into = os.pipe()
before = faults()
for _ in range(200):
    os.write(into, b"x")
    os.read(out, 1 << 20)
print(faults() - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set")
def test_buffers_are_kept() -> None:
    assert faults("kept") * 10 < faults("plain")


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def library(name: None) -> object:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", library)
    assert not allocator.keep_buffers()


def test_a_setting_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda what, value: 0))
    assert not allocator.keep_buffers()
