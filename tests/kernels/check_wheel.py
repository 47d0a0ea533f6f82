"""Whether a wheel's name and contents, and those of its sdist, are what they should be: run by `make wheel`."""

import sys
import tarfile
import zipfile

wheel, sdist = sys.argv[1:]
python = sys.version_info
tag = "cp312-abi3" if python >= (3, 12) else f"cp{python.major}{python.minor}-cp{python.major}{python.minor}"
assert tag in wheel, f"the wheel must be tagged {tag}; it is {wheel}"
names = zipfile.ZipFile(wheel).namelist()
extensions = [name for name in names if name.endswith((".so", ".pyd"))]
assert len(extensions) == 1, extensions
assert extensions[0].startswith("batchnorm/kernels/_native"), extensions
assert not any("gomp" in name for name in names), "torch brings the OpenMP runtime"
for needed in ("batchnorm/py.typed", "batchnorm/demo/digits.npz", "licenses/LICENSE"):
    assert any(name.endswith(needed) for name in names), needed
print(wheel, "holds", extensions[0])

with tarfile.open(sdist) as archive:
    sources = {name.split("/", 1)[-1] for name in archive.getnames()}
assert not any(name.endswith((".so", ".pyd", ".a")) for name in sources), "an sdist holds sources alone"
for needed in ("native/CMakeLists.txt", "src/batchnorm/__init__.py", "tests/conftest.py", "Makefile", "PKG-INFO"):
    assert needed in sources, needed
print(sdist, "holds", len(sources), "files")
