"""``python -m hpcdeq`` is the same as the ``hpcdeq`` command."""

from hpcdeq.cli import main

if __name__ == "__main__":
    main()
