"""Training from a golden set: loaders, framework hooks, runs."""
