"""``python -m maas``: the ``maas`` command."""

from maas.cli.main import main

if __name__ == "__main__":
    main()
