"""Transformers: specifications of features, each a small monoid plus a function."""
