"""The systems of other papers, a file each: what each sends is part of it, so they take no compressor.

What runs here is held equal to the lines of `cser_ray.systems_paper` by tests.
"""
