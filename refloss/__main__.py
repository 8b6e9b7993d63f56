"""python -m refloss."""

from refloss.cli import main

if __name__ == "__main__":
    main()
