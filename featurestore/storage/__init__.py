"""Bytes on disk: object stores, snapshots, commits, column groups and tensor groups."""
