"""What a study asks: its cells and candidates, the lattice they are taken from, its stages, and what it may spend."""
