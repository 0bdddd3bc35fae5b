"""`python -m probe`."""

from probe.cli import entry_point

if __name__ == "__main__":
    entry_point()
