"""``gl.verify``: the checks on one model, each kept as soon as it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gatelens.atomic_files import check_writable
from gatelens.bridge.parts import Parts
from gatelens.errors import InputError, ModelError, OutputError
from gatelens.identity import content_fingerprint, model_fingerprint, model_name
from gatelens.model import HookedVLM, checkpoints, loading
from gatelens.pictures import load_image
from gatelens.runs.manifest import differences, versions
from gatelens.verification import edits, parity, tokens, traps
from gatelens.verification.bench import Bench, Check, outcome_of, weight_sums
from gatelens.verification.bounds import RULE
from gatelens.verification.page import write_pages
from gatelens.verification.paper import paper_table
from gatelens.verification.plain import Plain, Unavailable, rebuilt, twin
from gatelens.verification.result import FILE, Verification
from gatelens.verification.row import FAIL, Row
from gatelens.verification.text import heading, line

CHECKS: tuple[Check, ...] = (*tokens.CHECKS, *parity.CHECKS, *edits.CHECKS, *traps.CHECKS)
Say = Callable[[str], None]


def verify(
    model: HookedVLM | str | os.PathLike[str],
    *,
    plain: Any = None,
    images: Sequence[Any] | None = None,
    paper: int = 0,
    data: str | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | Say = True,
    **load: Any,
) -> Verification:
    """Whether the wrapped model is the one that transformers loads: numbers, tokens, interventions, silent traps.

    Every check compares with transformers and torch alone, on the same weights, which are held once. What counts as
    equal is measured on transformers in the same dtype (*Check a model*).

    Args:
        model: a name or folder, which is loaded here, or a wrapped model.
        plain: of a wrapped model, the transformers model with its weights; without it one is built from them. Made by
            ``gatelens.verification.plain.twin(hf_model)`` before wrapping.
        images: two pictures of one size for the prompts; without them two shipped scenes.
        paper: how many examples of each task to run of the paper's table, where the model is in it.
        data: the data of that run; without it the paper's.
        out: a folder for ``verify.json``, ``verify.md`` and ``verify.html``. The same call resumes there; what failed
            is tried again.
        progress: print each check when it is done (a function is given the lines).
        load: for a name: ``device``, ``dtype``, ``device_map``, ``revision`` and what else ``from_pretrained`` takes.

    Returns:
        ``.passed``, ``.table`` (a DataFrame, one row per check), ``.facts``, ``.paper``; printed, all of it.

    Raises:
        ModelError: the model cannot be loaded, or no plain one can be made of a wrapped one.
        OutputError: ``out`` cannot be written or holds the verification of something else.

    Example:
        >>> result = gl.verify(model, progress=False)
        >>> result.table.columns.tolist()
        ['group', 'name', 'what', 'status', 'reason', 'measured', 'bound', 'effect', 'seconds']
    """
    if isinstance(paper, bool) or not isinstance(paper, int) or paper < 0:
        raise InputError(f"paper={paper!r}: give how many examples of each task to run, 0 for none")
    folder = None if out is None else check_writable(out)
    say = progress if callable(progress) else _to_stderr if progress else _silent
    with loading.without_progress_bar(hide=not progress):
        bench = opened(model, plain, images, **load)
    result = _checked(bench, _begun(folder, _facts(bench, model)), folder, say)
    if paper:
        named = str(model) if isinstance(model, str | os.PathLike) else model_name(model)
        where = None if folder is None else folder / "paper"
        result = replace(result, paper=paper_table(bench.model, named, paper, data, where, bool(progress)))
    if folder is not None:
        result.save(folder)
        write_pages(result, folder)
    return result


def _checked(bench: Bench, there: Verification, folder: Path | None, say: Say) -> Verification:
    """Every check that has not passed there yet; the file is written after each."""
    say(heading(there))
    done = {row.key: row for row in there.rows if row.status != FAIL}
    rows: list[Row] = []
    for check in CHECKS:
        rows.append(done.pop(check.key) if check.key in done else _run(check, bench))
        if folder is not None:  # with what a run cut short left of later checks
            replace(there, rows=[*rows, *done.values()]).save(folder)
        say(line(rows[-1]))
    return replace(there, rows=rows)


def opened(model: Any, plain: Any, images: Sequence[Any] | None, **load: Any) -> Bench:
    """Both models, weights held once, and the prompts."""
    pictures = (
        None if images is None else [load_image(image, f"images[{i}]") for i, image in enumerate(images)]
    )
    sums = None
    if isinstance(model, str | os.PathLike):
        if plain is not None:
            raise InputError("plain= goes with a wrapped model; of a name both are loaded")
        hf, processor = loading.load(
            model, load.pop("dtype", None), load.pop("device", None), load.pop("device_map", None), **load
        )
        plain = twin(hf)
        sums = weight_sums(plain)
        model = HookedVLM.from_module(hf, processor)
    elif load:
        raise InputError(f"{', '.join(load)}: these go with a name; this model is loaded already")
    elif not isinstance(model, HookedVLM):
        raise ModelError(f"model is a {type(model).__name__}: give a HookedVLM, a name, or a folder")
    try:
        return Bench(model, Plain(_plain_of(model) if plain is None else plain), pictures, sums)
    except Unavailable as error:
        raise ModelError(f"{error}: this class cannot be verified") from error


def _plain_of(model: HookedVLM) -> Any:
    """transformers' model around the weights of a wrapped one."""
    if isinstance(model.hf, Parts):
        raise ModelError(
            "a model of from_parts is not a transformers class: there is nothing to compare it with"
        )
    if model.compatibility_mode:
        raise ModelError("enable_compatibility_mode changed the weights: verify a freshly loaded model")
    if getattr(model.hf, "hf_quantizer", None) is not None or getattr(model.hf, "hf_device_map", None):
        raise ModelError(
            "of a quantised or spread model no second one can be built: give its name to verify, with the same keywords"
        )
    with loading.without_progress_bar():
        return rebuilt(type(model.hf), model.hf.config, checkpoints.weights(model))


