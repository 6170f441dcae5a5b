"""The Ray head's process: ``python -m maas.bootstrap.head SETTINGS_FILE``."""

import sys

from maas.bootstrap.child import begin
from maas.serving.head import run_head

if __name__ == "__main__":
    sys.exit(run_head(begin()))
