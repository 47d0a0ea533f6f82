"""The passes and the whole step on a CUDA device, in Triton: the third speaker of the one rule, after C++ and torch."""
