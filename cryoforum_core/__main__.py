"""``python -m cryoforum_core`` is the command ``cryoforum``."""

from .cli import main

if __name__ == "__main__":
    main()
