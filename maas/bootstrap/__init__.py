"""The only place that wires things together: one module a process.

``store`` is light and shared; ``gateway``, ``controller``, ``head`` and ``up`` each import
what their process needs and nothing more (a gateway with Ray in it would weigh three times
as much).
"""

from maas.bootstrap.store import Store, open_store, resolve_settings

__all__ = ["Store", "open_store", "resolve_settings"]
