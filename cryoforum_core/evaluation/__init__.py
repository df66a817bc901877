"""Poses and maps against known ones, and the self-test of an installation."""
