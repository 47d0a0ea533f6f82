"""Makes the notebooks from the scripts, runs them, and keeps what they print.

    python examples/notebooks/make.py                     # all of them, beside this file
    python examples/notebooks/make.py lag --quick --to /tmp

A script is cut at its `# %%` lines, and `# %% [markdown]` begins text. Running needs nbclient and ipykernel.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = sorted(path for path in HERE.parent.glob("*.py") if path.stem != "example_tools")
PATH = 'import sys\n\nsys.path.insert(0, "..")  # example_tools.py lies beside the scripts\n'


def cell(kind: str, text: str, number: int) -> dict[str, Any]:
    """One cell, without output."""
    found: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    found["source"] = text.strip("\n").splitlines(keepends=True)
    return found if kind == "markdown" else {**found, "execution_count": None, "outputs": []}


def notebook(script: Path) -> dict[str, Any]:
    """The script as a notebook that has not run."""
    text = script.read_text()
    about = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    name, _, claim = about.partition(": ")
    cells = [cell("markdown", f"# {name}\n\n{claim[:1].upper()}{claim[1:]}\n\nFrom `examples/{script.name}`.", 0)]
    for part in text.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip("\n").splitlines()]
            cells.append(cell("markdown", "\n".join(lines), len(cells)))
        elif body.strip().startswith("if __name__"):
            cells.append(cell("code", "figures = run()", len(cells)))
        else:
            body = body.replace("quick, show", "show") if len(cells) == 1 else body
            cells.append(cell("code", PATH + body if len(cells) == 1 else body, len(cells)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed(made: dict[str, Any]) -> dict[str, Any]:
    """The notebook with what its cells printed, and nothing else that running leaves."""
    import nbformat
    from nbclient import NotebookClient

    # Plain text: no colours, and no bars that move.
    os.environ.update(TTY_COMPATIBLE="0", NO_COLOR="1")
    node = nbformat.reads(json.dumps(made), as_version=4)
    NotebookClient(node, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    for one, ran in zip(made["cells"], node.cells, strict=True):
        printed = "".join(out["text"] for out in ran.get("outputs", []) if out.get("name") == "stdout")
        if printed:
            lines = printed.splitlines(keepends=True)
            one["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}]
    return made


def main() -> None:
    """Make, run and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="all scripts without it")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--to", type=Path, default=HERE)
    chosen = parser.parse_args()
    for script in SCRIPTS:
        if chosen.names and script.stem not in chosen.names:
            continue
        made = notebook(script)
        if chosen.quick:
            made["cells"][-1]["source"] = ["figures = run(quick=True)"]
        text = json.dumps(executed(made), indent=1, ensure_ascii=False) + "\n"
        (chosen.to / f"{script.stem}.ipynb").write_text(text)


if __name__ == "__main__":
    main()
