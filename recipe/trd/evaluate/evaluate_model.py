"""One evaluation: check everything, draw the samples that are missing, grade them, write the result.

<out>/config.yaml, versions.json   settings that the samples depend on; packages and commit
<out>/samples/<set>.jsonl          one line per sample, appended when it is finished
<out>/sessions.jsonl               one line for every start of the engine
<out>/grades/<set>.jsonl           one line per sample
<out>/result.json, table.{md,csv,tex}
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.trd.evaluate import grading, model_weights, report, result, settings, store, suites, vllm_sampling
from recipe.trd.evaluate.store import Key
from recipe.trd.evaluate.suites import ProblemSet
from recipe.trd.reports.progress import format_seconds
from verl_ext.runtime import files
from verl_ext.runtime.weight_files import fingerprint, hash_tensors

SESSIONS = "sessions.jsonl"

_REPORT_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What is to be evaluated, and how; see the options of the command line."""

    model: str
    base: str | None
    adapter: Path | None
    suites: tuple[str, ...]
    files: tuple[Path, ...]
    data_dir: Path
    limit: int | None
    out: Path
    baseline: Path | None
    sampling: settings.Sampling
    ks: tuple[int, ...]
    chat_template: Path | None
    chat_arguments: Mapping[str, Any]
    engine: Mapping[str, Any]
    limits: grading.Limits


def evaluate(request: EvaluationRequest) -> dict[str, Any]:
    """Evaluate; continues where an earlier process with the same request ended.

    Returns:
        The content of `result.json`.

    Raises:
        ValueError: the request cannot work, or the folder holds samples of another one.
        RuntimeError: a grader failed.
    """
    num_samples = request.sampling.num_samples
    ks = request.ks or tuple(result.default_ks(num_samples))
    if not all(1 <= k <= num_samples for k in ks):
        raise ValueError(f"--k {' '.join(map(str, ks))} with --num-samples {num_samples}: k samples need as many")
    paths = suites.find(request.suites, request.files, data_dir=request.data_dir)
    sets = [suites.load(name, path, limit=request.limit) for name, path in paths.items()]
    for problem_set in sets:
        grading.check(problem_set.problems)
    baseline = _baseline(request, sets)
    folder = model_weights.resolve(request.model)
    model_weights.check_adapter(folder, request.adapter)
    weights = _weights(request, folder)
    chat = vllm_sampling.Chat(_template(request.chat_template), request.chat_arguments)
    with store.FolderLock(request.out):
        settings.adopt(request.out, _settings(request, sets, weights, chat))
        _sample(request, sets, folder, chat)
        samples = {each.name: store.read_samples(_samples_path(request.out, each.name)) for each in sets}
        grades = {each.name: _grade(request, each, samples[each.name]) for each in sets}
        seed = request.sampling.seed
        parts = [result.of_set(each, samples[each.name], grades[each.name], ks=ks, seed=seed) for each in sets]
        content = _result(request, parts, weights, samples, ks)
        if baseline is not None:
            content["baseline"] = _against(content, baseline, str(request.baseline), seed=seed)
        files.write_json(request.out / result.FILE, content)
        report.write(content, request.out)
    return content


def _baseline(request: EvaluationRequest, sets: Sequence[ProblemSet]) -> dict[str, Any] | None:
    """The baseline's result; checks that it can be paired before hours of sampling, not after them."""
    if request.baseline is None:
        return None
    baseline = result.read(request.baseline)
    baseline_sets = {part["name"]: part["problems"] for part in baseline["sets"]}
    common = [each for each in sets if each.name in baseline_sets]
    if not common:
        raise ValueError(f"--baseline {request.baseline} has other problem sets: {', '.join(baseline_sets)}")
    for each in common:
        requested = {problem.id: request.sampling.num_samples for problem in each.problems}
        in_baseline = {name: counts["samples"] for name, counts in baseline_sets[each.name].items()}
        result.check_pairs(each.name, requested, in_baseline)
    return baseline


