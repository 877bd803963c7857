"""Measurements for people to read: not tests, for a machine may be slow or busy."""
