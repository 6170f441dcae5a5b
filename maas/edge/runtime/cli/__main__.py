"""``python -m maas.edge.runtime.cli`` is ``maas-edge``."""

from maas.edge.runtime.cli.main import main

main()
