"""What a controller does before it has a cluster to control."""

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from maas.bootstrap.signing import make_signing
from maas.bootstrap.store import open_store, save_settings
from maas.core.settings import Settings
from maas.edge.runtime.bundle.signing import load_or_make_key, public_key_of
from maas.serving.exports.signing import KEY_FILE


def test_a_home_s_key_of_bundles_is_the_store_s_when_its_controller_starts(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    trusted = public_key_of(load_or_make_key(tmp_path / KEY_FILE))
    store = open_store(settings)
    keys = make_signing(settings, store).keys
    command = [sys.executable, "-m", "maas.bootstrap.controller", str(save_settings(settings))]
    with (
        closing(store.database),
        subprocess.Popen(command, stderr=subprocess.PIPE) as controller,
    ):
        deadline = time.monotonic() + 60
        while keys.find_public() is None and time.monotonic() < deadline:
            assert controller.poll() is None
            time.sleep(0.05)
        controller.kill()
        assert keys.find_public() == trusted
