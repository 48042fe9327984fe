"""Tune method, structure and learning rate under a fixed communication budget, and compare the methods fairly."""
