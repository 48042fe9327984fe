"""Measured rows as text and CSV, and what a number stands with: date, commit, hardware, versions."""
