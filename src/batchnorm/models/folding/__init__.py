"""Absorb batch norm layers into the linear maps beside them, and prove it."""
