"""The linted files as one program, found by the names that they are imported by."""

from __future__ import annotations

import ast
import contextlib
import operator
from pathlib import Path
from typing import Any

from batchnorm.diagnosis.source.definitions import Module, Namespace


class Project:
    """All linted files, found by the names they are imported by."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.modules: dict[str, Module] = {}
        self._suffixes: dict[str, list[str]] = {}
        self._found: dict[tuple[str, str], Module | None] = {}

    def add(self, path: Path, text: str, tree: ast.Module) -> Module:
        """Take a file in; its name is its path from the root."""
        parts = list(path.parts)
        if self.root is not None:
            with contextlib.suppress(ValueError):
                parts = list(path.relative_to(self.root).parts)
        parts[-1] = parts[-1].removesuffix(".py")
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        name = ".".join(part.replace(".", "_") for part in parts if part not in ("/", ".."))
        while name in self.modules:
            name += "_"
        return self._take(Module(name, str(path), text, tree, self))

    def _take(self, module: Module) -> Module:
        self.modules[module.name] = module
        tail = module.name.split(".")
        for at in range(len(tail)):
            self._suffixes.setdefault(".".join(tail[at:]), []).append(module.name)
        return module

    def find(self, name: str, near: Module) -> Module | None:
        """The module that an import in `near` means: the one that shares the longest path with it."""
        key = (name, near.name)
        if key not in self._found:
            self._found[key] = self._search(name, near)
        return self._found[key]

    def _search(self, name: str, near: Module) -> Module | None:
        here = near.name.split(".")
        package = here if near.path.endswith("__init__.py") else here[:-1]
        if name.startswith("."):
            rest = name.lstrip(".")
            up = len(name) - len(rest) - 1
            base = package[: len(package) - up] if up else package
            return self.modules.get(".".join([*base, *([rest] if rest else [])]))
        candidates = self._suffixes.get(name, [])
        if not candidates or name.split(".")[0] in ("torch", "torchvision", "numpy", "tensorflow", "keras"):
            return None

        # An import reaches what lies beside the file or above it, not what lies in a folder elsewhere.
        folders = {c: c.split(".")[: -len(name.split("."))] for c in candidates}
        reached = [c for c, folder in folders.items() if folder == package[: len(folder)]]
        shared = lambda c: [*map(operator.eq, c.split("."), package), False].index(False)  # noqa: E731
        best = max(reached or (candidates if len(candidates) == 1 else []), key=shared, default=None)
        return None if best is None else self.modules[best]

    def connected(self) -> list[Project]:
        """The files that belong together, through imports or in a package: what others do says nothing of them."""
        group = {name: name for name in self.modules}

        def of(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        for name, module in self.modules.items():
            found = [m.name for m in (self.find(i, module) for i in module.imports) if m is not None]
            if module.path.endswith("__init__.py"):
                found += [other for other in self.modules if name == "__init__" or other.startswith(f"{name}.")]
            if any(f"{how}(" in module.text for how in ("import_module", "__import__", "execfile")):
                found += self.modules  # by names that are not known
            for other in found:
                group[of(other)] = of(name)
        parts: dict[str, Project] = {}
        for name, module in self.modules.items():
            part = module.project = parts.setdefault(of(name), Project(self.root))
            part._take(module)
        return list(parts.values())

    def alone(self, module: Module) -> Project:
        """A file without those that belong to it."""
        alone = module.project = Project(self.root)
        alone._take(module)
        return alone

    def inside(self, module: Module, name: str) -> Any:
        """A module inside a package."""
        found = self.modules.get(f"{module.name}.{name}")
        return Namespace(found) if found is not None else None
