"""Why a test that passes on torch's classes does not on this package's: the words of the table in the docs.

The first line whose patterns are found in the test's id and in its message holds. Without one a failure is a fault.
"""

import re

_EXACT = "torch's tool knows torch's exact classes; `to_stock(model)` first, and it works"
REASONS: tuple[tuple[str, str, str], ...] = (
    ("test_fuse_eager|quantized_module|quantization", "fuser method|QuantizedCPU", _EXACT),
    ("jit/", "Unknown type annotation|to_stock", "`torch.jit.script`: " + _EXACT),
    (
        "jit/.*bn_folding",
        'find "aten::batch_norm"',
        "its layer without running statistics is traced as the operations it runs; there is nothing to fold in it",
    ),
    ("test_fx_experimental", "module_fetch_book", _EXACT),
    (
        "test_aotdispatch.*BatchNorm.*_eval_mode",
        "Gradients of the operator are different",
        "its loss is |sum of y|, which is 0 but for rounding with the batch's statistics; rounding gives its sign",
    ),
    (
        "test_buffer_batch_norm|predispatch_conv_and_bn",
        "def forward",
        "asserts the text of the graph of torch's kernel; here the same step is spelled in other operations",
    ),
    (
        "test_errors_nn_BatchNorm",
        "eps must be 0 or more",
        "wants a negative eps to be refused by the first forward; here the constructor refuses it",
    ),
    ("SyncBatchNorm_process_group", "", "asks for the attribute `process_group`; here it is `recipe.extent.group`"),
)


def reason_for(test: str, message: str) -> str | None:
    """Why this failure cannot be helped, or None where it is a fault."""
    for where, what, reason in REASONS:
        if re.search(where, test) and re.search(what, message):
            return reason
    return None
