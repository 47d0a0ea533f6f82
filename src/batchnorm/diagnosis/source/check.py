"""The findings of a program: what the rules say, without what is silenced."""

from __future__ import annotations

import gc
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from batchnorm.diagnosis.findings import Finding
from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.config import Config
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
T = TypeVar("T")
MOST_PLACES = 30  # that a note names besides its own
DEEPEST = 12_000  # frames: each level of nested code and calls takes a few


class Located(NamedTuple):
    """A finding with its file, line and edit."""

    finding: Finding
    path: str
    line: int
    edit: Edit | None


def check(project: Project, config: Config | None = None, failed: dict[str, str] | None = None) -> list[Located]:
    """All findings by file and line; of notes of one rule the first, which names the other places.

    A rule that raises an exception is left out for the file, which goes into `failed` with the rule and the error.
    """
    config = config or Config()
    concerned = [part for part in project.connected() if any(CONCERNED.search(m.text) for m in part.modules.values())]
    with _deep():
        said = [found for part in concerned for found in _said(part, LOOKS, {} if failed is None else failed)]
    silenced = {id(m): Silenced(m.text) for m in {id(s.module): s.module for _, s in said}.values()}
    warnings, notes = list[Located](), defaultdict[str, dict[tuple[str, int], Said]](dict)
    for code, s in said:
        path, line = s.module.path, getattr(s.node, "lineno", 1)
        if not config.wanted(code, path) or silenced[id(s.module)](line, code):
            continue
        if not s.sure:
            notes[code].setdefault((path, line), s)
        elif not any(w.path == path and w.line == line and w.finding.code == code for w in warnings):
            found = Finding(code, "warning", f"{path}:{line}", s.message, s.fix)
            warnings.append(Located(found, path, line, s.edit))
    together = [_note(code, places) for code, places in notes.items()]
    return sorted([*warnings, *together], key=lambda f: (f.path, f.line, f.finding.code))


def _note(code: str, places: dict[tuple[str, int], Said]) -> Located:
    """The note of a rule: what it says of the first place, and where else it would say so."""
    (path, line), *others = sorted(places)
    near, far = [str(n) for p, n in others if p == path], [f"{p}:{n}" for p, n in others if p != path]
    more = f" (also in line{'s' * (len(near) > 1)} {_some(near)})" if near else ""
    more += f" (also in {_some(far)})" if far else ""
    said = places[path, line]
    return Located(Finding(code, "note", f"{path}:{line}", f"maybe: {said.message}{more}", said.fix), path, line, None)


def _some(places: list[str]) -> str:
    return ", ".join(places[:MOST_PLACES]) + " ..." * (len(places) > MOST_PLACES)


def _said(project: Project, rules: Iterable[str], failed: dict[str, str]) -> Iterator[tuple[str, Said]]:
    """What rules say of files that belong together; of what one says of a place, the first."""
    facts, broken = _or_error(lambda: Facts(project)), dict[str, Exception]()
    for code in rules:
        look = LOOKS[code][1]
        found = facts if isinstance(facts, Exception) else _or_error(lambda look=look: _first(facts, look(facts)))
        if isinstance(found, Exception):
            broken[code] = found
        else:
            yield from ((code, s) for s in found)
    if broken and len(project.modules) > 1:
        for module in list(project.modules.values()):  # one by one, so that the other files lose nothing
            yield from _said(project.alone(module), broken, failed)
    elif broken:
        (module,), errors = project.modules.values(), dict[str, list[str]]()
        for code, error in broken.items():
            # Values of the program, which a KeyError holds, can be endless in words.
            words = " ".join(word for word in error.args if isinstance(word, str))
            errors.setdefault(f"{type(error).__name__}: {words}".rstrip(": "), []).append(code)
        why = (
            f"{', '.join(codes) if len(codes) < len(LOOKS) else 'all rules'} failed ({error})"
            for error, codes in errors.items()
        )
        failed[module.path] = "; ".join(why)


def _or_error(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:  # whatever goes wrong in a rule, the others go on
        return error


def _first(facts: Facts, said: Iterable[Said]) -> list[Said]:
    """Of what is said of a place, the first, as far as it is certain."""
    first: dict[int, Said] = {}
    for s in filter(None, map(facts.weighed, said)):
        first.setdefault(id(s.node), s)
    return list(first.values())


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
