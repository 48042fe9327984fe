"""A training loop of the user's own as the unit of a study: what it receives, records and resumes. No Ray in here."""

from cser_ray.own_loop.run import Run

__all__ = ["Run"]
