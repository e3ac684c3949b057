"""The plan: which features need which, what is fresh, and what a build would cost."""
