"""A cluster in an inventory of its own, without switches: for questions about it.

It comes from a directory of manifests, or is a copy of what a controller knows.
"""
