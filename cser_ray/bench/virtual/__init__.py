"""What virtual workers cost on one device, and how results, bytes and times grow with their number."""
