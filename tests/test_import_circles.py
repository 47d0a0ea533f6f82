"""No module of the package imports one that imports it, imports for type checkers included."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def modules():
    files = {}
    for path in (SOURCE / "batchnorm").rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(name, path, files):
    """Modules that a file imports at its top level, or under `if TYPE_CHECKING`; not those inside functions."""
    found = set()

    def visit(body):
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                visit([*node.body, *node.orelse])
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                # The compiled extension is no module of the package.
                deeper = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "_native"]
                found.update(one if one in files else node.module for one in deeper)

    visit(ast.parse(path.read_text()).body)
    return {one for one in found if one in files and one != name}


def circles(graph):
    """Groups of nodes that reach one another (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def walk(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                walk(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            walk(node)
    return found


def test_there_is_no_circle():
    files = modules()
    graph = {name: imports(name, path, files) for name, path in files.items()}
    # The package's own front names what the folders hold, for type checkers.
    graph["batchnorm"] = set()
    assert circles(graph) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
