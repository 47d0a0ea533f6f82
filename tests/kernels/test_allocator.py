"""keep_memory in processes of their own: what it does, what it undoes, what it refuses; and the pool that is gone."""

import os
import subprocess
import sys

import pytest
import torch

import batchnorm
from batchnorm import BatchNormError, kernels
from batchnorm.environment import environment
from batchnorm.kernels import allocator, memory

GLIBC = pytest.mark.skipif(allocator._glibc() is None, reason="the allocator is not glibc's")
RSS = """
import os, torch, batchnorm
from batchnorm import kernels

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def touch():
    torch.zeros(64 << 18)  # 64 MiB, freed at once

touch()
before = resident()
"""


def run(code, **variables):
    found = subprocess.run(
        [sys.executable, "-c", RSS + code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


@GLIBC
def test_freed_memory_stays_and_goes_back_when_told():
    default, kept, back, later = map(
        int,
        run("""
touch(); print(resident() - before)
kernels.keep_memory(); touch(); print(resident() - before)
kernels.keep_memory(False); print(resident() - before)
touch(); print(resident() - before)
"""),
    )
    assert default < 8
    assert 60 <= kept < 80
    assert back < 8
    assert later < 8


@GLIBC
@pytest.mark.slow
def test_memory_is_trimmed_before_a_fork():
    child, parent = map(
        int,
        run("""
kernels.keep_memory(); kernels.keep_memory(); touch()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, str(resident() - before).encode()); os._exit(0)
os.wait()
print(os.read(read, 20).decode(), resident() - before)
"""),
    )
    assert child < 8
    assert parent < 8


@GLIBC
def test_it_says_what_it_did_and_env_knows():
    code = """
from batchnorm.environment import environment
print(environment()["allocator"], end="|")
print(kernels.keep_memory(), end="|")
print(environment()["allocator"], end="|")
print(kernels.keep_memory(False), end="|")
print(environment()["allocator"])
"""
    start, said, kept, undone, end = " ".join(run(code)).split("|")
    version = allocator._glibc()
    assert start == end == f"glibc {version}"
    assert said.startswith(f"glibc {version} keeps freed memory: blocks of up to 2 GiB come from its heap")
    assert kept == f"glibc {version}, freed memory kept"
    assert "thresholds stay at 128 KiB" in undone


def test_nothing_switches_it_on():
    layer = batchnorm.BatchNorm2d(4)
    layer(torch.randn(8, 4, 5, 5, requires_grad=True)).sum().backward()
    assert allocator._state["kept"] is False
    assert "kept" not in environment()["allocator"]


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("/usr/lib/libtcmalloc_minimal.so.4", "tcmalloc (libtcmalloc_minimal.so.4)"),
        ("/usr/lib/libjemalloc.so.2", "jemalloc (libjemalloc.so.2)"),
        ("/usr/lib/libmimalloc.so", "mimalloc (libmimalloc.so)"),
        ("/lib/ld-musl-x86_64.so.1", "ld-musl-x86_64.so.1"),
        (None, "the system's"),
    ],
)
def test_another_allocator_is_named_and_left_alone(file, named, monkeypatch):
    monkeypatch.setattr(allocator, "_file_of_malloc", lambda: file)
    monkeypatch.setattr(allocator, "_set", lambda *_: pytest.fail("a setting was changed"))
    assert allocator.allocator() == named
    assert environment()["allocator"] == named
    with pytest.raises(BatchNormError, match="keep_memory needs glibc's allocator; the one in use is") as caught:
        kernels.keep_memory()
    assert named in str(caught.value)


def test_bad_input_is_refused():
    with pytest.raises(BatchNormError, match="on must be True or False; it was 1"):
        kernels.keep_memory(1)


def test_a_setting_that_is_refused_is_said(monkeypatch):
    class Refusing:
        def mallopt(self, *_):
            return 0

    monkeypatch.setattr(allocator, "_library", Refusing)
    with pytest.raises(BatchNormError, match=r"glibc refused mallopt\(-3, 2147483647\)"):
        allocator._set(-3, 2147483647)


def test_the_pools_names_do_nothing_and_say_so():
    with pytest.warns(DeprecationWarning, match="keep_idle does nothing: outputs come from torch's allocator"):
        memory.keep_idle(0)
    with pytest.warns(DeprecationWarning, match="idle does nothing"):
        assert memory.idle() == 0
    found = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import batchnorm.kernels"],
        env={**os.environ, "BATCHNORM_IDLE_BYTES": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0
    assert "BATCHNORM_IDLE_BYTES does nothing" in found.stderr


def test_outputs_are_torchs():
    """Their storage can be resized, as no storage from elsewhere can."""
    x = torch.randn(64, 32, 32, 33, requires_grad=True)
    y = batchnorm.BatchNorm2d(32)(x).detach()
    y.untyped_storage().resize_(0)
    assert y.untyped_storage().nbytes() == 0
