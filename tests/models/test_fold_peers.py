"""Foldings of torch and timm that are wrong or fail, beside ours on the same modules."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from batchnorm.models import fold
from tests.models.test_fold import Through, folded, random, trained


def error(one, other):
    return float((one - other).detach().abs().max())


def test_a_linear_layer_over_positions():
    """torch guards by size alone: where C == L it folds positions as if they were channels."""
    model, x = trained(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))), random(5, 4, 3)
    assert error(fuse_linear_bn_eval(*model)(x), model(x)) > 0.5
    assert error(fuse(model)(x), model(x)) > 0.5
    assert "1" in folded(model, x).left


def test_a_linear_layer_without_affine():
    model = trained(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)))
    with pytest.raises(TypeError):
        fuse_linear_bn_eval(*model)
    assert folded(model, random(5, 3)).left == {}


def test_a_grouped_transposed_convolution():
    model = trained(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)))
    with pytest.raises(RuntimeError, match="must match the size"):
        fuse_conv_bn_eval(*model, transpose=True)
    assert folded(model, random(2, 4, 5, 5)).left == {}


def test_a_square_transposed_convolution_is_never_taken_for_a_plain_one():
    model, x = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4))), random(2, 4, 5, 5)
    assert error(fuse_conv_bn_eval(*model)(x), model(x)) > 0.1
    assert folded(model, x).left == {}


def test_a_map_shared_by_two_layers():
    """torch looks at the users of one call: both layers end up in the one convolution."""
    conv = nn.Conv2d(3, 3, 1)
    model = trained(nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3)))
    x = random(2, 3, 5, 5)
    assert error(fuse(model)(x), model(x)) > 0.5
    assert set(folded(model, x).left) == {"1", "4"}


def test_a_weight_that_is_read_elsewhere():
    model = trained(Through(lambda x, conv, bn: bn(conv(x)) + conv.weight.sum(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = random(2, 3, 6, 6)
    assert error(fuse(model)(x), model(x)) > 0.1
    assert "parts.1" in folded(model, x).left


def test_a_map_with_a_hook():
    model, x = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), random(2, 3, 6, 6)
    model[0].register_forward_hook(lambda module, args, y: y * 2)
    assert error(fuse(model)(x), model(x)) > 0.5
    assert "forward hooks" in folded(model, x).left["1"]


def test_a_parametrized_map():
    model = trained(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    x = random(2, 3, 6, 6)
    kinds = [type(module) for module in fuse(model).modules()]
    assert nn.BatchNorm2d in kinds  # torch leaves it, silently
    assert folded(model, x).left == {}


def test_layers_after_an_activation_and_transposed_ones_are_not_seen_by_torch():
    after = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    transposed = trained(nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)))
    for model in (after, transposed):
        assert any(isinstance(m, nn.BatchNorm2d) for m in fuse(model).modules())
        assert folded(model, random(2, 3, 6, 6)).left == {}


def test_a_model_in_train_mode_and_one_that_cannot_be_traced():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    with pytest.raises(AssertionError):
        fuse(model)
    assert fold(model, random(2, 3, 6, 6), timing=0).left == {}

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x):
            return self.body(x) if x.sum() < 1e9 else x

    model = trained(Branch())
    with pytest.raises(torch.fx.proxy.TraceError):
        fuse(model)
    assert folded(model, random(2, 3, 6, 6)).left == {}


def test_timm_grouped_convolution_and_dtype():
    try:
        from timm.models import levit
    except Exception as error:
        # timm imports torchvision, whose operators may not fit the installed torch.
        pytest.skip(f"timm cannot be imported: {error}")
    block = trained(levit.ConvNorm(4, 8, 3, groups=2))
    with pytest.raises((ValueError, RuntimeError)):
        block.fuse()
    assert folded(block, random(2, 4, 6, 6)).left == {}
    double = trained(levit.ConvNorm(4, 8, 3))
    assert double.fuse().weight.dtype == torch.float32
    result = folded(double, random(2, 4, 6, 6))
    assert result.model.linear.weight.dtype == torch.float64
    rows = folded(trained(levit.LinearNorm(4, 6)), random(2, 5, 4))
    assert rows.left == {}
