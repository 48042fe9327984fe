"""The methods that have a lattice, and ratios to draw for it."""

from hypothesis import settings
from hypothesis import strategies as st

SEARCHED = ["cser", "cser-release", "cser-pl", "qsparse"]
WHOLE = st.integers(1, 300)
RATIOS = st.one_of(WHOLE, st.decimals(1, 100, places=1)).map(float)
QUICK = settings(max_examples=25, deadline=None)
