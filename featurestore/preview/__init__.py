"""A feature looked at before it is built: computed on a few partitions, and judged there."""
