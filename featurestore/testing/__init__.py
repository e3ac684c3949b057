"""Strategies, oracles and contract suites that tests of this and other packages may use."""
