"""The tree that PyTorch's test files are read from: a checkout, or a tarball such as that of Debian's `pytorch`."""

import re
import tarfile
from pathlib import Path

# What the tests import beside torch itself.
_NEEDED = re.compile(r"^(?:[^/]+/)?((?:test|tools)/.*)$")


def folder_of_tests(source: Path, into: Path) -> Path:
    """The folder `test/` of a checkout, or of a tarball, which is unpacked into `into` where it is not yet."""
    if source.is_dir():
        folder = source if (source / "test_nn.py").exists() else source / "test"
    else:
        folder = into / "source" / "test"
        if not folder.exists():
            _unpack(source, into / "source")
    if not (folder / "test_nn.py").exists():
        raise SystemExit(f"--source must be a PyTorch source tree or a tarball of one; {source} has no test/test_nn.py")
    return folder


def _unpack(tarball: Path, into: Path) -> None:
    with tarfile.open(tarball) as archive:
        for member in archive:
            found = _NEEDED.match(member.name)
            if found and member.isfile():
                member.name = found[1]
                archive.extract(member, into, filter="data")
