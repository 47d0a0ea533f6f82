"""What a model is given: copies, so that one that changes its input in place meets the same values in every pass."""

import pytest
import torch
from torch import nn

import batchnorm

DATA = [torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
TRUE = (torch.cat(DATA) - 0.5) / 0.25


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self, form=lambda batch: batch):
        super().__init__()
        self.norm, self.form = nn.BatchNorm2d(3), form

    def forward(self, batch):
        return self.norm(self.form(batch).sub_(0.5).div_(0.25))


FORMS = {
    "tensor": (lambda x: x, None),
    "pair": (lambda x: (x, torch.zeros(len(x))), None),
    "list": (lambda x: [x], lambda model, batch: model(batch[0])),
    "dict": (lambda x: {"x": x}, lambda model, batch: model(batch["x"])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"exact": True, "memory": 1}, {"upstream": "batch"}], ids=str)
def test_a_model_that_changes_its_input_is_measured_on_the_data_themselves(form, options):
    made, forward_fn = FORMS[form]
    model, data = InPlace(), [made(x.clone()) for x in DATA]
    batchnorm.recalibrate(model, data, forward_fn=forward_fn, progress=False, **options)
    torch.testing.assert_close(model.norm.running_mean, TRUE.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm.running_var, TRUE.var((0, 2, 3)))
    for batch, x in zip(data, DATA, strict=True):
        held = batch if isinstance(batch, torch.Tensor) else next(iter(batch.values() if form == "dict" else batch))
        assert torch.equal(held, x)


def test_diagnosis_and_adaptation_leave_the_data_as_they_are():
    model, data = InPlace(), [x.clone() for x in DATA]
    batchnorm.recalibrate(model, data, progress=False)
    assert batchnorm.diagnose(model, data, progress=False).ok
    batchnorm.adapt(model, data, "domain")
    assert all(torch.equal(a, b) for a, b in zip(data, DATA, strict=True))
