"""Pickles of everything a user may have kept, made by the version that runs this: `python make.py FILE`.

`0.1.0.zip` was made so from that version, with the native kernels.
"""

from __future__ import annotations

import functools
import pickle
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import batchnorm
from batchnorm import interop, kernels, layers, models


def trained(method: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network after three steps, an input, and its output in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    model = batchnorm.convert(model.double(), method)
    for _ in range(3):
        x = torch.randn(4, 2, 5, dtype=torch.float64)
        given = {"lengths": torch.tensor([5, 4, 3, 2])} if method == "masked" else {}
        given = {"weights": torch.tensor([1.0, 2.0, 0.5, 1.0])} if method == "weighted" else given
        if given:
            with batchnorm.masked(model, **given):
                model(x).sum().backward()
        else:
            model(x).sum().backward()
    model.eval()
    with torch.no_grad():
        if given:
            with batchnorm.masked(model, **given):
                return model, x, model(x)
        return model, x, model(x)


def results() -> dict[str, Any]:
    """What verbs return, choices, and functions that a pickle names."""
    data = [torch.randn(16, 3) + 2 for _ in range(4)]
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with batchnorm.watch(model) as watched:
        model(data[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.py"
        path.write_text("bn.running_mean = 0.9 * bn.running_mean + 0.1 * bn.running_mean")
        linted = batchnorm.lint(path)
    choices = [layers.recipe_for(name) for name in batchnorm.methods()]
    return {
        "a report of diagnose": batchnorm.diagnose(model, data, progress=False),
        "a report of watch": watched.evidence,
        "a report of lint": linted,
        "a recalibration": batchnorm.recalibrate(model, data, progress=False),
        "a folding": batchnorm.fold(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), data[:1]),
        "an adaptation": batchnorm.adapt(batchnorm.convert(nn.Sequential(nn.BatchNorm1d(3))), data),
        "a translation": interop.translate(model, "torch"),
        "a parity": kernels.verify("cpu"),
        "choices": choices,
        "moments": layers.Moments(torch.ones(1), torch.zeros(3), torch.ones(3)),
        "frozen": batchnorm.freeze(nn.Sequential(nn.BatchNorm1d(3), batchnorm.BatchNorm1d(3))),
        "lazy": nn.Sequential(batchnorm.LazyBatchNorm1d(), batchnorm.LazyBatchNorm2d()),
        "an error": batchnorm.BatchNormError("momentum must be in [0, 1]; it was 2"),
        "functions": [
            functools.partial(verb)
            for verb in (
                batchnorm.recalibrate,
                batchnorm.diagnose,
                batchnorm.watch,
                batchnorm.lint,
                batchnorm.convert,
                models.union,
                kernels.verify,
                interop.translate,
                batchnorm.adapt,
                batchnorm.fold,
                batchnorm.update_bn,
            )
        ],
    }


def main() -> None:
    """Write the archive."""
    torch.manual_seed(0)
    with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as archive:
        for method in batchnorm.methods():
            model, x, y = trained(method)
            archive.writestr(f"models/{method}", pickle.dumps((model, x, y)))
            archive.writestr(f"states/{method}", pickle.dumps(model.state_dict()))
        for name, value in results().items():
            try:
                archive.writestr(f"results/{name}", pickle.dumps(value))
            except Exception as error:
                print(f"{name} cannot be pickled: {error!r:.200}", file=sys.stderr)


if __name__ == "__main__":
    main()
