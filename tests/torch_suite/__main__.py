"""Run PyTorch's tests of batch norm on this package's classes and compare with the same run on torch's."""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.torch_suite.run import ROOT, run_file, run_sync
from tests.torch_suite.source import folder_of_tests
from tests.torch_suite.table import failures, write

FILES = (
    "test_nn.py", "test_modules.py", "nn/test_lazy_modules.py", "nn/test_load_state_dict.py", "test_stateless.py",
    "functorch/test_eager_transforms.py", "functorch/test_vmap.py", "functorch/test_aotdispatch.py",
    "jit/test_freezing.py", "test_fx.py", "test_fx_experimental.py", "quantization/eager/test_fuse_eager.py",
    "quantization/core/test_quantized_module.py",
)  # fmt: skip
WORLDS = (2, 3, 4)


def main() -> None:
    """Exit status 1 where a test fails that has no reason in `reasons`."""
    parser = argparse.ArgumentParser(prog="python -m tests.torch_suite", description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="a PyTorch source tree, or a tarball of one")
    parser.add_argument("--out", type=Path, default=Path("build/torch_suite"), help="where results go")
    parser.add_argument("--only", default="", help="run the files whose name contains this ('distributed' for ranks)")
    parser.add_argument("--again", action="store_true", help="keep what an earlier run found on torch's classes")
    parser.add_argument("--no-run", action="store_true", help="only write the page from earlier results")
    options = parser.parse_args()
    out = options.out.resolve()
    if not options.no_run:
        tests = folder_of_tests(options.source.resolve(), out)
        for name in FILES:
            if options.only in name:
                _run(tests, name, out, options.again)
        for world in WORLDS:
            if options.only in _sync_name(world):
                _save(out, _sync_name(world), "ours", run_sync(out / f"sync{world}.jsonl", world))
    runs = {name: (_load(out, name, "stock"), ours) for name in _names() if (ours := _load(out, name, "ours"))}
    write(ROOT / "docs" / "torch-tests.md", runs)
    faults = 0
    for name, (stock, ours) in runs.items():
        for test, (message, reason) in failures(stock, ours).items():
            if reason is None:
                faults += 1
                print(f"{name}: {test.split('::', 1)[-1]}: {' '.join(message.split())[:300]}")
    print(f"{faults} faults; the table is in docs/torch-tests.md, the results in {options.out}")
    raise SystemExit(faults > 0)


def _run(tests: Path, name: str, out: Path, again: bool) -> None:
    log = out / _stem(name)
    stock = _load(out, name, "stock") if again else None
    if stock is None:
        found = run_file(tests, name, log.with_suffix(".stock.jsonl"), ours=False)
        stock = {test: result for test, result in found.items() if result["made"]}
        _save(out, name, "stock", stock)
    _save(out, name, "ours", run_file(tests, name, log.with_suffix(".ours.jsonl"), ours=True, only=list(stock)))
    print(name, "has run", flush=True)


def _names() -> list[str]:
    return [*FILES, *(_sync_name(world) for world in WORLDS)]


def _sync_name(world: int) -> str:
    return f"distributed_test.py, {world} ranks"


def _stem(name: str) -> str:
    return name.removesuffix(".py").replace("/", "-").replace(".py, ", "-").replace(" ", "-")


def _load(out: Path, name: str, which: str) -> Any:
    file = out / f"{_stem(name)}.{which}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _save(out: Path, name: str, which: str, results: Any) -> None:
    (out / f"{_stem(name)}.{which}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
