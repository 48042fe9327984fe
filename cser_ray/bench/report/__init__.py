"""Measured rows as text and CSV, and what is printed beside a number: date, commit, hardware, versions."""
