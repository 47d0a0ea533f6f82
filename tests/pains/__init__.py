"""A test for each thing that users of running statistics suffer from; the scripts of examples/gallery are used here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
