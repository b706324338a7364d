"""Bound trees: names resolved, types decided, functions chosen."""
