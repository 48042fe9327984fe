"""Training one trial: its configuration, the worker loop, and the Ray Train run around it."""
