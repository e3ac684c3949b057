"""Loading: the order of an epoch, the pack rows are read from, the loader that joins them."""
