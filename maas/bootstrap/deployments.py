"""Making a deployment: everything that can be refused is refused here, before it is written."""

from collections.abc import Mapping
from typing import Any

from maas.bootstrap.store import Store
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import probe_machine
from maas.core.errors import ConfigError
from maas.core.settings import Settings
from maas.engines.external import declared
from maas.engines.registry import get_engine
from maas.serving.options import parse_options
from maas.serving.plan import make_plan
from maas.store.records import Deployment
from maas.store.secrets import SecretBox
from maas.store.state import ensure_project


def create_deployment(  # noqa: PLR0913 - what a deployment is made of
    settings: Settings,
    store: Store,
    *,
    model_id: str,
    engine: str | None,
    options: Mapping[str, Any],
    secret: str | None = None,
    replicas: tuple[int, int] = (1, 1),
) -> Deployment:
    """Write down that a model should run.

    Args:
        settings: The platform's settings.
        store: Where it is written.
        model_id: A card of the catalogue; for an external engine any name.
        engine: None takes the first engine of the card.
        options: See ``maas.serving.options.DeploymentOptions``.
        secret: Of an external engine; stored sealed.
        replicas: Fewest and most.

    Raises:
        ModelNotFound: No card has this id.
        ConfigError: An option makes no sense, or the model does not fit (DoesNotFit).
    """
    sealed = {} if secret is None else {"secret": SecretBox(settings.home).seal(secret)}
    checked = parse_options({**options, **sealed}).model_dump(mode="json", exclude_defaults=True)
    if engine == "external":
        _check_external(options)
    else:
        engine = _check_local(settings, model_id, engine, checked, replicas)
    return store.deployments.create(
        project_id=ensure_project(store.database, store.clock),
        model_id=model_id,
        engine=engine,
        options=checked,
        min_replicas=replicas[0],
        max_replicas=replicas[1],
    )


def _check_local(
    settings: Settings,
    model_id: str,
    engine: str | None,
    options: Mapping[str, Any],
    replicas: tuple[int, int],
) -> str:
    """Make the plan the controller will make; return the engine it names."""
    card = load_catalog(settings.models_dir).get_card(model_id)
    engine = get_engine(engine or card.engines[0]).name
    wanted = Deployment(
        id="new",
        project_id="",
        model_id=model_id,
        engine=engine,
        options=options,
        min_replicas=replicas[0],
        max_replicas=replicas[1],
        created_at=0.0,
    )
    # A cluster's nodes are not this machine: there the placement decides.
    is_here = settings.serving.ray_address is None
    make_plan(wanted, card, probe_machine(settings.weights_dir), check_fit=is_here)
    return engine


def _check_external(options: Mapping[str, Any]) -> None:
    if not options.get("url"):
        raise ConfigError("engine 'external' needs --url, the base URL of a running server")
    declared(options.get("capabilities") or {})
