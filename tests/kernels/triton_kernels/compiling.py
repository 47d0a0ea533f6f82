"""The kernels compiled, down to machine code, for cards that need not be here.

`python -m tests.kernels.triton_kernels.compiling ARCHITECTURE [all]` launches nothing and reads no result: it
notes what the tests of this folder would launch, and compiles all of it, or so much that each value of each constant
and each kind of each argument is met. TRITON_INTERPRET must not be 1.
"""

import inspect
import itertools
import sys
import warnings
from unittest import mock

import torch

import batchnorm


class Card:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self._target


def noted(launches):
    """What launches would compile: by kernel and specialisation what it is made for, and how to compile it."""
    from triton.runtime.jit import JITFunction

    from batchnorm.kernels import triton
    from batchnorm.layers import device

    found, run, compile = {}, JITFunction.run, JITFunction._do_compile

    def compiled_later(kernel, key, signature, device, constants, *more):
        names = [p.name for p in kernel.params]
        told = {names[at[0]]: value for at, value in constants.items()}
        features = {(kernel.fn.__name__, name, str(told.get(name, kind))) for name, kind in signature.items()}
        given = (kernel, key, signature, device, constants, *more)
        found.setdefault((kernel.fn.__name__, key), (features, lambda: compile(*given)))

    with (
        mock.patch.object(JITFunction, "run", lambda *a, warmup, **k: run(*a, warmup=True, **k)),
        mock.patch.object(JITFunction, "_do_compile", compiled_later),
        mock.patch.object(device, "require"),
        mock.patch.dict(triton.SWITCHES, interpreted=True),
    ):
        launches()
    return found


def launches():
    """What the tests launch; what they assert of results is not looked at."""
    from batchnorm.kernels.triton import geometry
    from tests.kernels.triton_kernels import conftest, test_triton_operands, test_whole, twins

    def step(layer, batches, device, dtype=torch.float32, last=False, times=4):
        for x, g, given in batches:
            twins._step(layer, x.to(dtype), g, given, device, last)

    for sizes in (*conftest.SIZES.values(), {"narrow": 0}, {"alone": 0, "narrow": 0}):
        with (
            mock.patch.object(geometry, "SIZES", geometry.Sizes(**sizes)),
            mock.patch.object(test_whole, "compare", step),
            mock.patch.object(test_triton_operands, "compare", step),
        ):
            tests = {**vars(test_whole), **vars(test_triton_operands)}
            for test in [value for name, value in tests.items() if name.startswith("test_")]:
                for given in _parameters(test):
                    try:
                        test(**given, device="cpu")
                    except BaseException as error:
                        if type(error).__name__ not in ("AssertionError", "Failed"):
                            raise
    with mock.patch.object(geometry, "SIZES", geometry.Sizes()):
        # Of many chunks, in both layouts.
        for shape, last in (((2048, 1, 33, 32), False), ((512, 70, 8, 9), True)):
            step(batchnorm.BatchNorm2d(shape[1], method="renorm"), test_whole.batches(shape, 1), "cpu", last=last)


def _parameters(test):
    axes = [[{}]] if "monkeypatch" not in inspect.signature(test).parameters else [[]]
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            axes.append([{names: value} for value in values])
    for chosen in itertools.product(*axes):
        yield {name: value for part in chosen for name, value in part.items()}


def covering(found):
    """So many of them that each feature is met, by a greedy choice."""
    left, chosen = set().union(*(features for features, _ in found.values())), []
    while left:
        best = max(found.values(), key=lambda pair: len(pair[0] & left))
        left -= best[0]
        chosen.append(best)
    return chosen


def main(architecture, everything):
    """Compile; an error of Triton's or of the assembler's ends it."""
    from triton.runtime import driver

    driver.set_active(Card(architecture))
    found = noted(launches)
    chosen = list(found.values()) if everything else covering(found)
    for features, compile in chosen:
        kernel = compile()
        assert "cubin" in kernel.asm, features
    names = sorted({name for name, _ in found})
    print(f"{len(chosen)} of {len(found)} specialisations of {len(names)} kernels compiled for sm_{architecture}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), sys.argv[2:] == ["all"])
