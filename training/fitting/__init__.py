"""Kinds of models: what a run trains, saves, loads and predicts with, built on the hooks of the frameworks."""
