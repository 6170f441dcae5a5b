"""What every process under the supervisor does first: settings, logging, lifeline."""

import logging
import sys
from pathlib import Path

from maas.bootstrap.store import read_settings
from maas.core.lifeline import LIFELINE_FLAG, end_with_parent
from maas.core.settings import Settings


def begin() -> Settings:
    """Read ``sys.argv`` (settings file, optional lifeline flag) and set up the process."""
    settings = read_settings(Path(sys.argv[1]))
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if LIFELINE_FLAG in sys.argv:
        end_with_parent()
    return settings
