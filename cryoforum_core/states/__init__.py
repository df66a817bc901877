"""Particles in another state of the molecule: which they are, their share, and maps of both states."""
