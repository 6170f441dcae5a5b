"""The one error tree of the platform.

Messages say what was wrong, where (file, line, field) and what to do. HTTP statuses are
not known here: ``maas.gateway.errors`` maps each type to a status once, at the edge.

    MaasError
    ├── InvalidRequest              the caller sent something we refuse
    │   ├── MalformedBody           not JSON, or nested too deep
    │   ├── UnknownField            a field the API does not have
    │   ├── ForbiddenField          a field that reaches past the API into the engine
    │   ├── PayloadTooLarge         body over the size limit
    │   ├── RequestTimedOut         its body did not arrive in time
    │   ├── PromptTooLong           prompt + max_tokens over the model's context
    │   └── CapabilityMissing       the engine, or the machine, cannot do what was asked
    ├── AuthenticationFailed        no key, an unknown key, a revoked key
    │   ├── KeyExpired              the key's time is over
    │   ├── AddressNotAllowed       the key is not for the network the caller is in
    │   └── InvalidEnrolmentCode    the code makes no device: unknown, used or expired
    ├── PermissionDenied            the key may not do this
    │   ├── ModelNotAllowed         the key is not for this model
    │   ├── EndpointNotAllowed      the key is not for this route
    │   └── AccessWithdrawn         the key's project or owner is no more
    ├── NotFound                    no such thing
    │   └── ModelNotFound           no such model
    ├── Conflict                    the thing is in a state that forbids this
    │   ├── IdempotencyKeyReused    the same Idempotency-Key came with another request
    │   ├── AnswerNotKept           the first answer to this request was too long to be kept
    │   └── Superseded              a job has another runner now, or is over
    ├── LimitExceeded               a limit was reached; the message names it
    │   └── BudgetExceeded          a budget was
    ├── Unavailable                 try again later
    │   ├── NoReplica               nothing is ready to serve this model
    │   ├── EngineOverloaded        an engine has no room for one more request
    │   ├── StoreUnavailable        the database does not answer, or is busy for too long
    │   └── StorageUnavailable      the storage of files and adapters does not answer
    ├── EngineError                 an engine failed
    │   ├── BuildFailed             no graph can be made of a model; the next try would fail too
    │   ├── EngineStartFailed       it exited or never became ready
    │   └── EngineUnreachable       it did not answer, or stopped half way
    ├── ConfigError                 settings, a model card or a recipe is wrong
    │   └── DoesNotFit              the model does not fit this machine
    ├── DataRefused                 training data cannot be used; the report lists why
    ├── AdapterRefused              an adapter is not safe, or does not fit its base
    ├── BundleRefused               a bundle is not what its maker signed, or keeps too little
    ├── TrainingFailed              training ended without a model
    │   └── ReceiptFailed           the tuned model answers differently where it is served
    ├── WeightsError                weights could not be had
    │   ├── WeightsCorrupt          bytes differ from their recorded hash
    │   ├── WeightsForbidden        pickles or remote code, and nobody allowed them
    │   └── SourceUnreachable       the place they come from did not answer
    └── HostError                   this machine cannot do what was asked
        ├── PortTaken               something else listens there
        ├── DiskFull                not enough room
        └── AlreadyRunning          another platform uses this MAAS_HOME
"""

from typing import Any, ClassVar


class MaasError(Exception):
    """Root of the tree.

    Attributes:
        code: The machine-readable name that goes on the wire.
        message: What was wrong, where, and what to do.
        context: Facts for logs and for the wire (``param``, ``retry_after_s``).
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders (Ray); the default would drop the context.
        return (_rebuild, (type(self), self.message, self.context))


def _rebuild(kind: type[MaasError], message: str, context: dict[str, Any]) -> MaasError:
    return kind(message, **context)


class InvalidRequest(MaasError):
    code = "invalid_request"


class MalformedBody(InvalidRequest):
    code = "malformed_body"


class UnknownField(InvalidRequest):
    code = "unknown_field"


class ForbiddenField(InvalidRequest):
    code = "forbidden_field"


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"


class RequestTimedOut(InvalidRequest):
    code = "request_timeout"


class PromptTooLong(InvalidRequest):
    code = "context_length_exceeded"


class CapabilityMissing(InvalidRequest):
    code = "capability_missing"


class AuthenticationFailed(MaasError):
    code = "invalid_api_key"


class KeyExpired(AuthenticationFailed):
    code = "api_key_expired"


class AddressNotAllowed(AuthenticationFailed):
    code = "ip_not_authorized"


class InvalidEnrolmentCode(AuthenticationFailed):
    code = "invalid_enrolment_code"


class PermissionDenied(MaasError):
    code = "permission_denied"


class ModelNotAllowed(PermissionDenied):
    code = "model_not_allowed"


class EndpointNotAllowed(PermissionDenied):
    code = "endpoint_not_allowed"


class AccessWithdrawn(PermissionDenied):
    code = "access_withdrawn"


class NotFound(MaasError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(MaasError):
    code = "conflict"


class IdempotencyKeyReused(Conflict):
    code = "idempotency_key_reused"


class AnswerNotKept(Conflict):
    code = "answer_not_kept"


class Superseded(Conflict):
    code = "superseded"


class LimitExceeded(MaasError):
    code = "rate_limit_exceeded"


class BudgetExceeded(LimitExceeded):
    code = "insufficient_quota"


class Unavailable(MaasError):
    code = "unavailable"


class NoReplica(Unavailable):
    code = "no_replica"


class EngineOverloaded(Unavailable):
    code = "engine_overloaded"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class EngineError(MaasError):
    code = "engine_error"


class BuildFailed(EngineError):
    code = "build_failed"


class EngineStartFailed(EngineError):
    code = "engine_start_failed"


class EngineUnreachable(EngineError):
    code = "engine_unreachable"


class ConfigError(MaasError):
    code = "config_error"


class DoesNotFit(ConfigError):
    code = "does_not_fit"


class DataRefused(MaasError):
    code = "invalid_training_file"


class BundleRefused(MaasError):
    code = "bundle_refused"


class AdapterRefused(MaasError):
    code = "invalid_adapter"


class TrainingFailed(MaasError):
    code = "training_failed"


class ReceiptFailed(TrainingFailed):
    code = "parity_receipt_failed"


class WeightsError(MaasError):
    code = "weights_error"


class WeightsCorrupt(WeightsError):
    code = "weights_corrupt"


class WeightsForbidden(WeightsError):
    code = "weights_forbidden"


class SourceUnreachable(WeightsError):
    code = "source_unreachable"


class HostError(MaasError):
    code = "host_error"


class PortTaken(HostError):
    code = "port_taken"


class DiskFull(HostError):
    code = "disk_full"


class AlreadyRunning(HostError):
    code = "already_running"
