"""A training run: what the running statistics do, step by step."""
