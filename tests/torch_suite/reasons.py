"""Why a test that passes on torch's classes does not on this package's: the words of the table in the docs.

The first line whose patterns are found in the test's id and in its message holds. Without one a failure is a fault.
"""

import re

_EXACT = "torch's tool knows torch's exact classes; `to_stock(model)` first, and it works"
REASONS: tuple[tuple[str, str, str], ...] = (
    ("test_fuse_eager|quantized_module|quantization", "fuser method|Cannot fuse|exact type|batchnorm.layers", _EXACT),
    ("jit/", "Unknown type annotation|Compiled functions can't|to_stock", "`torch.jit.script`: " + _EXACT),
    ("test_fx_experimental.*(fuse|fusion|optimize)", "", _EXACT),
    ("SyncBatchNorm_process_group", "", "asks for the attribute `process_group`; here it is `recipe.extent.group`"),
)


def reason_for(test: str, message: str) -> str | None:
    """Why this failure cannot be helped, or None where it is a fault."""
    for where, what, reason in REASONS:
        if re.search(where, test) and re.search(what, message):
            return reason
    return None
