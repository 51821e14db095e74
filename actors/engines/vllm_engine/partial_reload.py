"""Reload of those tensors of a checkpoint that changed, in a vLLM model. Used in vLLM's own processes.

vLLM reloads module by module, and a module may fuse several tensors of the checkpoint (`q_proj`, `k_proj`, `v_proj`).
The first reload loads all tensors and records which modules each of them reaches. Later ones load the tensors that
changed and those that share a module with them; vLLM puts back the tensors of the other modules.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload import layerwise as vllm_layerwise

# vLLM warns of each module that a reload left out.
_NOT_LOADED = "Failed to load weights"
# Name of the loaders that vLLM's reload puts in front of a module's own.
_WRAPPER = "online_process_loader"


class PartialReload:
    """Reload of a model's weights that remembers which modules each tensor reaches."""

    def __init__(self) -> None:
        # Modules that each tensor is loaded into. Empty until the first reload, or if they cannot be told.
        self._modules: dict[str, frozenset[int]] = {}

    def load(
        self, model: Any, model_config: Any, tensors: Mapping[str, torch.Tensor], changed: Iterable[str] | None
    ) -> int:
        """Load tensors into a model.

        Args:
            model: vLLM model.
            model_config: Its configuration.
            tensors: All tensors of the checkpoint, by name.
            changed: Names of those that differ from the model's weights; None if that is not known.

        Returns:
            Number of tensors that were loaded.
        """
        names = list(tensors) if changed is None or not self._modules else self._with_neighbours(tensors, changed)
        if not names:
            return 0
        is_whole = len(names) == len(tensors)
        initialize_layerwise_reload(model)
        if is_whole and not self._modules:
            self._load_recorded(model, tensors)
        else:
            model.load_weights((name, tensors[name]) for name in names)
        with nullcontext() if is_whole else _quiet():
            finalize_layerwise_reload(model, model_config)
        return len(names)

    def _with_neighbours(self, tensors: Mapping[str, torch.Tensor], changed: Iterable[str]) -> list[str]:
        """Return the changed tensors and those that share modules with them, in the order of the checkpoint."""
        names = set(changed)
        modules = set[int]().union(*(self._modules[name] for name in names))
        # A tensor may reach several modules, each of which may have further tensors.
        while added := {name for name, reached in self._modules.items() if reached & modules} - names:
            names |= added
            modules.update(*(self._modules[name] for name in added))
        return [name for name in tensors if name in names]

    def _load_recorded(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        modules: defaultdict[str, set[int]] = defaultdict(set)
        current = ""

        def named() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal current
            for name, tensor in tensors.items():
                current = name
                yield name, tensor

        def record(module: int) -> None:
            modules[current].add(module)

        for number, module in enumerate(model.modules()):
            for parameter in vllm_layerwise.get_layer_tensors(module).values():
                loader = getattr(parameter, "weight_loader", None)
                if loader is not None and loader.__name__ == _WRAPPER:
                    parameter.weight_loader = _recorded(loader, functools.partial(record, number))
        model.load_weights(named())
        # A model that reads ahead, or ignores a tensor, leaves tensors without modules.
        is_known = modules.keys() == tensors.keys()
        self._modules = {name: frozenset(reached) for name, reached in modules.items()} if is_known else {}


def _recorded(loader: Callable[..., Any], record: Callable[[], None]) -> Callable[..., Any]:
    """Wrap a loader of vLLM's reload. vLLM finds the original one by the wrapper's name and `__wrapped__`."""

    @functools.wraps(loader)
    def load(*arguments: Any, **settings: Any) -> Any:
        record()
        return loader(*arguments, **settings)

    return load


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop vLLM's warnings of modules that were left out."""
    vllm_layerwise.logger.addFilter(_is_other)
    try:
        yield
    finally:
        vllm_layerwise.logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return _NOT_LOADED not in str(record.msg)
