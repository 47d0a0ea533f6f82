"""`python -m tests.typed`: what mypy and pyright say to a user of the package; needs both installed.

The code of README and tutorial, and `uses.py`, must be clean. In `mistakes.py` each checker must find every line that
ends with `# mistake`, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGES = [f"{page}{language}.md" for page in ("README", "docs/index", "docs/tutorial") for language in ("", ".zh-CN")]
MARK = re.compile(r"# mistake\b")
OURS = ("uses.py", "mistakes.py")
# Torch says that a layer's buffers may be None, as they are without tracking; pages need not ask.
OPTIONAL = re.compile(r'Tensor \| None|"None"')


class Place(NamedTuple):
    """Where a checker found something."""

    file: str
    line: int


Found = tuple[Place, str]  # and the message


def blocks(text: str) -> list[str]:
    """The Python of a page, each block with the line numbers that it has there."""
    found = re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    return ["\n" * text[: block.start(1)].count("\n") + block.group(1) for block in found]


def mypy(folder: Path, files: list[str]) -> list[Found]:
    """What mypy reports of these files."""
    command = [sys.executable, "-m", "mypy", "--output=json", "--check-untyped-defs", "--follow-imports=silent"]
    command += [f"--cache-dir={ROOT / 'build' / 'mypy'}", "--config-file=", *files]
    env = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if ran.returncode > 1 or ran.stderr:
        raise RuntimeError(f"mypy failed: {ran.stderr}{ran.stdout}")
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    return [(Place(row["file"], row["line"]), row["message"]) for row in rows if row["severity"] == "error"]


def pyright(folder: Path, files: list[str]) -> list[Found]:
    """What pyright reports of these files."""
    settings = {"include": files, "extraPaths": [str(ROOT / "src")], "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode > 1:
        raise RuntimeError(f"pyright failed: {ran.stderr}{ran.stdout}")
    rows = [row for row in json.loads(ran.stdout)["generalDiagnostics"] if row["severity"] == "error"]
    return [(Place(Path(row["file"]).name, row["range"]["start"]["line"] + 1), row["message"]) for row in rows]


def planted(text: str) -> set[int]:
    """The numbers of the lines that a checker must find."""
    return {number for number, line in enumerate(text.splitlines(), 1) if MARK.search(line)}


def verdict(name: str, found: list[Found], mistakes: set[int]) -> tuple[str, list[str]]:
    """A line about what a checker caught, and what is wrong: mistakes it missed, and what it found where none is."""
    caught = {place.line for place, _ in found if place.file == "mistakes.py"} & mistakes
    wrong = [f"mistakes.py:{line}: {name} does not see this mistake" for line in sorted(mistakes - caught)]
    of_torch = {place for place, text in found if place.file not in OURS and OPTIONAL.search(text)}
    for place, message in sorted(found):
        expected = place.file == "mistakes.py" and place.line in mistakes
        if not expected and place not in of_torch:
            wrong.append(f"{place.file}:{place.line}: {name}: {message.splitlines()[0]}")
    return f"{name}: {len(caught)} of {len(mistakes)} planted mistakes caught", wrong


def main() -> int:
    """Check, print, and return how many things are wrong."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in OURS:
            (folder / source).write_text((HERE / source).read_text(encoding="utf-8"), encoding="utf-8")
        for page in PAGES:
            for number, code in enumerate(blocks((ROOT / page).read_text(encoding="utf-8")), 1):
                stem = re.sub(r"\W", "_", page)
                (folder / f"{stem}_{number}.py").write_text(code, encoding="utf-8")
        files = sorted(path.name for path in folder.glob("*.py"))
        mistakes = planted((HERE / "mistakes.py").read_text(encoding="utf-8"))
        for checker in (mypy, pyright):
            line, missed = verdict(checker.__name__, checker(folder, files), mistakes)
            print(f"{line}; {len(files) - 1} other files: {len(missed)} to mend")
            wrong += missed
    print(*wrong, sep="\n")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
