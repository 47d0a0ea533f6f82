"""A pytest plugin: which tests make a batch norm layer, and what came of each.

Settings come in the environment: BATCHNORM_SUITE_OURS=1 substitutes the classes, BATCHNORM_SUITE_ONLY names a file
with the ids to run, BATCHNORM_SUITE_LOG the file that each test adds a line of JSON to.
"""

import functools
import inspect
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules import batchnorm as stock

from tests.torch_suite.substitute import stand_in, substitute

LIMIT_S = 300
_LOG = Path(os.environ["BATCHNORM_SUITE_LOG"])
_touched = {"made": False}
_outcome: dict[str, Any] = {}


def pytest_configure(config: Any) -> None:
    """Before any test file is imported."""
    stand_in()
    if os.environ.get("BATCHNORM_SUITE_OURS"):
        substitute()
    made = stock._NormBase.__init__

    @functools.wraps(made)
    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        _touched["made"] = True
        made(self, *args, **kwargs)

    stock._NormBase.__init__ = noted
    signal.signal(signal.SIGALRM, _too_long)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"longer than {LIMIT_S} s")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the tests asked for; else all but those of one function or of another module."""
    listed = os.environ.get("BATCHNORM_SUITE_ONLY")
    if listed:
        chosen = set(Path(listed).read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in chosen]
    else:
        items[:] = [item for item in items if _may_make_a_layer(item)]


def _may_make_a_layer(item: Any) -> bool:
    """Whether a test may: those drawn from a database are of one function, or of the module in their name."""
    try:
        arguments = inspect.signature(item.function).parameters
    except (TypeError, ValueError):
        arguments = {}
    if "op" in arguments:
        return False
    return "module_info" not in arguments or "BatchNorm" in item.name


def _write(line: dict[str, Any]) -> None:
    with _LOG.open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Said first, so that a test which ends the process is known."""
    _touched["made"] = False
    _outcome.clear()
    _write({"started": nodeid})
    signal.alarm(LIMIT_S)


def pytest_runtest_logreport(report: Any) -> None:
    """A test fails if any of its phases does."""
    if report.failed:
        _outcome.update(outcome="failed", why=_reason(report))
    elif report.skipped and not _outcome:
        _outcome.update(outcome="skipped", why=str(report.longrepr)[-200:])


def pytest_runtest_logfinish(nodeid: str, location: Any) -> None:
    """One line a test."""
    signal.alarm(0)
    _write({"test": nodeid, "made": _touched["made"], "outcome": "passed", "why": "", **_outcome})


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(crash.message if crash is not None else report.longrepr)
    return message if len(message) <= 800 else f"{message[:300]} ... {message[-500:]}"
