"""Run one of PyTorch's test files in a process of its own, and again without the test that ended it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_file(tests: Path, name: str, log: Path, ours: bool, only: list[str] | None = None) -> dict[str, Any]:
    """What came of each test of a file: `{id: {"outcome", "why", "made"}}`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.touch()
    remaining = only
    for _ in range(20):
        results, running = read(log)
        if running is not None:
            with log.open("a") as file:
                line = {"test": running, "made": True, "outcome": "failed", "why": "ended the process"}
                file.write(json.dumps(line) + "\n")
            results, _ = read(log)
        if remaining is not None:
            remaining = [test for test in remaining if test not in results]
            if not remaining:
                return results
        code = _pytest(tests, name, log, ours, remaining, list(results))
        if read(log)[1] is None:
            results, _ = read(log)
            if not results and code not in (0, 5):
                raise SystemExit(f"{name} was not collected; see {log.with_suffix('.txt')}")
            return results
    return read(log)[0]


def run_sync(log: Path, world: int) -> dict[str, Any]:
    """torch's tests of SyncBatchNorm at this number of processes, on gloo."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.touch()
    names = ("SyncBatchNorm", "sync_bn", "test_ddp_inference")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "barrier").mkdir()
        # The tests are inherited: the file that is read does not mention batch norm by their names.
        environment = {"BACKEND": "gloo", "WORLD_SIZE": str(world), "TEMP_DIR": folder, "BATCHNORM_SUITE_ALL": "1"}
        _pytest(ROOT, str(Path("tests", "torch_suite", "sync_cases.py")), log, True, None, [], environment, names)
    return read(log)[0]


def read(log: Path) -> tuple[dict[str, Any], str | None]:
    """The results in a log, and the test that was running when it ended."""
    results: dict[str, Any] = {}
    running = None
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if "started" in entry:
            running = entry["started"]
        else:
            results[entry.pop("test")] = entry
            running = None
    return results, running


def _pytest(
    tests: Path,
    name: str,
    log: Path,
    ours: bool,
    only: list[str] | None,
    done: list[str],
    further: Mapping[str, str] = MappingProxyType({}),
    names: tuple[str, ...] = (),
) -> int:
    environment = {
        **os.environ,
        **further,
        "BATCHNORM_SUITE_LOG": str(log),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), str(tests), str(tests / "functorch")]),
    }
    environment.pop("BATCHNORM_SUITE_OURS", None)
    if ours:
        environment["BATCHNORM_SUITE_OURS"] = "1"
    command = [sys.executable, "-m", "pytest", "--noconftest", "-c", os.devnull, "--rootdir", str(tests), "-q"]
    command += ["-p", "no:cacheprovider", "-p", "tests.torch_suite.recorder", "--tb=short", name]
    if names:
        command += ["-k", " or ".join(names)]
    if only is not None:
        listed = log.with_suffix(".ids")
        listed.write_text("\n".join(only))
        environment["BATCHNORM_SUITE_ONLY"] = str(listed)
    else:
        command += [part for test in done for part in ("--deselect", test)]
    with log.with_suffix(".txt").open("a") as output:
        return subprocess.run(command, cwd=tests, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
