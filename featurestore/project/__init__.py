"""Definitions as code: a folder whose ``features.py`` says what a store is to hold."""
