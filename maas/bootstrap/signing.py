"""The key that signs bundles, put together."""

import logging

from maas.bootstrap.fleet import fleet_of
from maas.bootstrap.store import Store
from maas.core.errors import MaasError
from maas.core.settings import Settings
from maas.serving.exports.signing import KEY_FILE, BundleSigning

log = logging.getLogger(__name__)


def make_signing(settings: Settings, store: Store) -> BundleSigning:
    """Return the key of a store, as a home knows it."""
    return BundleSigning(fleet_of(settings, store).signing_keys, settings.home / KEY_FILE)


def prepare_signing(settings: Settings, store: Store) -> None:
    """Have the key in the store; what is wrong with it fails exports and nothing else."""
    try:
        make_signing(settings, store).prepare()
    except MaasError as error:
        log.error("no bundle can be signed: %s", error.message)
