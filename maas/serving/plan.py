"""From a deployment to what a replica starts: resolved, checked against the machine, frozen."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from maas.catalog.card import ModelCard
from maas.catalog.fit import FitReport, adapter_bytes, estimate_fit, num_replicas_that_fit
from maas.catalog.machine import Machine
from maas.catalog.weights.files import source_access
from maas.core.errors import ConfigError, DoesNotFit
from maas.core.settings import Settings
from maas.edge.export.architectures import PROVEN_ARCHITECTURES, is_proven
from maas.edge.export.form import prepare_form
from maas.engines.contract import EngineSpec
from maas.engines.prepare import PreparedModel, prepare_model
from maas.engines.registry import get_engine
from maas.engines.tuning import GPU_ONLY, QUANTISED_BY_ENGINE, Tuning, tune
from maas.finetune.whole_weights import engine_name_of, fetch_weights
from maas.serving.options import DeploymentOptions, parse_options
from maas.store.blobs import open_blobs
from maas.store.records import Deployment


@dataclass(frozen=True)
class DeploymentPlan:
    """What one deployment runs.

    Attributes:
        spec: Engine start, but for what only the replica knows: port and weights folder.
        card: Of the form of the weights that is served: its source is that form's.
        quantization: The form of the weights, or none.
        weights: Hash of weights that were tuned whole; none: the card's own.
        memory_bytes: What Ray sets aside for one replica.
        cache_dir: Compiled kernels and the like, kept between starts.
    """

    deployment_id: str
    model_id: str
    engine: str
    card: ModelCard
    quantization: str | None
    spec: EngineSpec
    num_gpus: int
    memory_bytes: int
    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float
    weights: str | None = None

    @property
    def digest(self) -> str:
        """Hash of everything that needs a new engine when it changes."""
        facts: dict[str, object] = {
            "engine": self.engine,
            "source": self.card.source,
            "sha256": self.card.sha256,
        }
        if self.weights is not None:
            facts["weights"] = self.weights
        text = json.dumps({**facts, "spec": asdict(self.spec)}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def num_replicas_text(self) -> str:
        """The replica bounds in words."""
        if self.min_replicas == self.max_replicas:
            return str(self.min_replicas)
        return f"{self.min_replicas} to {self.max_replicas}"

    def matches(self, deployment: Deployment) -> bool:
        """Say whether the deployment still asks for this (its options cannot change)."""
        wanted = (deployment.min_replicas, deployment.max_replicas)
        return (self.min_replicas, self.max_replicas) == wanted


def _check_ranks(options: DeploymentOptions, machine: Machine) -> None:
    """Refuse what needs more GPUs than there are: the engine would wait for them for ever.

    Raises:
        DoesNotFit: More tensor-parallel ranks than GPUs.
    """
    wanted = options.tensor_parallel_size
    if wanted > max(len(machine.gpus), 1):
        raise DoesNotFit(
            f"tensor_parallel_size {wanted} needs {wanted} GPUs and this machine has "
            f"{len(machine.gpus)}; set tensor_parallel_size to at most {max(len(machine.gpus), 1)}"
        )


def check_quantization(
    card: ModelCard, quantization: str | None, engine: str, machine: Machine | None = None
) -> None:
    """Refuse a quantisation nobody would apply: the engine would load the full weights.

    Args:
        card: The model.
        quantization: The form of the weights that is asked for.
        engine: Who should serve it.
        machine: Where; none leaves that open.

    Raises:
        ConfigError: The card has no such weights, and the engine does not make them; or it
            needs a GPU and there is none.
    """
    if quantization in GPU_ONLY and machine is not None and not machine.gpus:
        raise ConfigError(
            f"model {card.id}: quantization {quantization!r} needs a GPU, and there is none here",
            param="quantization",
        )
    if quantization is None or card.has_own_source(quantization):
        return
    made = QUANTISED_BY_ENGINE.get(engine, frozenset())
    if quantization in made:
        return
    own = {variant.name for variant in card.variants if variant.source}
    raise ConfigError(
        f"model {card.id}: nobody has quantization {quantization!r} of it for engine {engine}; "
        f"there are: {', '.join(sorted(own | made)) or 'none'}",
        param="quantization",
    )


def _check_bounds(deployment: Deployment) -> None:
    """Refuse autoscaling where nothing tells the load: it would never leave the minimum.

    Raises:
        ConfigError: The engine does not report its load and the bounds differ.
    """
    is_scaled = deployment.min_replicas != deployment.max_replicas
    if is_scaled and not get_engine(deployment.engine).capabilities.reports_load:
        raise ConfigError(
            f"engine {deployment.engine} does not report its load, so nothing can scale it from "
            f"{deployment.min_replicas} to {deployment.max_replicas}; give --min and --max the "
            "same value"
        )


def _check_replicas(
    fit: FitReport, machine: Machine, *, num_replicas: int, held_bytes: int
) -> None:
    """Refuse more replicas than this machine holds.

    Raises:
        DoesNotFit: One does not fit, or not so many; the message says how many would.
    """
    num_fitting = num_replicas_that_fit(fit, machine, held_bytes=held_bytes)
    if num_fitting >= num_replicas:
        return
    if num_fitting == 0:
        raise DoesNotFit(f"{fit.model_id} does not fit: {fit.reason}; " + "; ".join(fit.advice))
    if machine.gpus:
        sizes = f"each takes {fit.num_gpus} of the {len(machine.gpus)} GPUs"
    else:
        room = (fit.available_bytes + held_bytes) / 2**30
        sizes = f"each needs {fit.total_bytes / 2**30:.2f} GiB of {room:.2f} GiB"
    raise DoesNotFit(
        f"{fit.model_id}: {num_replicas} replicas do not fit on this machine: {sizes}; "
        f"{num_fitting} would fit"
    )


def size_up(
    card: ModelCard, machine: Machine, options: DeploymentOptions, *, engine: str
) -> tuple[Tuning, FitReport]:
    """Choose how an engine is started here, and say what that takes.

    The one computation behind ``maas model check`` and every start, so that the numbers of the
    first are those of the second.

    Args:
        card: The model.
        machine: Where it should run.
        options: What the operator said.
        engine: Which one would serve it.
    """
    tuning = tune(card, machine, options, engine=engine)
    spec = tuning.spec
    each = adapter_bytes(
        card,
        r=spec.max_lora_rank,
        dtype=card.dtype if tuning.dtype == "auto" else tuning.dtype,
    )
    fit = estimate_fit(
        card,
        machine,
        dtype=tuning.dtype,
        quantization=options.quantization,
        max_model_len=tuning.max_model_len,
        max_num_seqs=tuning.max_num_seqs,
        kv_cache_bytes=tuning.spec.kv_cache_bytes,
        # On a GPU the cache is what the weights leave; it starts if one sequence has room.
        num_full_seqs=1,
        tensor_parallel_size=options.tensor_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        # Those kept ready are in the machine's memory, which on a GPU is another one.
        adapters_bytes=each * (spec.max_loras + (0 if machine.gpus else spec.max_cpu_loras)),
    )
    return tuning, fit


def make_plan(
    deployment: Deployment,
    card: ModelCard,
    machine: Machine,
    *,
    num_to_fit: int = 1,
    held_bytes: int = 0,
) -> DeploymentPlan:
    """Resolve a deployment against its card and this machine.

    Args:
        deployment: What should run.
        card: Its model.
        machine: Where it should run.
        num_to_fit: Replicas that must fit; 0 for what runs already.
        held_bytes: Memory that replicas of it hold already.

    Raises:
        ConfigError: The card's engines do not include the wanted one, or the onnx engine runs no
            model of its class, or an option is wrong.
        DoesNotFit: It needs more memory or GPUs than there are; the message has the numbers.
    """
    if deployment.engine not in card.engines:
        raise ConfigError(
            f"model {card.id}: engine {deployment.engine!r} cannot serve it; its card names "
            f"{', '.join(card.engines)}"
        )
    if deployment.engine == "onnx" and not is_proven(card.architecture):
        raise ConfigError(
            f"model {card.id}: engine 'onnx' runs no {card.architecture}; it runs "
            f"{', '.join(PROVEN_ARCHITECTURES)}"
        )
    options = parse_options(dict(deployment.options))
    _check_ranks(options, machine)
    check_quantization(card, options.quantization, deployment.engine, machine)
    _check_bounds(deployment)
    tuning, fit = size_up(card, machine, options, engine=deployment.engine)
    _check_replicas(fit, machine, num_replicas=num_to_fit, held_bytes=held_bytes)
    spec = tuning.spec
    if options.weights is not None:
        # No engine of another model answers to it, whatever address a request is sent to.
        spec = replace(spec, served_model_name=engine_name_of(options.weights))
    return DeploymentPlan(
        deployment_id=deployment.id,
        model_id=deployment.model_id,
        engine=deployment.engine,
        card=card.form(options.quantization),
        quantization=options.quantization,
        spec=spec,
        num_gpus=options.tensor_parallel_size if machine.gpus else 0,
        memory_bytes=0 if machine.gpus else fit.total_bytes,
        min_replicas=deployment.min_replicas,
        max_replicas=deployment.max_replicas,
        target_ongoing_requests=options.target_ongoing_requests,
        weights=options.weights,
    )


def prepare_weights(
    plan: DeploymentPlan, settings: Settings, report: Callable[[str], None] = lambda _: None
) -> PreparedModel:
    """Make the plan's weights ready on this machine; milliseconds when they are.

    Raises:
        WeightsError: They cannot be had, are damaged, or must not be used.
        CapabilityMissing: The engine wants their ONNX form, and their class has none.
        EngineError: That form could not be made.
        DiskFull: No room for them.
        NotFound: They were tuned, and are not stored any more.
    """
    prepared = plain_weights(plan, settings, report)
    if plan.engine != "onnx":
        return prepared
    return replace(prepared, model_dir=prepare_form(prepared.model_dir, settings.forms_dir, report))


def plain_weights(
    plan: DeploymentPlan, settings: Settings, report: Callable[[str], None] = lambda _: None
) -> PreparedModel:
    """Make the plan's weights ready as they are tuned and checked: safetensors.

    Raises:
        WeightsError: They cannot be had, are damaged, or must not be used.
        DiskFull: No room for them.
        NotFound: They were tuned, and are not stored any more.
    """
    if plan.weights is not None:
        report("fetching the tuned weights")
        return fetch_weights(open_blobs(settings), plan.weights, settings.tuned_weights_dir)
    return prepare_model(
        plan.card,
        weights_dir=settings.weights_dir,
        quantization=plan.quantization,
        progress=lambda progress: report(str(progress)),
        allow_remote_code=settings.allow_remote_code,
        allow_pickle=settings.allow_pickle,
        access=source_access(settings),
    )
