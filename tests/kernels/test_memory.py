"""The pool of outputs: what it lends is a tensor like any other, and what comes back is lent again."""

import gc
import threading

import pytest
import torch

from batchnorm import BatchNormError
from batchnorm.kernels import memory, native

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")
LARGE = (64, 32, 32, 33)


@pytest.fixture(autouse=True)
def _empty():
    memory.keep_idle(0)
    memory.keep_idle(1 << 30)
    yield
    memory.keep_idle(1 << 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_it_is_a_tensor_like_any_other(dtype, last):
    x = torch.randn(LARGE).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y = memory.like(x)
    assert type(y) is torch.Tensor
    assert (y.shape, y.dtype, y.stride(), y.device) == (x.shape, x.dtype, x.stride(), x.device)
    y.copy_(x)
    assert torch.equal(y, x)
    assert torch.equal(y.clone().add_(1), x + 1)
    assert torch.equal(torch.load(_saved(y)), x)


def _saved(y):
    import io

    buffer = io.BytesIO()
    torch.save(y, buffer)
    buffer.seek(0)
    return buffer


def test_memory_is_lent_again_and_never_twice():
    x = torch.empty(LARGE)
    first = memory.like(x)
    second = memory.like(x)
    assert first.data_ptr() != second.data_ptr()
    assert memory.idle() == 0
    address = first.data_ptr()
    view = first[1:]
    del first
    gc.collect()
    # A view keeps it.
    assert memory.idle() == 0
    del view
    assert memory.idle() >= x.numel() * 4
    assert memory.like(x).data_ptr() == address


def test_another_size_near_it_reuses_the_block_and_a_much_smaller_one_does_not():
    x = torch.empty(1 << 21)
    address = memory.like(x).data_ptr()
    assert memory.like(x[: (1 << 21) - 100_000]).data_ptr() == address
    assert memory.like(x[: 1 << 19]).data_ptr() != address


def test_the_limit_holds():
    x = torch.empty(1 << 20)
    kept = [memory.like(x) for _ in range(4)]
    memory.keep_idle(9 << 20)
    kept.clear()
    assert 0 < memory.idle() <= 9 << 20
    memory.keep_idle(0)
    assert memory.idle() == 0
    y = memory.like(x)
    del y
    assert memory.idle() == 0
    with pytest.raises(BatchNormError, match="limit must be at least 0 bytes; it was -1"):
        memory.keep_idle(-1)


def test_threads_do_not_share_a_block():
    x = torch.empty(1 << 20)
    wrong = []

    def work(value):
        for _ in range(50):
            y = memory.like(x)
            y.fill_(value)
            if not bool((y == value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_what_is_lent_outlives_the_layer_and_a_smaller_tensor_is_torchs():
    import batchnorm

    x = torch.randn(LARGE, requires_grad=True)
    y = batchnorm.BatchNorm2d(32)(x)
    y.sum().backward()
    before = y.detach().clone()
    del x
    gc.collect()
    batchnorm.BatchNorm2d(32)(torch.randn(LARGE))
    assert torch.equal(y, before)
    assert memory.like(torch.empty(8)).shape == (8,)


def test_a_forked_child_keeps_the_limit():
    import os

    memory.keep_idle(0)
    x = torch.empty(1 << 20)
    child = os.fork()
    if child == 0:
        y = memory.like(x)
        del y
        os._exit(0 if memory.idle() == 0 else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
