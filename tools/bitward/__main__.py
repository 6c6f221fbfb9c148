"""``python -m bitward``: the command line."""

from bitward.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
