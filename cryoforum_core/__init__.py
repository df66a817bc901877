"""cryoforum: orientations of cryo-EM particles, with an uncertainty."""

__version__ = "0.1.0"
