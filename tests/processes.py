"""Processes of their own for tests: one server imports the package once, and each process is a fork of it."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
# Before the first process starts, whichever tests start it; a fork then takes a tenth of a second.
multiprocessing.set_forkserver_preload(
    ["batchnorm.cli", "torch.nn.parallel", "torch.utils.checkpoint", "torch._dynamo"]
)
