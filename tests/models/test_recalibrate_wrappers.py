"""Layers inside wrappers, subclasses and copies; several processes."""

import gc
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

import batchnorm

DATA = torch.randn(120, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1
UPSTREAMS = ["batch", "population"]


class Net(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), norm(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 3), norm(5)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


def statistics(model):
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return [s.double() for m in layers for s in (m.running_mean, m.running_var)]


def plain(upstream):
    model = Net()
    batchnorm.recalibrate(model, DATA.split(30), upstream=upstream)
    return statistics(model)


def close(a, b):
    return all(torch.allclose(x, y, rtol=2e-5, atol=2e-6) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_averaged_models_and_data_parallel(upstream):
    for wrap in (AveragedModel, nn.DataParallel, lambda m: AveragedModel(AveragedModel(m))):
        model = wrap(Net())
        assert batchnorm.recalibrate(model, DATA.split(30), upstream=upstream).unreached == ()
        assert close(statistics(model), plain(upstream))


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_distributed_data_parallel_and_sync_in_one_process(upstream, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        # torch's own SyncBatchNorm refuses to train on the CPU, and DDP refuses to hold one there.
        for model in (nn.parallel.DistributedDataParallel(Net()), nn.SyncBatchNorm.convert_sync_batchnorm(Net())):
            batchnorm.recalibrate(model, DATA.split(30), upstream=upstream, process_group=dist.group.WORLD)
            assert close(statistics(model), plain(upstream))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_sharded_parameters_in_one_process(upstream, tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, mesh = Net(), dist.init_device_mesh("cpu", (1,))
        for part in (model.conv1, model.bn2, model):
            fsdp.fully_shard(part, mesh=mesh)
        batchnorm.recalibrate(model, DATA.split(30), upstream=upstream)
        assert close(statistics(model), plain(upstream))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("where", ["whole", "part", "in place"])
def test_compiled_modules_run_as_written_and_stay_compiled(where, upstream):
    torch.compiler.reset()
    model = Net()
    if where == "whole":
        compiled = torch.compile(model, backend="eager")
    elif where == "part":
        compiled = nn.Sequential(torch.compile(model, backend="eager"))
    else:
        model.compile(backend="eager")
        compiled = model
    compiled.eval()(DATA[:2])
    old = compiled(DATA[:2])
    batchnorm.recalibrate(compiled, DATA.split(30), upstream=upstream)
    assert close(statistics(model), plain(upstream))
    other = Net()
    batchnorm.recalibrate(other, DATA.split(30), upstream=upstream)
    assert not torch.allclose(old, compiled(DATA[:2]), atol=1e-2)
    assert torch.allclose(other.eval()(DATA[:2]), compiled(DATA[:2]), atol=1e-4)


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the layer holds the activation, and spells its forward itself."""

    def __init__(self, features):
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.2)

    def forward(self, x):
        y = nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.1,
            self.eps,
        )
        return self.act(self.drop(y))


class AnyRank(_BatchNorm):
    """A subclass of the private base, with a keyword call."""

    def _check_input_dim(self, input):
        pass


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("norm", [WithActivation, AnyRank, nn.LazyBatchNorm2d, nn.SyncBatchNorm, batchnorm.BatchNorm2d])
def test_subclasses_of_the_layer(norm, upstream):
    def make(features):
        return norm() if norm is nn.LazyBatchNorm2d else norm(features)

    model, reference = Net(make), Net(lambda n: nn.Sequential(nn.BatchNorm2d(n), nn.LeakyReLU(0.2)))
    batchnorm.recalibrate(model, DATA.split(30), upstream=upstream)
    if norm is WithActivation:
        batchnorm.recalibrate(reference, DATA.split(30), upstream=upstream)
        assert close(statistics(model), statistics(reference))
    else:
        assert close(statistics(model), plain(upstream))


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_other_channel_axes_and_low_precision(upstream):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = batchnorm.BatchNorm(3, channel_axis=-1)

        def forward(self, x):
            return self.bn(x.movedim(1, -1))

    model = Last()
    batchnorm.recalibrate(model, DATA.split(30), upstream=upstream)
    assert torch.allclose(model.bn.running_var, DATA.var((0, 2, 3)), rtol=1e-5)
    half = batchnorm.convert(Net()).bfloat16()
    batchnorm.recalibrate(half, DATA.bfloat16().split(30), upstream=upstream)
    assert half.bn2.running_var.dtype == torch.float32
    for told, exact in zip(statistics(half), plain(upstream), strict=True):
        assert torch.allclose(told, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_channels_last_autocast_and_device_change_the_way_not_the_result(upstream):
    model = Net()
    batchnorm.recalibrate(model, DATA.split(30), upstream=upstream, channels_last=True, device="cpu")
    assert close(statistics(model), plain(upstream))
    assert model.conv1.weight.is_contiguous()
    model = Net()
    batchnorm.recalibrate(model, DATA.split(30), upstream=upstream, autocast=torch.bfloat16)
    for told, exact in zip(statistics(model), plain(upstream), strict=True):
        assert torch.allclose(told, exact, rtol=0.03, atol=0.03)
        assert not torch.equal(told, exact)


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_forward_stops_after_the_last_layer_once_two_agreed(upstream):
    calls = []

    class Tail(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x

    model = nn.Sequential(Net(), Tail())
    batchnorm.recalibrate(model, DATA.split(6), upstream=upstream, until=1e-9)
    # Two that agreed; where all meet, the first runs to its end and the others see that they agree with it.
    assert len(calls) == (2 if upstream == "batch" else 1)
    assert close(statistics(model), statistics(_whole(upstream)))


def _whole(upstream):
    model = Net()
    batchnorm.recalibrate(model, DATA.split(6), upstream=upstream)
    return model


def _on_each_rank(rank, port, folder, upstream, scenario):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    batches = DATA.split(15)[rank::2] if scenario == "even" else (DATA.split(15)[:3], DATA.split(15)[3:])[rank]
    until = 0.2 if scenario == "until" else None
    if scenario == "fails" and rank == 1:
        batches = [batches[0], torch.zeros(2, 7)]
    model = Net()
    outcome = "ok"
    try:
        result = batchnorm.recalibrate(
            model, batches, upstream=upstream, until=until, process_group=dist.group.WORLD, memory=None
        )
        outcome = (result.samples, result.batches)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    torch.save([outcome, model.state_dict()], f"{folder}/{rank}.pt")
    # Nobody leaves while the other still hears of the failure, and nothing of the group is left to the interpreter's
    # end, where gloo's threads abort the process (seen once).
    dist.barrier()
    del model
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("scenario", ["even", "uneven", "until", "fails"])
def test_two_processes_pool_their_moments_to_the_same_bits(upstream, scenario, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_on_each_rank, (port, str(tmp_path), upstream, scenario), nprocs=2)
    (first, a), (second, b) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if scenario == "fails":
        assert "rank 1 failed" in first
        assert second.startswith("UserCodeError")
        assert all(torch.equal(x, y) for x, y in zip(a.values(), Net().state_dict().values(), strict=True))
        return
    assert first == second
    if scenario != "until":
        assert first == (120, 8)
        model = Net()
        batchnorm.recalibrate(model, DATA.split(15), upstream=upstream)
        assert close([v.double() for k, v in a.items() if "running" in k], statistics(model))
