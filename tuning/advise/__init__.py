"""`cser-ray plan`: whether to compress, with what, and what it gains, from a model of a step's time and from a study."""
