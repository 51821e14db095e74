"""KV cache of a running vLLM engine. Imported in vLLM's own processes, through `EngineArgs.worker_extension_cls`."""

from __future__ import annotations

from typing import Any

from actors.engines.vllm_engine.masking import MaskExtension


class KvCacheExtension(MaskExtension):
    """Methods that the scorer calls on vLLM's workers through `collective_rpc`, beyond vLLM's own."""

    model_runner: Any  # vLLM's, of the worker that this class extends

    def clear_kv_cache(self) -> None:
        """Fill the KV cache with zeros. No request may be in flight: its keys and values would be lost."""
        for cache in self.model_runner.kv_caches:
            cache.zero_()
