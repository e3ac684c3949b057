"""Execution: partitions worked on through Dask, journalled as they finish."""
