"""The rules of source code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchnorm.diagnosis.findings import Finding, Rule
from batchnorm.diagnosis.findings import Said as Told
from batchnorm.diagnosis.source import rules_modes as modes
from batchnorm.diagnosis.source import rules_statistics as statistics
from batchnorm.diagnosis.source.rules_statistics import Said
from batchnorm.diagnosis.source.syntax import Source

Look = Callable[[Source], Iterator[Said]]
LOOKS: dict[str, tuple[str, Look]] = {
    "BN401": ("an update by hand that changes nothing", statistics.changes_nothing),
    "BN402": ("an update by hand after eval()", statistics.after_eval),
    "BN403": ("momentum of Keras in torch", statistics.torch_momentum),
    "BN404": ("momentum of torch in Keras", statistics.keras_momentum),
    "BN405": ("evaluation without eval()", modes.evaluates_in_train),
    "BN406": ("frozen by requires_grad", modes.freezes_by_requires_grad),
    "BN407": ("frozen by momentum 0", modes.freezes_by_momentum),
    "BN408": ("eval() before train()", modes.eval_before_train),
    "BN409": ("averaged weights without update_bn", modes.missing_update_bn),
    "BN410": ("update_bn with dropout or frozen layers", modes.update_bn_with_dropout),
    "BN411": ("tracking switched off after construction, in the source", statistics.flipped_tracking),
    "BN412": ("a forward in train mode under no_grad or in a summary", modes.train_forward_without_gradients),
    "BN413": ("an average of parameters() only", statistics.averages_parameters_only),
    "BN414": ("an average of the counter", statistics.averages_counter),
    "BN415": ("batch norm told by its name", modes.matches_names),
    "BN416": ("momentum outside [0, 1], in the source", statistics.momentum_outside),
}


def check(source: Source) -> list[Finding]:
    """All findings in one file by line; what a rule is not sure of is a note and says maybe."""
    found = []
    looks = [*((code, look) for code, (_, look) in LOOKS.items()), ("BN412", modes.summary_in_train)]
    for code, look in looks:
        for said in look(source):
            line = getattr(said.node, "lineno", 1)
            message = said.message if said.sure else f"maybe: {said.message}"
            severity = "warning" if said.sure else "note"
            if not _silenced(source, line, code):
                found.append(Finding(code, severity, f"{source.name}:{line}", message, said.fix))
    return sorted(found, key=lambda f: (int(f.layer.rsplit(":", 1)[1]), f.code))


def _silenced(source: Source, line: int, code: str) -> bool:
    text = source.text.splitlines()[line - 1] if line <= len(source.text.splitlines()) else ""
    _, mark, rest = text.partition("# noqa")
    return bool(mark) and (not rest.startswith(":") or code in rest)


def _rule(code: str, title: str, look: Look) -> Rule:
    def as_told(source: Source) -> Told:
        for said in look(source):
            yield f"{source.name}:{getattr(said.node, 'lineno', 1)}", said.message, said.fix

    return Rule(code, title, "warning", as_told)


SOURCE_RULES: tuple[Rule, ...] = tuple(_rule(code, title, look) for code, (title, look) in LOOKS.items())
