"""Trainers and tools of others: one small adapter a library, imported by the one who uses it.

Each module can be imported without its library, which is asked for by name when it is needed.
"""