def _begun(folder: Path | None, facts: dict[str, Any]) -> Verification:
    """What is in the folder of the same model, else a verification that begins now. Raises OutputError."""
    new = Verification(facts, RULE, [], len(CHECKS), created=datetime.now(UTC).isoformat(timespec="seconds"))
    if folder is None or not (folder / FILE).exists():
        return new
    there = Verification.load(folder)
    changed = differences(dict(there.facts), facts)
    if changed:
        raise OutputError(
            f"{str(folder)!r} holds the verification of another model ({changed}); give another folder"
        )
    return replace(there, planned=len(CHECKS)) if there.rule == RULE else new


def _run(check: Check, bench: Bench) -> Row:
    start = time.perf_counter()
    with bench.model.lock:
        outcome = outcome_of(check, bench)
    seconds = round(time.perf_counter() - start, 2)
    return Row(check.group, check.name, check.what, **asdict(outcome), seconds=seconds)


def _facts(bench: Bench, given: Any) -> dict[str, Any]:
    """What the result says of the model; nothing of this machine but the name of its chip."""
    model, hf = bench.model, bench.model.hf
    parameters = list(bench.plain.hf.parameters())
    count = f"{len(parameters)} tensors, {sum(p.numel() for p in parameters):,} numbers"
    checked = (
        "none missing, none left over, all finite"
        if isinstance(given, str | os.PathLike)
        else "not loaded here"
    )
    sizes = ["{}x{}".format(*picture.size) for picture in bench.pictures]
    quantisation = getattr(hf.config, "quantization_config", None)
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
    return {
        "model": public_name(given, model),
        "revision": getattr(hf.config, "_commit_hash", None) or "",
        "class": type(bench.plain.hf).__name__,
        "family": model.family.name,
        "weights": f"{count} ({checked})",
        "fingerprint": model_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": _device(model.device),
        "quantisation": str(getattr(method, "quant_method", method) or "none"),
        "prompts": f"pictures of {' and '.join(sizes)} pixels ({content_fingerprint(bench.pictures)})",
        "versions": versions(),
        "tokens": tokens.layout_of(bench),
    }


def public_name(given: Any, model: HookedVLM) -> str:
    """The model's name without a path: a hub id, an organism, or the last part of a folder's name."""
    name = model_name(given if isinstance(given, str) else model)
    name = name if isinstance(given, str | HookedVLM) else str(given)
    if name.startswith("organism:"):
        return name
    folder = Path(name).expanduser()
    is_folder = folder.is_dir() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    return f"folder {folder.resolve().name}" if is_folder else name


def _device(device: torch.device) -> str:
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _silent(text: str) -> None:
    pass


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
