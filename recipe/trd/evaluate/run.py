"""One evaluation from its plan to its result: check everything, sample what is missing, grade, write.

<out>/config.yaml, versions.json   settings that the samples depend on; packages and commit
<out>/samples/<set>.jsonl          one line a sample, appended when it is finished
<out>/sessions.jsonl               one line for each time that sampling was started
<out>/grades/<set>.jsonl           one line a sample
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

from recipe.trd.evaluate import fingerprint, grading, report, result, sampling, settings, store, suites
from recipe.trd.evaluate.store import Key
from recipe.trd.evaluate.suites import ProblemSet
from recipe.trd.reports.progress import format_seconds

SESSIONS = "sessions.jsonl"

_REPORT_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Plan:
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


def evaluate(plan: Plan) -> dict[str, Any]:
    """Carry out a plan; goes on where an earlier process with the same plan was ended.

    Returns:
        The content of `result.json`.

    Raises:
        ValueError: the plan cannot work, or the folder holds samples of another one.
        RuntimeError: a grader failed.
    """
    num_samples = plan.sampling.num_samples
    ks = plan.ks or tuple(result.default_ks(num_samples))
    if not all(1 <= k <= num_samples for k in ks):
        raise ValueError(f"--k {' '.join(map(str, ks))} with --num-samples {num_samples}: k samples need as many")
    files = suites.find(plan.suites, plan.files, data_dir=plan.data_dir)
    sets = [suites.load(name, path, limit=plan.limit) for name, path in files.items()]
    for problem_set in sets:
        grading.check(problem_set.problems)
    baseline = _baseline(plan, sets)
    folder = fingerprint.resolve(plan.model)
    fingerprint.check_adapter(folder, plan.adapter)
    weights = _weights(plan, folder)
    chat = sampling.Chat(_template(plan.chat_template), plan.chat_arguments)
    with store.FolderLock(plan.out):
        settings.adopt(plan.out, _settings(plan, sets, weights, chat))
        _sample(plan, sets, folder, chat)
        samples = {each.name: store.read_samples(_samples_path(plan.out, each.name)) for each in sets}
        grades = {each.name: _grade(plan, each, samples[each.name]) for each in sets}
        parts = [
            result.of_set(each, samples[each.name], grades[each.name], ks=ks, seed=plan.sampling.seed) for each in sets
        ]
        content = _result(plan, parts, weights, samples, ks)
        if baseline is not None:
            content["baseline"] = _against(content, baseline, str(plan.baseline), seed=plan.sampling.seed)
        store.write_json(plan.out / result.FILE, content)
        report.write(content, plan.out)
    return content


def _baseline(plan: Plan, sets: Sequence[ProblemSet]) -> dict[str, Any] | None:
    """The baseline's result, once it is known that it can be paired: before hours of sampling, not after them."""
    if plan.baseline is None:
        return None
    baseline = result.read(plan.baseline)
    theirs = {part["name"]: part["problems"] for part in baseline["sets"]}
    common = [each for each in sets if each.name in theirs]
    if not common:
        raise ValueError(f"--baseline {plan.baseline} has other problem sets: {', '.join(theirs)}")
    for each in common:
        ours = {problem.id: plan.sampling.num_samples for problem in each.problems}
        result.check_pairs(each.name, ours, {name: counts["samples"] for name, counts in theirs[each.name].items()})
    return baseline


