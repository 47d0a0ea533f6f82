"""Runs each block of docs/trainers.md in an environment made from the install lines above it, and nothing else.

    python -m tests.trainers.fresh [NAME...]

Names are those of `tests.trainers.page.BLOCKS`; without one, all run, which downloads some gigabytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.trainers.page import BLOCKS, FIRST, Block

ROOT = Path(__file__).parents[2]


def run(name: str, block: Block) -> bool:
    """Whether the block runs; what failed is printed."""
    with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
        place = Path(folder)
        venv.create(place / "venv", with_pip=True)
        # In the clone, as the page says; without a compiler, since the numbers are the same and it takes no minute.
        environment = {**os.environ, "PATH": f"{place / 'venv/bin'}:{os.environ['PATH']}", "BATCHNORM_PURE": "1"}
        lines = [line for line in (FIRST.install + block.install).splitlines() if line]
        for line in lines:
            if subprocess.run(line, shell=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode:
                print(f"{name}: {line!r} failed")
                return False
        # Only where torchvision's compiled part does not fit, which the page warns of.
        helper = "import tests.trainers\n" if "torchvision" in block.install else ""
        (place / "block.py").write_text(helper + FIRST.code + block.code)
        environment["PYTHONPATH"] = str(ROOT) if helper else ""
        done = subprocess.run(
            [place / "venv/bin/python", "block.py"], cwd=place, env=environment, text=True, capture_output=True
        )
        print(f"{name}: {'runs' if done.returncode == 0 else 'fails'}")
        if done.returncode:
            print(done.stderr[-2000:])
        return done.returncode == 0


if __name__ == "__main__":
    sys.exit(0 if all([run(name, BLOCKS[name]) for name in sys.argv[1:] or BLOCKS]) else 1)
