"""Processes and threads: one OpenMP runtime, fork, workers, several callers, no leak."""

import os
import resource
import subprocess
import sys
import threading

import pytest
import torch

import batchnorm
from batchnorm import kernels
from batchnorm.kernels import native

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def child(code, **environment):
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@LINUX
def test_one_openmp_runtime_is_mapped_after_a_parallel_call():
    code = """
import torch, batchnorm
torch.set_num_threads(2)
batchnorm.BatchNorm2d(8)(torch.randn(16, 8, 32, 32))
print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line or 'libiomp' in line}))
"""
    assert child(code, OMP_NUM_THREADS="2") == "1"


@LINUX
def test_a_forked_child_runs_by_itself():
    code = """
import os, torch, batchnorm
torch.set_num_threads(2)
layer, x = batchnorm.BatchNorm2d(8), torch.randn(16, 8, 32, 32)
before = layer(x)
pid = os.fork()
if pid == 0:
    with torch.no_grad():
        y = layer(x)
    torch.set_num_threads(1)  # torch's own comparison would hang in the pool of the parent
    os._exit(0 if torch.equal(y, before) else 3)
print(os.waitpid(pid, 0)[1])
"""
    assert child(code, OMP_NUM_THREADS="2") == "0"


class Normalised(torch.utils.data.Dataset):
    """A dataset that normalises in the worker."""

    def __init__(self):
        self.layer = batchnorm.BatchNorm2d(4)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with torch.no_grad():
            return self.layer(torch.full((2, 4, 64, 64), float(index)) + torch.arange(64.0))


def test_dataloader_workers():
    batchnorm.BatchNorm2d(4)(torch.randn(8, 4, 64, 64))
    found = list(torch.utils.data.DataLoader(Normalised(), num_workers=2, batch_size=None))
    assert len(found) == 4
    assert all(torch.allclose(found[0], other, atol=1e-4) for other in found)


def test_several_threads_at_once_get_what_one_gets():
    x = [torch.randn(8, 16, 24, 24) for _ in range(4)]
    expected = [batchnorm.BatchNorm2d(16)(data) for data in x]
    found = [[] for _ in x]

    def work(i):
        for _ in range(20):
            found[i].append(batchnorm.BatchNorm2d(16)(x[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(y, expected[i]) for i in range(4) for y in found[i])


def test_a_backward_on_another_thread():
    layer, x = batchnorm.BatchNorm2d(16, activation="relu"), torch.randn(8, 16, 24, 24, requires_grad=True)
    layer(x).square().sum().backward()
    expected, x.grad = x.grad, None
    y = layer(x)
    thread = threading.Thread(target=lambda: y.square().sum().backward())
    thread.start()
    thread.join()
    assert torch.equal(x.grad, expected)


@pytest.mark.slow
def test_the_environment_chooses():
    code = "from batchnorm import kernels; import torch; print(kernels.select(torch.zeros(2, 2)).name)"
    assert child(code, BATCHNORM_BACKEND="reference") == "reference"
    assert child(code, BATCHNORM_BACKEND="base") == "native"


@LINUX
@pytest.mark.slow
def test_nothing_leaks_over_ten_thousand_steps():
    layer = batchnorm.BatchNorm2d(8, activation="relu")
    x, g = torch.randn(4, 8, 6, 6, requires_grad=True), torch.ones(4, 8, 6, 6)

    def steps(count):
        for _ in range(count):
            layer(x).backward(g)
            x.grad = None

    def pages():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1])

    steps(1000)
    before = pages()
    steps(10_000)
    # A leak of 100 bytes a step would be a megabyte.
    assert (pages() - before) * resource.getpagesize() < 1_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the CUDA path is not tested on this machine")
@pytest.mark.parametrize("method", ["batchnorm", "debiased", "ghost", "renorm", "population"])
def test_cuda_equals_the_cpu(method):
    x = torch.randn(40, 6, 5, 5)
    here, there = batchnorm.BatchNorm2d(6, method=method), batchnorm.BatchNorm2d(6, method=method).cuda()
    y = there(x.cuda())
    assert torch.allclose(here(x), y.cpu(), atol=1e-5)
    assert torch.allclose(here.running_var, there.running_var.cpu(), atol=1e-5)
    assert kernels.select(x.cuda()).name != "native"
