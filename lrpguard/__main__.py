"""``python -m lrpguard``."""

from lrpguard.cli import main

if __name__ == "__main__":
    main()