def _template(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--chat-template {path}: no such file")
    return path.read_text(encoding="utf-8")


def _weights(request: EvaluationRequest, folder: Path) -> dict[str, Any]:
    """Fingerprints of what is evaluated, and how it differs from the base."""
    found = hash_tensors(folder)
    adapter = None if request.adapter is None else fingerprint(hash_tensors(request.adapter))
    weights: dict[str, Any] = {
        "model": fingerprint(found),
        "adapter": adapter,
        "tokenizer_and_config": model_weights.side_files(folder),
        "base": None,
    }
    if request.base is not None:
        comparison = model_weights.compare(found, hash_tensors(model_weights.resolve(request.base)))
        has_training = request.adapter is not None and not model_weights.adapter_is_zero(request.adapter)
        weights["base"] = {
            "model": request.base,
            **comparison.as_dict(),
            "equal": comparison.equal and not has_training,
        }
    return weights


def _settings(
    request: EvaluationRequest, sets: Sequence[ProblemSet], weights: Mapping[str, Any], chat: vllm_sampling.Chat
) -> dict[str, Any]:
    template = None if chat.template is None else hashlib.sha256(chat.template.encode()).hexdigest()
    return settings.build(
        sampling=request.sampling,
        weights={name: value for name, value in weights.items() if name != "base"},
        data={each.name: each.fingerprint for each in sets},
        chat={"template": template, "arguments": dict(chat.arguments)},
        engine=request.engine,
    )


def _samples_path(out: Path, name: str) -> Path:
    return out / "samples" / f"{name}.jsonl"


def _sample(request: EvaluationRequest, sets: Sequence[ProblemSet], folder: Path, chat: vllm_sampling.Chat) -> None:
    """Draw the samples that are missing; the engine is started only if there are any."""
    wanted = [
        vllm_sampling.WantedSample(each.name, problem, number)
        for each in sets
        for problem in each.problems
        for number in range(request.sampling.num_samples)
    ]
    have: set[tuple[str, Key]] = set()
    for each in sets:
        path = _samples_path(request.out, each.name)
        store.repair(path)
        have |= {(each.name, key) for key in store.read_samples(path)}
    missing = [item for item in wanted if (item.problem_set, (item.problem.id, item.sample)) not in have]
    print(f"{len(wanted) - len(missing):,} of {len(wanted):,} samples are there", flush=True)
    if not missing:
        return
    start = time.monotonic()
    engine = vllm_sampling.Engine(folder, adapter=request.adapter, options=request.engine)
    problems = {item.problem.id: item.problem for item in missing}
    prompts = {key: vllm_sampling.prompt_ids(engine.tokenizer, problem, chat) for key, problem in problems.items()}
    engine.check_lengths([len(prompt) for prompt in prompts.values()], max_tokens=request.sampling.max_tokens)
    session = _start_session(request.out, engine)
    with ExitStack() as stack:
        logs = {each.name: stack.enter_context(store.Log(_samples_path(request.out, each.name))) for each in sets}
        progress = _Progress(len(missing))
        for item, drawn in engine.draw(missing, prompts, request.sampling):
            key = {"problem": item.problem.id, "sample": item.sample}
            elapsed_s = round(time.monotonic() - start, 3)
            logs[item.problem_set].append({**key, **drawn, "session": session, "elapsed_s": elapsed_s})
            progress.add(drawn["num_tokens"])


def _start_session(out: Path, engine: vllm_sampling.Engine) -> int:
    """Number of this start of the engine."""
    path = out / SESSIONS
    with store.Log(path) as log:
        session = len(store.read_lines(path))
        log.append({"session": session, "num_devices": engine.num_devices, "dtype": engine.dtype})
    return session


class _Progress:
    """Prints samples, tokens per second and time left, at most every ten seconds."""

    def __init__(self, num_samples: int):
        self._num_samples = num_samples
        self._done, self._tokens = 0, 0
        self._start = self._printed_at = time.monotonic()

    def add(self, num_tokens: int) -> None:
        """Count one sample."""
        self._done += 1
        self._tokens += num_tokens
        now = time.monotonic()
        if now - self._printed_at < _REPORT_EVERY_S and self._done < self._num_samples:
            return
        self._printed_at = now
        seconds = max(now - self._start, 1e-9)
        left = format_seconds(seconds * (self._num_samples - self._done) / self._done)
        rate = self._tokens / seconds
        print(f"{self._done:,} of {self._num_samples:,} samples, {rate:,.0f} tokens/s, {left} left", flush=True)


def _grade(
    request: EvaluationRequest, problem_set: ProblemSet, samples: Mapping[Key, Mapping[str, Any]]
) -> dict[Key, grading.Grade]:
    problems = {problem.id: problem for problem in problem_set.problems}
    texts = {key: str(sample["text"]) for key, sample in samples.items()}
    grades = grading.grade(texts, problems, request.limits)
    lines = [{"problem": key[0], "sample": key[1], **grades[key].as_dict()} for key in sorted(grades)]
    files.write_lines(request.out / "grades" / f"{problem_set.name}.jsonl", lines)
    return grades


def _result(
    request: EvaluationRequest,
    parts: Sequence[dict[str, Any]],
    weights: Mapping[str, Any],
    samples: Mapping[str, Mapping[Key, Mapping[str, Any]]],
    ks: Sequence[int],
) -> dict[str, Any]:
    versions = json.loads((request.out / "versions.json").read_text(encoding="utf-8"))
    mean = None
    if len(parts) > 1:
        counts = [list(part["problems"].values()) for part in parts]
        mean = {"name": "mean", **result.estimates(counts, ks=ks, seed=request.sampling.seed)}
    return {
        "model": request.model,
        "adapter": None if request.adapter is None else str(request.adapter),
        "weights": dict(weights),
        "settings": settings.read(request.out),
        "ks": list(ks),
        "sets": list(parts),
        "mean": mean,
        "tokens": {
            "prompt": sum(part["prompt_tokens"] for part in parts),
            "response": sum(part["response_tokens"]["total"] for part in parts),
        },
        **_device_time(request.out, [sample for of_set in samples.values() for sample in of_set.values()]),
        **versions,
    }


def _device_time(out: Path, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds from the start of the engine to the last sample, over all sessions; time after it is not known."""
    seconds: dict[int, float] = {}
    for sample in samples:
        seconds[sample["session"]] = max(seconds.get(sample["session"], 0.0), sample["elapsed_s"])
    devices = {session["session"]: session["num_devices"] for session in store.read_lines(out / SESSIONS)}
    device_seconds = sum(seconds[session] * devices[session] for session in seconds)
    return {"seconds": sum(seconds.values()), "num_sessions": len(seconds), "device_hours": device_seconds / 3600}


def _against(content: dict[str, Any], baseline: dict[str, Any], name: str, *, seed: int) -> dict[str, Any]:
    """The paired comparison, and warnings where it does not compare models."""
    return {
        "name": name,
        "differences": result.paired(content, baseline, seed=seed),
        "warnings": report.pair_warnings(content, baseline),
    }
