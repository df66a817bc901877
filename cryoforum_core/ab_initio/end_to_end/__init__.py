"""The end-to-end method, CryoPoseNet."""
