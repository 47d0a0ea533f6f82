"""`python -m tests.torch_suite --source TREE`: run, compare with stock torch, write a table."""

import argparse
import json
from pathlib import Path

from tests.torch_suite.run import run_file
from tests.torch_suite.source import tests_of

FILES = (
    "test_nn.py", "test_modules.py", "nn/test_lazy_modules.py", "nn/test_load_state_dict.py", "test_stateless.py",
    "functorch/test_eager_transforms.py", "functorch/test_vmap.py", "functorch/test_aotdispatch.py",
    "jit/test_freezing.py", "test_fx.py", "test_fx_experimental.py", "quantization/eager/test_fuse_eager.py",
    "quantization/core/test_quantized_module.py",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torch_suite", description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="a PyTorch source tree, or a tarball of one")
    parser.add_argument("--out", type=Path, default=Path("build/torch_suite"), help="where results go")
    parser.add_argument("--only", default="", help="run the files whose name contains this")
    parser.add_argument("--again", action="store_true", help="keep the results of stock torch of an earlier run")
    options = parser.parse_args()
    tests = tests_of(options.source.resolve(), options.out.resolve())
    for name in FILES:
        if options.only not in name:
            continue
        stem = name.removesuffix(".py").replace("/", "-")
        kept = options.out / f"{stem}.stock.json"
        if options.again and kept.exists():
            stock = json.loads(kept.read_text())
        else:
            found = run_file(tests, name, options.out / f"{stem}.stock.jsonl", ours=False)
            stock = {test: result for test, result in found.items() if result["made"]}
            kept.write_text(json.dumps(stock, indent=1))
        ours = run_file(tests, name, options.out / f"{stem}.ours.jsonl", ours=True, only=list(stock))
        (options.out / f"{stem}.ours.json").write_text(json.dumps(ours, indent=1))
        passing = [test for test, result in stock.items() if result["outcome"] == "passed"]
        failed = [test for test in passing if ours.get(test, {"outcome": "missing"})["outcome"] != "passed"]
        print(f"{name}: {len(stock)} make a layer, {len(passing)} pass on torch's, {len(failed)} not on ours", flush=True)
        for test in failed:
            print("   ", test, "|", ours.get(test, {}).get("why", "missing")[:200].replace("\n", " "))


if __name__ == "__main__":
    main()