def _template(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--chat-template {path}: no such file")
    return path.read_text(encoding="utf-8")


def _weights(plan: Plan, folder: Path) -> dict[str, Any]:
    """Fingerprints of what is evaluated, and how it differs from the base."""
    found = fingerprint.tensors(folder)
    adapter = None if plan.adapter is None else fingerprint.fingerprint(fingerprint.tensors(plan.adapter))
    weights: dict[str, Any] = {
        "model": fingerprint.fingerprint(found),
        "adapter": adapter,
        "tokenizer_and_config": fingerprint.side_files(folder),
        "base": None,
    }
    if plan.base is not None:
        comparison = fingerprint.compare(found, fingerprint.tensors(fingerprint.resolve(plan.base)))
        has_training = plan.adapter is not None and not fingerprint.adapter_is_zero(plan.adapter)
        weights["base"] = {"model": plan.base, **comparison.as_dict(), "equal": comparison.equal and not has_training}
    return weights


def _settings(
    plan: Plan, sets: Sequence[ProblemSet], weights: Mapping[str, Any], chat: sampling.Chat
) -> dict[str, Any]:
    template = None if chat.template is None else hashlib.sha256(chat.template.encode()).hexdigest()
    return settings.build(
        sampling=plan.sampling,
        weights={name: value for name, value in weights.items() if name != "base"},
        data={each.name: each.fingerprint for each in sets},
        chat={"template": template, "arguments": dict(chat.arguments)},
        engine=plan.engine,
    )


def _samples_path(out: Path, name: str) -> Path:
    return out / "samples" / f"{name}.jsonl"


def _sample(plan: Plan, sets: Sequence[ProblemSet], folder: Path, chat: sampling.Chat) -> None:
    """Draw the samples that are not there yet; the engine is started only if there are any."""
    wanted = [
        sampling.Wanted(each.name, problem, number)
        for each in sets
        for problem in each.problems
        for number in range(plan.sampling.num_samples)
    ]
    have: set[tuple[str, Key]] = set()
    for each in sets:
        path = _samples_path(plan.out, each.name)
        store.repair(path)
        have |= {(each.name, key) for key in store.read_samples(path)}
    missing = [item for item in wanted if (item.problem_set, (item.problem.id, item.sample)) not in have]
    print(f"{len(wanted) - len(missing):,} of {len(wanted):,} samples are there", flush=True)
    if not missing:
        return
    watch = sampling.Stopwatch()
    engine = sampling.Engine(folder, adapter=plan.adapter, options=plan.engine)
    problems = {item.problem.id: item.problem for item in missing}
    prompts = {key: sampling.prompt_ids(engine.tokenizer, problem, chat) for key, problem in problems.items()}
    engine.check_lengths([len(prompt) for prompt in prompts.values()], max_tokens=plan.sampling.max_tokens)
    session = _start_session(plan.out, engine)
    with ExitStack() as stack:
        logs = {each.name: stack.enter_context(store.Log(_samples_path(plan.out, each.name))) for each in sets}
        progress = _Progress(len(missing))
        for item, row in engine.draw(missing, prompts, plan.sampling):
            key = {"problem": item.problem.id, "sample": item.sample}
            logs[item.problem_set].append({**key, **row, "session": session, "elapsed_s": watch.seconds()})
            progress.add(row["num_tokens"])


def _start_session(out: Path, engine: sampling.Engine) -> int:
    """Number of this start of the engine."""
    path = out / SESSIONS
    with store.Log(path) as log:
        session = len(store.read_lines(path))
        log.append({"session": session, "num_devices": engine.num_devices, "dtype": engine.dtype})
    return session


class _Progress:
    """A line now and then: samples, tokens a second, time left."""

    def __init__(self, num_samples: int):
        self._num_samples = num_samples
        self._done, self._tokens = 0, 0
        self._start = self._said = time.monotonic()

    def add(self, num_tokens: int) -> None:
        """Count one sample."""
        self._done += 1
        self._tokens += num_tokens
        now = time.monotonic()
        if now - self._said < _REPORT_EVERY_S and self._done < self._num_samples:
            return
        self._said = now
        seconds = max(now - self._start, 1e-9)
        left = format_seconds(seconds * (self._num_samples - self._done) / self._done)
        rate = self._tokens / seconds
        print(f"{self._done:,} of {self._num_samples:,} samples, {rate:,.0f} tokens/s, {left} left", flush=True)


def _grade(plan: Plan, problem_set: ProblemSet, samples: Mapping[Key, Mapping[str, Any]]) -> dict[Key, grading.Grade]:
    problems = {problem.id: problem for problem in problem_set.problems}
    texts = {key: str(row["text"]) for key, row in samples.items()}
    grades = grading.grade(texts, problems, plan.limits)
    rows = [{"problem": key[0], "sample": key[1], **grades[key].as_dict()} for key in sorted(grades)]
    store.write_lines(plan.out / "grades" / f"{problem_set.name}.jsonl", rows)
    return grades


def _result(
    plan: Plan,
    parts: Sequence[dict[str, Any]],
    weights: Mapping[str, Any],
    samples: Mapping[str, Mapping[Key, Mapping[str, Any]]],
    ks: Sequence[int],
) -> dict[str, Any]:
    versions = json.loads((plan.out / "versions.json").read_text(encoding="utf-8"))
    mean = None
    if len(parts) > 1:
        counts = [list(part["problems"].values()) for part in parts]
        mean = {"name": "mean", **result.estimates(counts, ks=ks, seed=plan.sampling.seed)}
    return {
        "model": plan.model,
        "adapter": None if plan.adapter is None else str(plan.adapter),
        "weights": dict(weights),
        "settings": settings.read(plan.out),
        "ks": list(ks),
        "sets": list(parts),
        "mean": mean,
        "tokens": {
            "prompt": sum(part["prompt_tokens"] for part in parts),
            "response": sum(part["response_tokens"]["total"] for part in parts),
        },
        **_device_time(plan.out, [row for rows in samples.values() for row in rows.values()]),
        **versions,
    }


def _device_time(out: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds from the start of the engine to the last sample, over all sessions; what kill -9 cut off is not known."""
    seconds: dict[int, float] = {}
    for row in rows:
        seconds[row["session"]] = max(seconds.get(row["session"], 0.0), row["elapsed_s"])
    devices = {row["session"]: row["num_devices"] for row in store.read_lines(out / SESSIONS)}
    device_seconds = sum(seconds[session] * devices[session] for session in seconds)
    return {"seconds": sum(seconds.values()), "num_sessions": len(seconds), "device_hours": device_seconds / 3600}


def _against(ours: dict[str, Any], baseline: dict[str, Any], name: str, *, seed: int) -> dict[str, Any]:
    """The paired comparison, and what would make it mean something else than it seems."""
    return {
        "name": name,
        "differences": result.paired(ours, baseline, seed=seed),
        "warnings": report.pair_warnings(ours, baseline),
    }
