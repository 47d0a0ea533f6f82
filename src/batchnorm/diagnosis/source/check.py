"""The findings of a program: what the rules say, without what is silenced."""

from __future__ import annotations

import gc
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from batchnorm.diagnosis.findings import Finding
from batchnorm.diagnosis.source.config import Config
from batchnorm.diagnosis.source.facts import Facts, Said
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
DEEPEST = 12_000  # frames: each level of nested code and calls takes a few


class Located(NamedTuple):
    """A finding with its file, line and edit."""

    finding: Finding
    path: str
    line: int
    edit: Edit | None


def check(project: Project, config: Config | None = None) -> list[Located]:
    """All findings by file and line; of notes of one rule in a file the first, which names the other lines."""
    config = config or Config()
    concerned = [part for part in project.connected() if any(CONCERNED.search(m.text) for m in part.modules.values())]
    with _deep():
        said = [(code, s) for part in concerned for code, s in _said(part)]
    silenced = {id(m): Silenced(m.text) for m in {id(s.module): s.module for _, s in said}.values()}
    grouped: dict[tuple[str, str, bool], list[Said]] = defaultdict(list)
    for code, s in said:
        line = getattr(s.node, "lineno", 1)
        if config.wanted(code, s.module.path) and not silenced[id(s.module)](line, code):
            grouped[s.module.path, code, s.sure].append(s)
    found = [f for (path, code, sure), group in grouped.items() for f in _findings(path, code, sure, group)]
    return sorted(found, key=lambda f: (f.path, f.line, f.finding.code))


def _said(project: Project) -> Iterator[tuple[str, Said]]:
    """What the rules say of files that belong together; of what one says of a place, the first."""
    facts = Facts(project)
    for code, (_, look) in LOOKS.items():
        first: dict[int, Said] = {}
        for s in look(facts):
            first.setdefault(id(s.node), s)
        yield from ((code, s) for s in first.values())


def _findings(path: str, code: str, sure: bool, group: list[Said]) -> Iterator[Located]:
    lines: dict[int, Said] = {}
    for s in group:
        lines.setdefault(getattr(s.node, "lineno", 1), s)
    if sure:
        for line, s in lines.items():
            yield Located(Finding(code, "warning", f"{path}:{line}", s.message, s.fix), path, line, s.edit)
        return
    first, *rest = sorted(lines)
    more = f"{'s' * (len(rest) > 1)} {', '.join(map(str, rest[:6]))}{' ...' * (len(rest) > 6)}"
    s, also = lines[first], f" (also in line{more})" if rest else ""
    yield Located(Finding(code, "note", f"{path}:{first}", f"maybe: {s.message}{also}", s.fix), path, first, None)


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
