"""Making a deployment: everything that can be refused is refused here, before it is written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from maas.bootstrap.store import Store
from maas.catalog.card import ModelCard
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Machine, probe_machine
from maas.core.errors import ConfigError
from maas.core.settings import Settings
from maas.edge.export.architectures import is_proven
from maas.engines.external import declared
from maas.engines.registry import get_engine
from maas.serving.options import parse_options
from maas.serving.plan import make_plan
from maas.store.adapters import TunedState
from maas.store.deployments import check_bounds
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
        engine: None takes ``default_engine``.
        options: See ``maas.serving.options.DeploymentOptions``.
        secret: Of an external engine; stored sealed.
        replicas: Fewest and most.

    Raises:
        ModelNotFound: No card has this id.
        ConfigError: An option makes no sense, or the model does not fit (DoesNotFit).
    """
    given = {"base_model", "weights"} & options.keys()
    if given:
        raise ConfigError(f"option {min(given)!r} is not for operators: name the tuned model")
    project_id, of_weights = _whole_weights(store, model_id)
    sealed = {} if secret is None else {"secret": SecretBox(settings.home).seal(secret)}
    checked = parse_options({**options, **sealed, **of_weights}).model_dump(
        mode="json", exclude_defaults=True
    )
    if engine == "external":
        _check_external(options)
    else:
        engine = _check_local(settings, model_id, engine, checked, replicas)
    return store.deployments.create(
        project_id=project_id or ensure_project(store.database, store.clock),
        model_id=model_id,
        engine=engine,
        options=checked,
        min_replicas=replicas[0],
        max_replicas=replicas[1],
    )


def _whole_weights(store: Store, model_id: str) -> tuple[str | None, dict[str, Any]]:
    """Return project and options of a model that was tuned whole; nothing for any other."""
    model = store.tuned_models.find(model_id)
    is_whole = model is not None and model.weights_key is not None
    if model is None or not is_whole or model.deleted_at is not None:
        return None, {}
    if model.state is not TunedState.PUBLISHED:
        raise ConfigError(f"{model_id} is not published: its job decides where it runs")
    weights = str(model.weights_key).rpartition("/")[2]
    options = {"base_model": model.base_model_id, "weights": weights, "max_loras": 0}
    return model.project_id, options


def _check_local(
    settings: Settings,
    model_id: str,
    engine: str | None,
    options: Mapping[str, Any],
    replicas: tuple[int, int],
) -> str:
    """Check a deployment of the catalogue; return the engine it gets."""
    check_bounds(*replicas)
    card_id = str(options.get("base_model") or model_id)
    card = load_catalog(settings.models_dir).get_card(card_id)
    engine = get_engine(engine or default_engine(card, probe_machine(settings.weights_dir))).name
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
    # All that it may ever have: what is promised now is not refused under load.
    _check_plan(settings, wanted, num_to_fit=replicas[1])
    return engine


def default_engine(card: ModelCard, machine: Machine) -> str:
    """Return the engine a model gets where nobody names one.

    On processors ours over onnxruntime, where the card says it can and its graphs are proven: it
    starts in seconds and is several times as fast for one user. Else the card's first.
    """
    if not machine.gpus and "onnx" in card.engines and is_proven(card.architecture):
        return "onnx"
    return card.engines[0]


def _check_plan(
    settings: Settings, wanted: Deployment, *, num_to_fit: int, held_bytes: int = 0
) -> None:
    """Make the plan the controller will make; what it refuses is refused here."""
    # A cluster's nodes are not this machine: there the placement decides.
    is_here = settings.serving.ray_address is None
    make_plan(
        wanted,
        load_catalog(settings.models_dir).get_card(wanted.card_id),
        probe_machine(settings.weights_dir),
        num_to_fit=num_to_fit if is_here else 0,
        held_bytes=held_bytes,
    )


def scale_deployment(
    settings: Settings, store: Store, deployment_id: str, *, min_replicas: int, max_replicas: int
) -> Deployment:
    """Write down how many replicas a deployment should have.

    Only what is asked for on top is judged: asking for fewer is never refused.

    Raises:
        NotFound: There is no such deployment.
        ConfigError: The bounds make no sense, or so many do not fit (DoesNotFit).
    """
    deployment = store.deployments.get(deployment_id)
    check_bounds(min_replicas, max_replicas)
    if deployment.engine != "external":
        wanted = replace(deployment, min_replicas=min_replicas, max_replicas=max_replicas)
        num_to_fit = min_replicas if min_replicas > deployment.min_replicas else 0
        if max_replicas > deployment.max_replicas:
            num_to_fit = max_replicas
        held = [r.memory_bytes for r in store.replicas.live() if r.deployment_id == deployment_id]
        _check_plan(settings, wanted, num_to_fit=num_to_fit, held_bytes=sum(held))
    return store.deployments.scale(
        deployment_id, min_replicas=min_replicas, max_replicas=max_replicas
    )


def _check_external(options: Mapping[str, Any]) -> None:
    if not options.get("url"):
        raise ConfigError("engine 'external' needs --url, the base URL of a running server")
    declared(options.get("capabilities") or {})
