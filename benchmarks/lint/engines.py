"""What three inference engines cost: CPU seconds to infer every called name and every receiver of a folder's files.

    python benchmarks/lint/engines.py FOLDER [--limit 200]

astroid, jedi and libcst are not dependencies of the package: an engine that is not installed is left out.
`answered` is the share of the questions with an answer other than unknown. torch has to be importable for an engine to
say what `nn.BatchNorm2d` is; without it they answer for the folder's own names only.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path


def with_ast(file: Path, text: str) -> tuple[int, int]:
    """Parsing alone: what every engine pays at least."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return len(calls), 0


def with_astroid(file: Path, text: str) -> tuple[int, int]:
    """Infer the function of every call."""
    import astroid
    from astroid import nodes

    asked = answered = 0
    for call in astroid.parse(text, path=str(file)).nodes_of_class(nodes.Call):
        asked += 1
        try:
            found = next(call.func.infer(), astroid.Uninferable)
            answered += found is not astroid.Uninferable
        except (astroid.InferenceError, RecursionError, AttributeError, StopIteration):
            pass
    return asked, answered


def with_jedi(file: Path, text: str) -> tuple[int, int]:
    """Infer the function of every call."""
    import jedi

    script = jedi.Script(text, path=str(file), project=jedi.Project(file.parent))
    asked = answered = 0
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        asked += 1
        with contextlib.suppress(Exception):  # jedi raises many kinds of errors on code that it cannot follow
            answered += bool(script.infer(call.func.end_lineno, call.func.end_col_offset))
    return asked, answered


def with_libcst(file: Path, text: str) -> tuple[int, int]:
    """Qualified names of every call: imports are resolved, values are not followed."""
    import libcst
    from libcst.metadata import MetadataWrapper, QualifiedNameProvider

    wrapper = MetadataWrapper(libcst.parse_module(text), unsafe_skip_copy=True)
    names = wrapper.resolve(QualifiedNameProvider)
    calls = [node for node in names if isinstance(node, libcst.Call)]
    return len(calls), sum(bool(names[call]) for call in calls)


def measure(engine: Callable[[Path, str], tuple[int, int]], files: list[Path], seconds: float) -> str:
    """A line of the table; stops after so many CPU seconds and scales."""
    start, done, asked, answered, failed = time.process_time(), 0, 0, 0, 0
    for file in files:
        try:
            a, b = engine(file, file.read_text(encoding="utf-8"))
            asked, answered = asked + a, answered + b
        except ImportError as error:
            return f"not installed ({error.name})"
        except Exception:  # a file that an engine cannot read counts against it, whatever it raises
            failed += 1
        done += 1
        if time.process_time() - start > seconds:
            break
    spent = time.process_time() - start
    share = answered / asked if asked else 0.0
    return (
        f"{1000 * spent / done:8.1f} s per 1,000 files ({done} files)  answered {share:.0%} of {asked}  failed {failed}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=float, default=60, help="CPU seconds per engine")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    files = sorted(given.folder.rglob("*.py"))
    named = [f for f in files if "atchNorm" in f.read_text(encoding="utf-8", errors="replace")]
    for name, engine in {"ast": with_ast, "astroid": with_astroid, "jedi": with_jedi, "libcst": with_libcst}.items():
        print(f"{name:8s} {measure(engine, named, given.limit)}", flush=True)


if __name__ == "__main__":
    main()
