"""The end-to-end method (CryoPoseNet): encoder and map are trained together."""
