"""The optimizers inside other people's training loops: one module a framework, imported only by who uses it."""
