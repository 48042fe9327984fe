"""Starts the probe in every Python of the command that doctor runs, then whatever sitecustomize it stands before.

It must do no harm in any interpreter: whatever fails here is dropped, and doctor says that no process answered.
"""

import os
import sys


def _next_one() -> None:
    """Run the sitecustomize that this one hides, as if it were not there."""
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _probe() -> None:
    if os.environ.get("CSER_RAY_DOCTOR"):
        try:
            from cser_ray.doctor.watch import install
        except Exception:  # another Python, without cser-ray
            return
        install()


_probe()
_next_one()
