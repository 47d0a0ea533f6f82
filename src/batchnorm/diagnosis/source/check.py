"""The findings of a program: what the rules say, without what is silenced."""

from __future__ import annotations

import gc
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

from batchnorm.diagnosis.findings import Finding, Severity
from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.config import Config
from batchnorm.diagnosis.source.definitions import Module
from batchnorm.diagnosis.source.facts import Facts
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.noqa import Silenced
from batchnorm.diagnosis.source.project import Project
from batchnorm.diagnosis.source.rules import LOOKS

# A program without any of these has no batch norm that could be found.
CONCERNED = re.compile(
    r"batch_?norm|\bbn\b|running_(mean|var)|moving_mean|resne[tx]|densenet|mobilenet|inception|googlenet|efficientnet|shufflenet|"
    r"mnasnet|regnet|deeplab|timm|torchvision\.models|segmentation_models|state_dict|norm_layer|track_running_stats|sync_?bn|hrnet|parameters\(\)|BN_?MOM|\.trainable",
    re.IGNORECASE,
)
# What these say is that statistics move, or of which batches they are.
MOVES = frozenset(("BN405", "BN406", "BN412", "BN419", "BN426", "BN428", "BN434"))
T = TypeVar("T")
MOST_PLACES = 30  # that a note names besides its own
DEEPEST = 12_000  # frames: each level of nested code and calls takes a few


class Located(NamedTuple):
    """A finding with its file and line, what is said of each place, the other places, and the edits."""

    finding: Finding
    path: str
    line: int
    text: str
    others: tuple[tuple[str, int], ...] = ()
    edits: tuple[Edit, ...] = ()


def check(project: Project, config: Config | None = None, failed: dict[str, str] | None = None) -> list[Located]:
    """All findings by file and line; of a rule's notes, and of a warning in one file, the first, naming the others.

    A rule that raises an exception is left out for the file, which goes into `failed` with the rule and the error.
    """
    config = config or Config()
    concerned = [part for part in project.connected() if any(CONCERNED.search(m.text) for m in part.modules.values())]
    with _deep():
        parts = [_Part(part, LOOKS, {} if failed is None else failed) for part in concerned]
    run = {_folder(m) for part in parts if part.runs for m in part.modules}
    said = [(code, s) for part in parts for code, s in part.said if part.runs or _folder(s.module) not in run]
    silenced = {id(m): Silenced(m.text) for m in {id(s.module): s.module for _, s in said}.values()}
    warnings = defaultdict[tuple[str, str, str], dict[tuple[str, int], Said]](dict)
    notes = defaultdict[str, dict[tuple[str, int], Said]](dict)
    for code, s in said:
        path, line = s.module.path, getattr(s.node, "lineno", 1)
        if not config.wanted(code, path) or silenced[id(s.module)](line, code):
            continue
        together = warnings[code, path, s.message] if s.sure else notes[code]
        together.setdefault((path, line), s)
    located = [_located(code, "warning", places) for (code, *_), places in warnings.items()]
    located += [_located(code, "note", places) for code, places in notes.items()]
    return sorted(located, key=lambda f: (f.path, f.line, f.finding.code))


def _located(code: str, severity: Severity, places: dict[tuple[str, int], Said]) -> Located:
    """What a rule says of the first place, and where else it would say so."""
    (path, line), *others = sorted(places)
    near, far = [str(n) for p, n in others if p == path], [f"{p}:{n}" for p, n in others if p != path]
    more = f" (also in line{'s' * (len(near) > 1)} {_some(near)})" if near else ""
    more += f" (also in {_some(far)})" if far else ""
    said = places[path, line]
    text = f"{'maybe: ' * (severity == 'note')}{said.message}"
    edits = tuple(s.edit for s in places.values() if s.edit is not None) if severity == "warning" else ()
    found = Finding(code, severity, f"{path}:{line}", text + more, said.fix)
    return Located(found, path, line, text, tuple(others), edits)


def _some(places: list[str]) -> str:
    return ", ".join(places[:MOST_PLACES]) + " ..." * (len(places) > MOST_PLACES)


class _Part:
    """Files that belong together: what the rules say of them, and whether programs among them train."""

    def __init__(self, project: Project, rules: Iterable[str], failed: dict[str, str]) -> None:
        self.modules = list(project.modules.values())
        self.runs = False
        self.said: list[tuple[str, Said]] = []
        facts, broken = _or_error(lambda: Facts(project)), dict[str, Exception]()
        for code in rules:
            found = facts if isinstance(facts, Exception) else _or_error(partial(_first, facts, code))
            if isinstance(found, Exception):
                broken[code] = found
            else:
                self.said += [(code, s) for s in found]
        if not isinstance(facts, Exception):
            self.runs = facts.steps_anywhere and not facts.reached.library
        if broken and len(self.modules) > 1:
            for module in self.modules:  # one by one, so that the other files lose nothing
                self.said += _Part(project.alone(module), broken, failed).said
        elif broken:
            failed[self.modules[0].path] = _why(broken)


def _why(broken: dict[str, Exception]) -> str:
    """Which rules failed, and how."""
    errors = dict[str, list[str]]()
    for code, error in broken.items():
        # Values of the program, which a KeyError holds, can be endless in words.
        words = " ".join(word for word in error.args if isinstance(word, str))
        errors.setdefault(f"{type(error).__name__}: {words}".rstrip(": "), []).append(code)
    return "; ".join(
        f"{', '.join(codes) if len(codes) < len(LOOKS) else 'all rules'} failed ({error})"
        for error, codes in errors.items()
    )


def _folder(module: Module) -> str:
    return module.path.rpartition("/")[0]


def _or_error(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:  # whatever goes wrong in a rule, the others go on
        return error


def _first(facts: Facts, code: str) -> list[Said]:
    """Of what a rule says of a place, the first, as far as it is certain."""
    first: dict[int, Said] = {}
    for s in LOOKS[code][1](facts):
        if (found := _weighed(facts, code, s)) is not None:
            first.setdefault(id(s.node), found)
    return list(first.values())


def _weighed(facts: Facts, code: str, found: Said) -> Said | None:
    """A finding in code that runs; less sure by a step where the program sees to which forwards move statistics."""
    if code != "BN431" and not facts.reaches(found):  # which speaks of what nothing calls
        return None
    if code in MOVES and facts.argued(found):
        return None
    if code in MOVES and facts.steers_statistics:
        return found._replace(sure=False) if found.sure else None
    return found


@contextmanager
def uncollected() -> Iterator[None]:
    """Trees are many objects that stay: without Python's search for cycles, reading them takes less time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def _deep() -> Iterator[None]:
    """Room for deeply nested code."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
