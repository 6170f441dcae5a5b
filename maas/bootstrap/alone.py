"""One process of the platform on its own: a second gateway or controller beside ``maas up``."""

import os
import sys
from typing import NoReturn

from maas.bootstrap.store import save_settings
from maas.core.errors import ConfigError
from maas.core.host import check_port
from maas.core.settings import Settings
from maas.serving.cluster import cluster_address, ray_environment


def become_gateway(settings: Settings) -> NoReturn:
    """Turn this process into a gateway.

    Raises:
        PortTaken: Something else listens on its port, or on that of its metrics.
    """
    check_port(settings.host, settings.port, setting="MAAS_PORT")
    check_port("127.0.0.1", settings.metrics_port, setting="MAAS_METRICS_PORT")
    _become("maas.bootstrap.gateway", settings, name=f"gateway-{settings.port}")


def become_controller(settings: Settings) -> NoReturn:
    """Turn this process into a controller.

    Raises:
        ConfigError: There is no Ray cluster for it to control.
    """
    if cluster_address(settings) is None:
        raise ConfigError(
            "a controller of its own needs a Ray cluster: set MAAS_SERVING__RAY_ADDRESS "
            f"(or start `maas up` on {settings.home} first)",
            param="serving.ray_address",
        )
    os.environ.update(ray_environment(settings))
    _become("maas.bootstrap.controller", settings, name="controller")


def _become(module: str, settings: Settings, *, name: str) -> NoReturn:
    # Not imported: the command line must not load Ray to show its help.
    settings_file = save_settings(settings, name=name)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, str(settings_file)])  # noqa: S606 - ours
