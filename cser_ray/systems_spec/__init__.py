"""The systems of `cser_ray.optimizers.systems` as they are defined: all n workers in one `[n, d]` tensor, no collectives.

Executable specifications, as `cser_ray.paper` is for CSER: each yields the models x and what waits beside them, both
`[n, d]`, after every step t = 1, 2, ... What runs is held equal to them by tests.
"""
