"""Arguments of vLLM engines in configurations: which names exist, and which rlad sets itself."""

from rlad.config.engine_arguments.check import EngineArguments, require_engine_arguments

__all__ = ["EngineArguments", "require_engine_arguments"]
