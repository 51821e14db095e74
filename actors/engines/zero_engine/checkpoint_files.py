"""Files of a learner checkpoint: durable, listed in a manifest, and loaded without running code.

DeepSpeed writes pickles and unpickles them without restriction, so that a changed file runs code. Here the unpickler of
PyTorch that builds tensors and plain values only (`weights_only`) reads every file, and a checkpoint that needs more is
refused before anything is loaded.
"""

from __future__ import annotations

import copyreg
import pickle
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rlad.errors import CorruptFileError, RladError, StorageError
from rlad.integrity.durable import storage_errors, sync_file
from rlad.integrity.manifest import digests_of, files_below, read_manifest, verify, write_manifest

# Classes other than tensors and plain values in DeepSpeed's checkpoints. Their constructors store numbers.
_ALLOWED = [LossScaler, ZeroStageEnum, fragment_address]
# Early releases of Python 3.11 (Debian has 3.11.2) pickle an enum member as a call of `getattr`, which is refused.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
_REMEDY = (
    "Delete the directory of this checkpoint: --resume continues from an older one, or from the start if there is none"
)


class SafeCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's reader and writer of checkpoint files.

    A failed write is kept in `failure` instead of raised: the other ranks already wait in a collective of DeepSpeed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            with storage_errors(path):
                torch.save(state_dict, temporary)
                sync_file(temporary)
                temporary.replace(target)
        except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as a RuntimeError
            free = shutil.disk_usage(target.parent).free >> 20
            self.failure = StorageError(
                f"cannot write {path}, with {free} MiB free on its disk: {error}. Earlier checkpoints are unchanged; "
                "free space or repair the disk, and continue the run with --resume"
            )
            temporary.unlink(missing_ok=True)

    def load(self, path: str, map_location: Any = None) -> Any:
        with _allowed():
            try:
                return torch.load(path, map_location=map_location, weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
                raise CorruptFileError(f"{path} cannot be loaded: {error}. {_REMEDY}") from error


def write_checkpoint(engine: SafeCheckpointEngine, directory: Path, write: Callable[[], Any]) -> None:
    """Write a checkpoint and its manifest. Collective.

    Each rank flushes and hashes a share of the files.

    Args:
        engine: Engine of the DeepSpeed engine that writes.
        directory: Directory of the checkpoint.
        write: Lets DeepSpeed write the files.

    Raises:
        StorageError: The disk of a rank refused a write. There is no manifest then.
    """
    engine.failure = None
    write()

    def digest_share() -> dict[str, str]:
        if engine.failure is not None:
            raise engine.failure
        names = files_below(directory)[dist.get_rank() :: dist.get_world_size()]
        for name in names:
            sync_file(directory / name)
        return digests_of(directory, names)

    shares = _on_all_ranks(digest_share)

    def write_whole() -> None:
        if dist.get_rank() == 0:
            write_manifest(directory, {name: digest for share in shares for name, digest in share.items()})

    _on_all_ranks(write_whole)


def require_intact(directory: Path) -> None:
    """Verify a checkpoint, and refuse files whose loading would run code. Collective; each rank checks a share.

    Raises:
        CorruptFileError: A file is missing, damaged or not listed, or holds more than tensors and plain values.
    """

    def check_share() -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        verify(directory, remedy=_REMEDY, rank=rank, ranks=ranks)
        for name in sorted(read_manifest(directory))[rank::ranks]:
            if name.endswith(".pt"):
                _refuse_code(directory / name)

    _on_all_ranks(check_share)


def _refuse_code(path: Path) -> None:
    with _allowed():
        try:
            found = get_unsafe_globals_in_checkpoint(path)
        except Exception as error:
            raise CorruptFileError(f"{path} is no checkpoint file: {error}. {_REMEDY}") from error
    if found:
        raise CorruptFileError(
            f"{path} is refused: loading it would run {', '.join(sorted(found))}, which no checkpoint of rlad "
            f"contains. Find out who changed it. {_REMEDY}"
        )


def _allowed() -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = safe_globals(_ALLOWED)
    return context


def _on_all_ranks(action: Callable[[], Any]) -> list[Any]:
    """Run an action on every rank and return all results, or raise the first error on all ranks. Collective."""
    result: Any = None
    try:
        result = action()
    except RladError as error:
        result = error
    except OSError as error:
        result = StorageError(str(error))
    except Exception as error:  # noqa: BLE001 - shared with the other ranks, which would wait for this one
        result = StorageError(f"the checkpoint cannot be written: {error}")
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    failure = next((each for each in results if isinstance(each, Exception)), None)
    if failure is not None:
        raise failure
    return results
