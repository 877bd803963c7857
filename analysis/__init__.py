"""Runs -> tables. Reads a store's files alone: no server, torch, ray or training code."""
