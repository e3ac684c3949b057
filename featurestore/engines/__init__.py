"""Engines run a partition: Polars on a CPU, cuDF on a GPU, behind one small protocol.

Kernels (windows, joins, ranks, hashing) are written once, over an array module that is NumPy on a
CPU and CuPy on a GPU; an engine only moves columns between its frames and such arrays. So the
result cannot depend on the engine.
"""
