"""Errors that rlad raises on purpose.

All derive from `RladError` and from the built-in error that a caller would expect. Each holds one message and can be
pickled, so errors travel between processes.
"""


class RladError(Exception):
    """Base class of all errors raised by rlad. The message says where, what was expected, what came, and what to do."""


class ConfigError(RladError, ValueError):
    """Invalid run configuration: an unknown key, a value out of range, or contradicting settings."""


class PlanError(RladError, ValueError):
    """Valid configuration that cannot run here: incompatible models, too few CPUs or GPUs, or a missing file."""


class ModelUnreachableError(PlanError):
    """Model whose hub or object store cannot be reached, and that no cache of this machine holds."""


class ContractError(RladError, ValueError):
    """Columns of a record that contradict each other in length, dtype or range."""


class DataError(RladError, ValueError):
    """Unreadable or malformed prompt file, puzzle, trace file or expected answer."""


class RunDirectoryError(RladError, FileExistsError):
    """Run directory that already exists, is missing, or belongs to another configuration."""


class LedgerError(RladError, RuntimeError):
    """State transition that the ledger does not allow, for example claiming a group that is not scored."""


class StaleAttemptError(LedgerError):
    """Late result of an attempt that has been replaced. The caller discards the result."""


class EngineError(RladError, RuntimeError):
    """Failure of an inference engine, a training engine or the sandbox, or an input that it refuses."""


class VerifierFailureError(RladError, RuntimeError):
    """Too many responses whose verification timed out or failed. The message holds the verifier's own words."""


class ScoringRefusedError(ContractError, EngineError):
    """Group or support that a teacher cannot score, for example token ids outside of its vocabulary."""


class WeightsMismatchError(EngineError):
    """Received weights with a wrong checksum or version. A rollout worker in this state does not serve."""


class WeightsLostError(EngineError):
    """Published weights that ended with the learner's process. A restarted learner publishes them again."""


class TeacherScoresError(RladError, RuntimeError):
    """Too many missing, NaN or infinite teacher log-probabilities."""


class QuotaError(RladError, RuntimeError):
    """Limit on a client's concurrent groups at a shared teacher reached. The same call succeeds later."""


class AccessError(RladError, PermissionError):
    """Missing or refused access token."""


class VocabularyMismatchError(PlanError):
    """Student and teacher, or a client and a teacher service, with different tokenizers."""


class NonFiniteGradientError(RladError, FloatingPointError):
    """Too many consecutive optimizer steps with NaN or infinite gradients."""


class DeadlineError(RladError, TimeoutError):
    """Remote call that missed its deadline. The message names the callee."""


class PoolExhaustedError(RladError, RuntimeError):
    """Pool that lost more workers than its restart budget allows."""


class WorkerLostError(RladError, ConnectionError):
    """Worker that died or became unreachable. Its work may be issued again."""


class BrokerRestartedError(RladError, ConnectionError):
    """Broker that was restarted and lacks what the caller holds. The caller hands it over and repeats the call."""


class LostGroupsError(RladError, ConnectionError):
    """Groups whose data were lost with a node. They are sampled again.

    Attributes:
        groups: Uid and attempt number of each group.
    """

    def __init__(self, groups: list[tuple[str, int]]) -> None:
        super().__init__(groups)
        self.groups = groups

    def __str__(self) -> str:
        return f"the data of {len(self.groups)} groups were lost: " + ", ".join(uid for uid, _ in self.groups)


class RunStoppedError(RladError, RuntimeError):
    """Run that is stopping, on request or after a failure elsewhere. The message states the reason."""


class StopRequestedError(RunStoppedError):
    """Run that ends because a person or a program asked it to. It is not a failure."""


class RegistryError(RladError, RuntimeError):
    """Unreachable model registry, refused request, or inconsistent registry content."""


class ModelNotFoundError(RegistryError, LookupError):
    """Model, version or alias that the registry does not hold."""


class AliasConflictError(RegistryError):
    """Alias that another client moved concurrently. The caller reads the alias again before it decides."""


class ApprovalRequiredError(RegistryError):
    """Promotion of a model that requires the approval of a person."""


class SelfApprovalError(RegistryError):
    """Approval of a promotion by its own requester."""


class CorruptModelError(RegistryError):
    """Model file that is missing or differs in size or checksum from what was registered."""


class CorruptFileError(RladError, ValueError):
    """File that is missing, damaged or changed since it was written, or content that must not be loaded."""


class StorageError(RladError, OSError):
    """Disk that is full, read-only or failing. What was written before is unchanged."""


class ClusterError(RladError, ConnectionError):
    """Ray cluster that does not answer or refuses the connection."""


class JobError(RladError, RuntimeError):
    """Job that cannot be submitted, or that the cluster does not know."""


class ScheduleError(RladError, RuntimeError):
    """Missing schedule, or a schedule store that does not answer."""


class LeaseHeldError(ScheduleError):
    """Lease on a schedule that another ticker holds."""


class LeaseLostError(ScheduleError):
    """Lease on a schedule that another ticker took over. The loser ends what it started and writes nothing more."""


class TickInterruptedError(ScheduleError):
    """Tick that was stopped on request. The next tick continues its run."""


class RunFailedError(RladError, RuntimeError):
    """Run process that ended without a result. The message is the run's own."""
