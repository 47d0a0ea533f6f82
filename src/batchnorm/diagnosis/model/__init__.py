"""A live model: what its layers store, what they receive, and what the difference does."""
