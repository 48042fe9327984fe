"""Hosts made on this machine: network namespaces joined by shaped links, and Ray clusters on them."""
