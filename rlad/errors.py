"""Every error rlad raises on purpose. One root, and each also is the stdlib error a caller would expect.

All of them travel between processes: they hold one message and pickle by it.
"""


class RladError(Exception):
    """Root of all errors raised by rlad. The message says what was expected, what came, where, and what to do."""


class ConfigError(RladError, ValueError):
    """A run's configuration is wrong: an unknown key, a value out of range, settings that contradict each other."""


class PlanError(RladError, ValueError):
    """A valid configuration that cannot run here: models that do not fit together, too few CPUs or GPUs, no such file."""


class ContractError(RladError, ValueError):
    """A record's columns contradict each other: lengths, dtypes, ranges."""


class DataError(RladError, ValueError):
    """A prompt file or puzzle cannot be read."""


class RunDirectoryError(RladError, FileExistsError):
    """A run directory that exists, is missing, or belongs to another configuration."""


class LedgerError(RladError, RuntimeError):
    """A transition the ledger does not allow, for example committing a group that was never claimed."""


class StaleAttemptError(LedgerError):
    """A late answer to an attempt that has been replaced. The caller drops it."""


class EngineError(RladError, RuntimeError):
    """An inference or training engine failed or refused its input."""


class WeightsMismatchError(EngineError):
    """Weights that arrived are not those that were sent: wrong checksum or version. A sampler in this state never serves."""


class TeacherScoresError(RladError, RuntimeError):
    """Too many teacher log-probabilities are missing, NaN or infinite."""


class QuotaError(RladError, RuntimeError):
    """A client has as many groups under way at a shared teacher as one may have. Nothing is wrong: the same call succeeds later."""


class AccessError(RladError, PermissionError):
    """A service refuses the caller's token, or there is none."""


class VocabularyMismatchError(PlanError):
    """Student and teacher (or a client and a teacher service) do not share one tokenizer."""


class NonFiniteGradientError(RladError, FloatingPointError):
    """More optimizer steps in a row than allowed had NaN or infinite gradients."""


class DeadlineError(RladError, TimeoutError):
    """A remote wait passed its deadline. The message names who was waited for."""


class PoolExhaustedError(RladError, RuntimeError):
    """A pool lost more workers than its restart budget allows."""


class WorkerLostError(RladError, ConnectionError):
    """The worker that had the work died or became unreachable. The work may be issued again."""


class RunStoppedError(RladError, RuntimeError):
    """The run was told to stop, or has failed elsewhere. The message gives the reason."""


class RegistryError(RladError, RuntimeError):
    """The model registry cannot be reached, refuses what it is given, or holds something it should not."""


class ModelNotFoundError(RegistryError, LookupError):
    """The registry holds no such model, version or alias."""


class AliasConflictError(RegistryError):
    """An alias is not where the caller thought it was: somebody has moved it meanwhile. The caller looks again before it decides again."""


class CorruptModelError(RegistryError):
    """A file of a model is not what was registered: another size or checksum, or missing."""


class ClusterError(RladError, ConnectionError):
    """A Ray cluster does not answer, or does not let us in."""


class JobError(RladError, RuntimeError):
    """A job that cannot be submitted, or that the cluster does not know."""


class ScheduleError(RladError, RuntimeError):
    """A schedule that is not there, or a store of schedules that does not answer."""


class LeaseHeldError(ScheduleError):
    """Another ticker works on the schedule."""


class LeaseLostError(ScheduleError):
    """Another ticker has taken the schedule over. Whoever gets this ends what it started and writes nothing more."""


class TickInterruptedError(ScheduleError):
    """The ticker was told to end. Its run is continued by the next tick."""


class RunFailedError(RladError, RuntimeError):
    """A run's process ended without its result. The message is the run's own."""
