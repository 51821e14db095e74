"""Selection of traces from the teacher's responses, their provenance, and training on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.messages import VerifierResult
from pipelines.resolution.models import ResolvedModels
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.run.directory import RunDirectory
from pipelines.traces.generation import provenance_of, traced_prompt
from pipelines.traces.groups import group_of
from pipelines.traces.preparation import reused_traces
from rlad.config import RunConfig, TeacherConfig, load_run_config
from rlad.contracts import FinishReason, Outcome, RolloutGroup, ScoredGroup, Verdicts
from rlad.data.chat import encode_prompts, load_tokenizer, tokenizer_fingerprint
from rlad.data.records import PromptRecord, dataset_fingerprint
from rlad.data.trace_files import TraceFolder
from rlad.data.training_traces import TrainingTraces, write_training_traces
from rlad.errors import PlanError, VocabularyMismatchError
from rlad.models.locations import pin_model
from rlad.objectives import SftConfig, build_objective
from rlad.packing import BatchRules, LossNormalizer, build_training_batch
from rlad.tokenizers.decoding import ResponseDecoder
from rlad.tokenizers.stopping import SamplingTokens
from rlad.tokenizers.vocabulary import vocabulary_of

MakeModel = Callable[..., Path]

OFFLINE = Path(__file__).parents[4] / "configs" / "offline_kk_cpu.yaml"
RECORDS = [
    PromptRecord(id=f"p{number}", prompt=text, task="knights_knaves", answer="T")
    for number, text in enumerate(("A:b;", "B:aa;", "C:c;?"))
]


def config_of(student: Path, teacher: Path, *overrides: str) -> RunConfig:
    return load_run_config(OFFLINE, [f"student.path={student}", f"teacher.path={teacher}", *overrides])


def encoded(model: Path, records: list[PromptRecord] = RECORDS) -> EncodedPrompts:
    return EncodedPrompts(records=records, token_ids=encode_prompts(AutoTokenizer.from_pretrained(model), records, 16))


def resolved(config: RunConfig, prompts: EncodedPrompts) -> ResolvedRun:
    """A resolved run with these prompts, for offline distillation from `config.teacher`."""
    student = Path(config.student.path)
    assert isinstance(config.teacher, TeacherConfig)
    models = ResolvedModels(student=pin_model(config.student.path), frozen={"teacher": pin_model(config.teacher.path)})
    return ResolvedRun(
        config=config,
        directory=RunDirectory("unused"),
        run_id="unused",
        models=models,
        student=student,
        tokenizer_fingerprint=tokenizer_fingerprint(student),
        frozen_models={"teacher": Path(config.teacher.path)},
        vocabulary=vocabulary_of(load_tokenizer(student)),
        sampling=SamplingTokens(),
        prompts=prompts,
        dataset_fingerprint=dataset_fingerprint(prompts.records),
        evaluation_prompts=prompts,
        teachers_by_prompt={},
    )


def verified_group(
    tokenizer: Tokenizer, prompts: EncodedPrompts, position: int, texts: dict[str, Outcome]
) -> tuple[RolloutGroup, VerifierResult]:
    responses = [tokenizer.encode(f"{text}$").ids for text in texts]
    offsets = np.cumsum([0, *map(len, responses)]).astype(np.int64)
    record = prompts.records[position]
    group = RolloutGroup(
        uid=f"traces:{position}",
        attempt=0,
        prompt_id=record.id,
        task=record.task,
        answer=record.answer,
        temperature=0.7,
        prompt_ids=prompts.token_ids[position],
        response_ids=np.concatenate(responses).astype(np.int32),
        response_offsets=offsets,
        behaviour_logprobs=-np.arange(offsets[-1], dtype=np.float32),
        policy_versions=np.zeros(offsets[-1], np.int32),
        finish_reasons=np.full(len(texts), FinishReason.STOP, np.uint8),
    )
    outcomes = np.array(list(texts.values()), np.uint8)
    verdicts = Verdicts(
        uid=group.uid,
        attempt=0,
        rewards=(outcomes == Outcome.CORRECT).astype(np.float32),
        outcomes=outcomes,
        elapsed_s=np.zeros(len(texts), np.float32),
    )
    return group, VerifierResult(verdicts=verdicts, elapsed_s=0.0)


def test_only_the_first_correct_responses_become_traces(make_model: MakeModel) -> None:
    """A timeout is neither a wrong answer nor a trace."""
    tokenizer = Tokenizer.from_file(str(make_model() / "tokenizer.json"))
    texts = {
        "=F": Outcome.WRONG,
        "a=T": Outcome.CORRECT,
        "=": Outcome.TIMEOUT,
        "bb=T": Outcome.CORRECT,
        "c=T": Outcome.CORRECT,
    }
    group, judged = verified_group(tokenizer, encoded(make_model()), 1, texts)
    traced = traced_prompt(group, judged, ResponseDecoder(tokenizer), position=1, max_accepted=2)
    assert [(trace.trace_index, trace.response_text.replace(" ", "")) for trace in traced.traces] == [
        (1, "a=T"),
        (3, "bb=T"),
    ]
    first, second = traced.traces
    assert first.behaviour_logprobs.tolist() == [-3, -4, -5, -6]
    assert second.response_ids.tolist() == tokenizer.encode("bb=T$").ids
    assert not np.shares_memory(second.response_ids, group.response_ids)
    assert traced.num_tokens == 3 + 4 + 2 + 5 + 4
    assert list(traced.outcomes) == list(texts.values())
    everything = traced_prompt(group, judged, ResponseDecoder(tokenizer), position=1, max_accepted=None)
    assert [trace.trace_index for trace in everything.traces] == [1, 3, 4]


def test_provenance_depends_on_the_teacher_s_weights_and_the_sampling(make_model: MakeModel) -> None:
    student, teacher, other = make_model(seed=0), make_model(seed=1), make_model(seed=2)
    prompts = encoded(student)
    base = provenance_of(resolved(config_of(student, teacher), prompts))
    assert provenance_of(resolved(config_of(student, teacher), prompts)) == base
    assert provenance_of(resolved(config_of(student, other), prompts)).teacher != base.teacher
    overrides = ("offline.temperature=1.2", "offline.rollout.max_response_tokens=77")
    hotter = provenance_of(resolved(config_of(student, teacher, *overrides), prompts))
    assert (hotter.teacher, hotter.temperature, hotter.max_response_tokens) == (base.teacher, 1.2, 77)
    assert provenance_of(resolved(config_of(student, teacher), encoded(student, RECORDS[:2]))).dataset != base.dataset


def test_a_teacher_of_another_vocabulary_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(make_model(seed=1), other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"A":', '"Z":'))
    with pytest.raises(VocabularyMismatchError, match="must share one tokenizer"):
        provenance_of(resolved(config_of(make_model(), other), encoded(make_model())))


def test_traces_of_an_earlier_run_are_reused_only_if_they_fit(make_model: MakeModel, tmp_path: Path) -> None:
    student = make_model()
    config, prompts = config_of(student, make_model(seed=1)), encoded(student)
    TraceFolder(tmp_path, provenance_of(resolved(config, prompts)), prompts_per_part=1).finish()
    assert reused_traces(resolved(config, prompts), tmp_path).counts.prompts == 0
    with pytest.raises(PlanError, match="do not match this run: expected dataset"):
        reused_traces(resolved(config, encoded(student, RECORDS[:2])), tmp_path)


def test_traces_train_as_the_mean_over_responses_of_their_mean_cross_entropy(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Parts, packed row and gradient against `torch.nn.functional.cross_entropy` on one trace at a time."""
    student, tokenizer = make_model(), Tokenizer.from_file(str(make_model() / "tokenizer.json"))
    prompts = encoded(student)
    folder = TraceFolder(
        tmp_path / "traces",
        provenance_of(resolved(config_of(student, make_model(seed=1)), prompts)),
        prompts_per_part=2,
    )
    for position, texts in enumerate(
        ({"a=T": Outcome.CORRECT}, {"bb>h=T": Outcome.CORRECT, "=F": Outcome.WRONG}, {"=T": Outcome.CORRECT})
    ):
        folder.add(
            traced_prompt(
                *verified_group(tokenizer, prompts, position, texts),
                ResponseDecoder(tokenizer),
                position=position,
                max_accepted=None,
            )
        )
    write_training_traces(
        folder.finish().part_paths(tmp_path / "traces"),
        tmp_path / "training.arrow",
        max_prompts=None,
        max_accepted_per_prompt=None,
    )
    traces = TrainingTraces(tmp_path / "training.arrow")
    groups = {}
    for index in range(len(traces)):
        group, verdicts = group_of(traces[index], prompts, uid=f"g{index}", attempt=0)
        groups[group.uid] = ScoredGroup(group=group, verdicts=verdicts, rewards=verdicts.rewards, teacher_scores=None)
    assert len(groups) == 3
    batch, counts = build_training_batch(
        groups,
        [(uid, 0) for uid in groups],
        normalizer=LossNormalizer(num_responses=3, num_tokens=None),
        rules=BatchRules(objective=SftConfig()),
    )
    assert counts.trained_tokens == 4 + 7 + 3

    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64, attn_implementation="eager")
    rows = []
    for start, end in zip(
        batch.sequence_offsets[:-1], batch.sequence_offsets[1:], strict=True
    ):  # each sequence alone: no packing in the reference
        logits = model(torch.from_numpy(batch.token_ids[start:end])[None]).logits[0]
        rows.append(logits.log_softmax(-1).gather(1, torch.from_numpy(batch.target_ids[start:end])[:, None])[:, 0])
    objective = build_objective(SftConfig())
    output = objective.packed(
        policy_logprobs=torch.cat(rows),
        behaviour_logprobs=torch.from_numpy(batch.behaviour_logprobs),
        advantages=torch.from_numpy(batch.advantages),
        weights=torch.from_numpy(batch.weights),
    )
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    model.zero_grad()
    expected = torch.zeros((), dtype=torch.float64)
    for index in range(len(traces)):
        prompt, response = prompts.token_ids[traces[index].prompt_position], traces[index].response_ids
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        expected = expected + torch.nn.functional.cross_entropy(
            model(ids[None]).logits[0, len(prompt) - 1 : -1], ids[len(prompt) :]
        ) / len(traces)
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == gradients.keys()
    difference = torch.cat([(found[name] - gradient).flatten() for name, gradient in gradients.items()])
    # The weights of a row are float32.
    assert difference.norm() < 1e-6 * torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
