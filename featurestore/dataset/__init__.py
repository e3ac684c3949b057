"""Datasets: a selection of features, label, rows and splits at one snapshot; lazy."""
