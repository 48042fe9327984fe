"""How messages move between workers, and what that puts on the wire: the communicators and the byte ledger."""
