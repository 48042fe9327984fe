"""CSER and its neighbours: communication-efficient optimizers, with an honest byte ledger."""
