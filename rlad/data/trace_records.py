"""Records of offline traces: provenance, accepted responses, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlad.contracts import Array, Outcome
from rlad.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceProvenance:
    """Provenance of traces.

    Attributes:
        teacher: Fingerprint of the generating model's weights and tokenizer.
        teacher_path: Name of the generating model in the configuration.
        tokenizer: Fingerprint of the tokenizer.
        template: Fingerprint of the chat template that was applied to the prompts.
        dataset: Fingerprint of the prompts, including those beyond `max_prompts`.
        traces_per_prompt: As in `OfflineConfig`.
        max_accepted_per_prompt: As in `OfflineConfig`.
        max_prompts: As in `OfflineConfig`.
        temperature: Sampling temperature.
        top_p: Sampling top-p.
        max_response_tokens: Token budget of a response.
    """

    teacher: str
    teacher_path: str
    tokenizer: str
    template: str
    dataset: str
    traces_per_prompt: int
    max_accepted_per_prompt: int | None
    max_prompts: int | None
    temperature: float
    top_p: float
    max_response_tokens: int

    def require_fits(self, *, tokenizer: str, template: str, dataset: str, path: Path) -> None:
        """Raise an error if the traces do not match a student and its prompts.

        Args:
            tokenizer: Fingerprint of the student's tokenizer.
            template: Fingerprint of the student's chat template.
            dataset: Fingerprint of the run's prompts.
            path: Folder of the traces, for the error.

        Raises:
            PlanError: A fingerprint differs.
        """
        for name, actual, expected, consequence in (
            ("tokenizer", self.tokenizer, tokenizer, "their token ids have another meaning for the student"),
            ("chat template", self.template, template, "their prompts were formatted differently"),
            ("dataset", self.dataset, dataset, "they answer other prompts"),
        ):
            if actual != expected:
                raise PlanError(
                    f"the traces at {path} do not match this run: expected {name} {expected}, got {actual}, so "
                    f"{consequence}; use the student and prompts that the traces were generated for, or remove "
                    "offline.traces to generate new ones"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Accepted response of T tokens.

    Attributes:
        trace_index: Index among the responses to its prompt.
        response_ids: Response tokens, end-of-sequence token included, int32 [T].
        response_text: Text that the verifier read.
        behaviour_logprobs: Log-probabilities in nats under the teacher at the sampling settings, float32 [T]. With
            top_p below 1 they are those of the truncated distribution.
        reward: Reward of the verifier.
        outcome: Outcome of the verifier.
    """

    trace_index: int
    response_ids: Array
    response_text: str
    behaviour_logprobs: Array
    reward: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrompt:
    """Prompt whose responses are generated and verified.

    Attributes:
        position: Position of the prompt in its data set.
        prompt_id: Id of the prompt record.
        task: Name of the task.
        traces: Accepted responses that are kept.
        outcomes: Outcomes of all responses, in order.
        num_tokens: Tokens of all responses.
    """

    position: int
    prompt_id: str
    task: str
    traces: Sequence[Trace]
    outcomes: Sequence[Outcome]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCounts:
    """Counts of generated, accepted and rejected responses.

    Attributes:
        prompts: Prompts with generated responses.
        unsolved_prompts: Prompts without a correct response.
        generated: Generated responses.
        accepted: Correct responses that are kept.
        surplus: Correct responses above `max_accepted_per_prompt`.
        rejected: Other responses by outcome. A verifier's timeout or error is not a wrong answer, but is no trace
            either.
        tokens: Tokens of all responses.
        accepted_tokens: Tokens of the kept responses.
        seconds: Wall time of generation including engine starts, summed over all starts.
    """

    prompts: int
    unsolved_prompts: int
    generated: int
    accepted: int
    surplus: int
    rejected: dict[str, int]
    tokens: int
    accepted_tokens: int
    seconds: float
