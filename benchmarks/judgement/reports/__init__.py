"""Public reports of batch norm trouble, rebuilt small, and what the package says about each."""
