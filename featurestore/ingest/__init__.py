"""Ingest: from raw files or streams larger than memory to time-ordered partitions."""
