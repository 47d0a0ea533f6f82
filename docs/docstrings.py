"""Docstrings of this package say `Example:`; the documentation builder knows `Examples:` and shows it as code."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Give the section the name that the builder knows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
