"""Ends of responses, and the ids that a model may sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlad.config import EvaluationSuite, RunConfig
from rlad.model_fingerprint import output_size
from rlad.tokenizers.stopping import SamplingTokens, stop_rules
from rlad.tokenizers.vocabulary import vocabulary_of


def sampling_tokens(tokenizer: Any, model: Path, config: RunConfig | EvaluationSuite) -> SamplingTokens:
    """Return the ends of responses to the student's prompts, and the number of ids that are sampled.

    Args:
        tokenizer: Tokenizer of the student. A teacher that writes traces samples only ids of the student, too.
        model: Directory of the model that samples: the student, or a teacher that writes traces.
        config: Configured stop tokens and strings, and arguments of the chat template.
    """
    size = vocabulary_of(tokenizer).size
    return SamplingTokens(
        stop=stop_rules(
            tokenizer,
            model,
            template_arguments=config.student.chat_template_kwargs,
            token_ids=config.rollout.stop_token_ids,
            strings=config.rollout.stop,
        ),
        vocabulary_size=size if size < output_size(model) else None,
    )
