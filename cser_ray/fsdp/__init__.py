"""FSDP2 inside a host, our method between hosts: flat vectors of the shards that `fully_shard` has made.

A worker is a host: s processes, each with one shard of every parameter. FSDP averages gradients inside the host. Each
process has a flat vector of its own shards, and averages it with the processes that hold the same shards elsewhere.

FSDP gathers a parameter from memory of its own, padded to the same length on every process. Here that memory becomes part
of the flat vector, padding included: nothing is held twice, and all processes of a host have vectors of one length, so
that they draw the same blocks and send the same bytes.
"""
