"""The command line as a person runs it: in a process of its own, in a folder of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes import CONTEXT


def run(folder, *arguments):
    """Run `batchnorm` with these arguments there: what it printed, and its exit code."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = CONTEXT.Process(target=_main, args=(folder, list(arguments), out, err, dict(os.environ)))
        process.start()
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _main(folder, arguments, out, err, environment):
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # As `python -m batchnorm` does.
    sys.path.insert(0, os.getcwd())
    sys.argv = ["batchnorm", *arguments]
    from batchnorm.cli import main

    main()
