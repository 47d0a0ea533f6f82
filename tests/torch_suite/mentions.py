"""Which tests of a file may meet a batch norm layer, from the file's text: those that name one, or name what does."""

import ast
import re
from pathlib import Path

# Any spelling: nn.BatchNorm2d, F.batch_norm, test_batchnorm_..., fold_bn; and models that hold one.
_BATCH_NORM = re.compile(r"batch_?norm|(?<![a-z])bn(?![a-z])|conv_?bn|bn_?relu|bn2d|resnet", re.IGNORECASE)
# Names that say nothing about what is behind them.
_COMMON = re.compile(
    r"^(__\w+__|forward|f|fn|func|g|run|setUp|tearDown|check|helper|test|model|M|Foo|Net|MyModule|TestModule)$"
)


def names_that_mention(files: list[Path]) -> set[str]:
    """Functions, methods and classes whose text names batch norm, or names one that does."""
    texts: dict[str, list[str]] = {}
    for file in files:
        source = file.read_text()
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                texts.setdefault(node.name, []).append("\n".join(lines[start - 1 : node.end_lineno]))
    found = {name for name, bodies in texts.items() if any(_BATCH_NORM.search(body) for body in bodies)}
    words = {name: set(re.findall(r"\w+", " ".join(bodies))) for name, bodies in texts.items()}
    while True:
        # A test class mentions what its tests do; that is no reason to run all of them.
        telling = {n for n in found if not _COMMON.match(n) and not re.match(r"^(Test|test_)", n)}
        more = {name for name in texts if name not in found and words[name] & telling}
        if not more:
            return found
        found |= more
