"""``python -m bitward``: the command line."""

from bitward.cli import entry

if __name__ == "__main__":
    entry()
