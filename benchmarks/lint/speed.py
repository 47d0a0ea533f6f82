"""CPU seconds of the linter: of folders, and of one file with many small functions.

    python benchmarks/lint/speed.py FOLDER... [--functions 5000]

Each folder is linted as one program; with `--each`, every folder inside it is one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from batchnorm.diagnosis.source.linting import lint

FUNCTION = """
def step_{n}(model, x, optimizer):
    model.train()
    loss = model(x).sum()
    loss.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        return model(x)
"""


def seconds(path: Path) -> tuple[float, int, int]:
    """CPU seconds, files, findings."""
    start = time.process_time()
    report = lint(path)
    return time.process_time() - start, len(report.layers), len(report.findings)


def many_functions(count: int) -> str:
    """A file of small functions that call each other in a chain."""
    head = "import torch\nfrom torch import nn\nnet = nn.Sequential(nn.BatchNorm1d(3))\n"
    calls = "".join(f"step_{n}(net, x, optimizer)\n" for n in range(0, count, 10))
    return head + "".join(FUNCTION.format(n=n) for n in range(count)) + calls


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--each", action="store_true", help="every folder inside is a program of its own")
    parser.add_argument("--functions", type=int, default=5000)
    given = parser.parse_args()
    for folder in given.folders:
        spent, files, findings = 0.0, 0, 0
        for program in sorted(f for f in folder.iterdir() if f.is_dir()) if given.each else [folder]:
            if any(program.rglob("*.py")):
                spent, files, findings = (
                    a + b for a, b in zip((spent, files, findings), seconds(program), strict=True)
                )
        each = 1000 * spent / max(files, 1)
        print(f"{folder}: {spent:.1f} s, {files} files, {each:.1f} s per 1,000, {findings} findings")
    for count in (given.functions // 4, given.functions):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "many.py").write_text(many_functions(count), encoding="utf-8")
            print(f"{count} functions in a file: {seconds(Path(folder))[0]:.1f} s")


if __name__ == "__main__":
    main()
