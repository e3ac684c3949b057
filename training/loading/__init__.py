"""Order, packs, batches and prefetching: from a dataset part to arrays."""
