"""Keras reads its backend when it is first imported."""

import importlib.util
import os

os.environ.setdefault("KERAS_BACKEND", "jax" if importlib.util.find_spec("jax") else "torch")
