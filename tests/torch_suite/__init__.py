"""PyTorch's own tests of batch norm, run against this package's classes: `make torch-suite SOURCE=...`."""
