"""Instruments that measure memory; nothing in the core imports them."""
