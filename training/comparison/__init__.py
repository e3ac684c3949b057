"""Does a feature help? Variants of a training, run over the same folds and seeds, and what differs."""
