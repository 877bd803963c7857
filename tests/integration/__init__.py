"""Whole jobs through the command, as a user runs them. Slow."""
