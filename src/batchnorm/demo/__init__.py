"""The embedded data and the demonstration."""
