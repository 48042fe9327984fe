"""The results folder: what a row means, how rows are read and written, checkpoints and models beside them.

Neither torch nor ray is needed to read results: `rows`, `read`, `write` and `folder` import neither.
"""
