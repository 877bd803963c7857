"""One cell -> one trained policy."""
