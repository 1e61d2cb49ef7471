"""The results of one run as one table, printed and written beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

HEAD = ("what", "gatelens", "beside it", "ratio", "limit", "")


def summary(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The one table: a row for every promise, then the rivals."""
    rows: list[tuple[str, ...]] = []
    for part, lines in (
        ("sweep", _sweep),
        ("examples", _examples),
        ("rate", _rate),
        ("generate", _generate),
        ("forward", _forward),
        ("memory", _memory),
        ("attribution", _attribution),
        ("store", _store),
        ("workers", _workers),
        ("explore", _explore),
        ("views", _views),
    ):
        found = results.get(part)
        if found is not None:
            rows += [(part, "", found["error"], "", "", "failed")] if "error" in found else lines(found)
    for row in results.get("maps") or []:
        rows += [("maps", "", row["error"], "", "", "failed")] if "error" in row else _map(row)
    for row in results.get("rivals") or []:
        rows.append(_rival(row))
    gpu = results.get("gpu")
    if gpu is not None:
        rows += [("64 runs at Chameleon-7B's size", "", _why(gpu), "", "", "")] if _why(gpu) else _gpu(gpu)
    return rows


def _sweep(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t, n = found["times"], found["runs"]
    ours = f"gl.sweep {_s(t['engine'])}"
    both = found["ratio"], found["ratio_gatelens_hooks"]
    spread = [f"{r['of_medians']:.1f}x faster ({r['least']:.1f} to {r['most']:.1f})" for r in both]
    return [
        (
            f"{n} knockout runs",
            ours,
            f"plain TransformerLens hooks {_s(t['transformer_lens'])}",
            spread[0],
            f"at least {found['limit']:g}x",
            _met(found["passes"]),
        ),
        (
            f"{n} knockout runs",
            ours,
            f"plain hooks in gatelens {_s(t['gatelens_hooks'])}",
            spread[1],
            "",
            "",
        ),
        (
            "largest difference of a logit in those runs",
            f"{found['max_logit_difference']:.1e}",
            f"largest effect of a knockout {found['largest_effect_on_a_logit']:.1f}",
            "",
            "at most 1e-4",
            _met(found["max_logit_difference"] <= 1e-4),
        ),
    ]


def _explore(found: dict[str, Any]) -> list[tuple[str, ...]]:
    limit = f"each under {found['limit']:g} s"
    return [
        (
            f"a moved control of the explorer, {found['model']}: {name}",
            _s(took),
            f"slowest of {took['answers']}: {_s({'median_s': took['most_s']})}",
            "",
            limit,
            _met(took["most_s"] < found["limit"]),
        )
        for name, took in found["times"].items()
    ]


def _views(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for i, (name, page) in enumerate(found["pages"].items()):
        shown = (
            f"{page['cells']:,} cells, {page['queries']:,} queries, another word in {page['answer_s']:.2f} s"
        )
        within = page["mb"] <= found["limit_mb"] and page["most_open_s"] < found["limit_s"]
        limits = f"at most {found['limit_mb']:g} MB, open in under {found['limit_s']:g} s"
        rows.append(
            (
                f"a page of attention, {name}",
                f"{page['mb']:.1f} MB, open in {page['open_s']:.2f} s (at most {page['most_open_s']:.2f} s)",
                shown,
                "",
                "" if i else limits,
                "" if i else _met(within),
            )
        )
    return rows


def _rate(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row in found["threads"]:
        threads = row["threads"]
        rows.append(
            (
                f"matrix rate of those runs, {threads} thread{'s' if threads > 1 else ''}",
                f"{row['gflops_per_s']:.0f} GFLOP/s",
                f"one large product {row['matrix_gflops_per_s']:.0f} GFLOP/s",
                f"{row['median_share']:.0%} ({row['least_share']:.0%} to {max(row['shares']):.0%})",
                f"at least {found['limit']:.0%}",
                _met(row["median_share"] >= found["limit"]),
            )
        )
    return rows


def _examples(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t, worst = found["times"], found["max_metric_difference"]
    what = f"{found['examples']} pictures x {found['runs']} knockout runs"
    plain = (
        f"plain TransformerLens hooks {_s(t['transformer_lens'])} (extrapolated from {found['sampled_runs']} runs of "
        f"{found['sampled_examples']} pictures)"
    )
    limit = f"at least {found['limit']:g}x"
    return [
        (
            what,
            f"gl.sweep {_s(t['engine'])}",
            plain,
            f"{found['ratio']:.1f}x faster",
            limit,
            _met(found["passes"]),
        ),
        (
            "largest difference of the metric in those",
            f"{worst:.1e}",
            "",
            "",
            "at most 1e-4",
            _met(worst <= 1e-4),
        ),
    ]


def _generate(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t = found["times"]
    rows: list[tuple[str, ...]] = []
    same = found["same_tokens_as_transformer_lens"]
    for name, value in found["ratios"].items():
        cut = name.removeprefix("gatelens, ")
        limit = "" if cut == "no knockout" else f"at most {found['limit']:g}x"
        right = found["same_tokens_as_transformers"] if cut == "no knockout" else same[cut]
        verdict = _met(right and (not limit or value <= found["limit"]))
        beside = f"transformers, SDPA, no knockout {_s(t['transformers'])}"
        rows.append(
            (f"{found['new_tokens']} tokens, {cut}", _s(t[name]), beside, f"{value:.2f}x", limit, verdict)
        )
    return rows


def _forward(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t = found["times"]
    beside = f"transformers, SDPA {_s(t['transformers'])}"
    limit = f"at most {found['limit']:g}x"
    return [
        (
            "forward pass, nothing done to it",
            _s(t["gatelens"]),
            beside,
            f"{found['ratio']:.2f}x",
            limit,
            _met(found["passes"]),
        ),
        (
            "forward pass by TransformerLens",
            _s(t["transformer_lens"]),
            beside,
            f"{found['ratio_transformer_lens']:.2f}x",
            "",
            "",
        ),
    ]


def _memory(found: dict[str, Any]) -> list[tuple[str, ...]]:
    m = found["extra_mib"]
    what = "peak memory of the cross-modal attention measure"
    ours = f"{m['measure']:.0f} MiB"
    return [
        (
            what,
            ours,
            f"a forward pass for the last logits {m['gatelens_last']:.0f} MiB",
            f"{found['ratio']:.2f}x",
            f"at most {found['limit']:g}x",
            _met(found["passes"]),
        ),
        (
            what,
            ours,
            f"a forward pass for all logits {m['gatelens']:.0f} MiB",
            f"{found['ratio_to_all_logits']:.2f}x",
            "",
            "",
        ),
        (
            "the same by TransformerLens hooks",
            f"{m['transformer_lens_measure']:.0f} MiB",
            f"a forward pass for all logits {m['gatelens']:.0f} MiB",
            f"{found['ratio_transformer_lens']:.2f}x",
            "",
            "",
        ),
    ]


def _map(row: dict[str, Any]) -> list[tuple[str, ...]]:
    t = row["times"]
    what = f"map of {row['cells']} {row['map']}, {row['site']}"
    beside = {
        "transformer_lens": "TransformerLens' own function",
        "gatelens_hooks": "plain hooks in gatelens",
    }
    rows: list[tuple[str, ...]] = []
    for name, words in beside.items():
        each, limit = row["pair_ratios"][name], row["limits"][name]
        spread = f"{row['ratios'][name]:.1f}x faster ({min(each):.1f} to {max(each):.1f})"
        met = _met(row["ratios"][name] >= limit)
        sampled = f"{words} {_s(t[name])} (from {row['cells_of_the_slow_sides']} of its cells)"
        rows.append((what, f"gl.sweep {_s(t['engine'])}", sampled, spread, f"at least {limit:g}x", met))
    over = row["flops_over_least"]
    gflop = f"{row['flops'] / 1e9:.0f} GFLOP", f"the least possible {row['least_flops'] / 1e9:.0f} GFLOP"
    most = row["operations_limit"]
    limit = ("", "") if most is None else (f"at most {most:g}x", _met(over <= most))
    rows.append((f"operations of that map of {row['map']}", *gflop, f"{over:.2f}x", *limit))
    worst = row["max_metric_difference"]
    effect = f"largest effect of a patch {row['largest_effect']:.1f}"
    what = f"largest difference of the metric in that map of {row['map']}"
    rows.append((what, f"{worst:.1e}", effect, "", "at most 1e-4", _met(worst <= 1e-4)))
    return rows


def _attribution(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t, m, limits = found["times"], found["extra_mib"], found["limits"]
    each, what = found["pair_ratios"], f"attribution map of {found['cells']} cells, resid_pre"
    beside = "TransformerLens' cache_activation_and_gradient"
    worst, largest = found["max_difference"], found["largest"]
    spread = f"{found['ratio']:.1f}x faster ({min(each):.1f} to {max(each):.1f})"
    rows = [
        (
            what,
            f"gl.attribution_map {_s(t['gatelens'])}",
            f"{beside} {_s(t['transformer_lens'])}",
            spread,
            f"at least {limits['faster']:g}x",
            _met(found["passes"]["faster"]),
        ),
        (
            "largest difference of a number of that map",
            f"{worst:.1e}",
            f"largest number {largest:.1f}",
            "",
            "at most 1e-4 of it",
            _met(worst <= 1e-4 * largest),
        ),
    ]
    if m:
        ours = f"{m['gatelens']:.0f} MiB; a forward pass {m['forward']:.0f} MiB"
        limit, share = f"at most {limits['memory']:g}x", f"{found['memory_share']:.2f}x"
        theirs = f"{beside} {m['transformer_lens']:.0f} MiB"
        rows.append(("its peak memory", ours, theirs, share, limit, _met(found["passes"]["memory"])))
    return rows


def _store(found: dict[str, Any]) -> list[tuple[str, ...]]:
    what = f"{found['rows']:,} activations of {found['width']} float16"
    sides = {"memmap": "numpy memmap", "disk": "plain file, fsync at the end"}
    rows: list[tuple[str, ...]] = []
    for name, words in {
        "write": "written",
        "read": "read in order",
        "drawn": "read in a drawn order",
    }.items():
        ours = found["store"][name]
        for side, beside in sides.items():
            if name in found[side]:
                theirs = found[side][name]
                cells = f"store {ours:.0f} MB/s", f"{beside} {theirs:.0f} MB/s", f"{ours / theirs:.2f}x"
                rows.append((f"{what}, {words}", *cells, "", ""))
    checked = f"store {found['store']['verify']:.0f} MB/s"
    rows.append((f"{what}, compared with their checksums", checked, "", "", "", ""))
    rows.append((f"{what}, opened", f"store {found['store']['open_ms']:.0f} ms", "", "", "", ""))
    tenth = found["store_of_a_tenth"]
    for name, words in {
        "write": "writing",
        "read": "reading in order",
        "drawn": "reading in a drawn order",
    }.items():
        ours, fewer = (f"{one[f'{name}_mib']:.0f} MiB" for one in (found["store"], tenth))
        rows.append((f"peak memory of {words} them", ours, f"a tenth of the rows {fewer}", "", "", ""))
    return rows


def _workers(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t, plan = found["times"], found["plan"]
    what = f"{found['examples']} pictures x {found['runs']} knockouts of organism:gated"
    rows: list[tuple[str, ...]] = []
    for name, words in {"two": "2 workers on this machine", "ray": "2 workers on 2 nodes of Ray"}.items():
        pairs = found["pairs"][name]
        faster = f"{found['ratio'][name]:.2f}x faster ({pairs['least']:.2f} to {pairs['most']:.2f})"
        limit = (f"at least {found['limit']:g}x", _met(found["passes"])) if name == "two" else ("", "")
        rows.append((f"{what}, {words}", _s(t[name]), f"1 worker {_s(t['one'])}", faster, *limit))
        rows.append(
            (f"their start, once, with the model, {words}", f"{found['start_s'][name]:.1f} s", "", "", "", "")
        )
    rows.append(("tables of all workers", "", "", "", "equal to the bit", _met(found["equal"])))
    took = f"{plan['seconds']:.1f} s, {plan['mib']:.0f} MiB"
    rows.append(
        (
            f"planning {plan['units']:,} units",
            took,
            "",
            f"{plan['asked_s']:.1f} s of it to find the missing",
            "",
            "",
        )
    )
    return rows


def _rival(row: dict[str, Any]) -> tuple[str, ...]:
    what = f"image to text, {row['how']}, {row['runs']} runs"
    ours = f"{row['gatelens_ms_per_run']:.1f} ms a run"
    if "error" in row:
        return (what, ours, f"{row['toolkit']}: {row['error']}", "", "", "")
    beside = f"{row['toolkit']} {row['ms_per_run']:.0f} ms a run"
    same = f"logits differ by {row['max_logit_difference']:.1e}"
    return (what, ours, beside, f"{row['over_gatelens']:.1f}x the time", "", same)


def _why(gpu: dict[str, Any]) -> str:
    return gpu.get("skipped") or gpu.get("error") or ""


def _gpu(found: dict[str, Any]) -> list[tuple[str, ...]]:
    t, peak = found["times"], found["peak_gib"]
    what = f"{found['runs']} runs at Chameleon-7B's size, {found['model']['dtype']}, {found['device']}"
    plain = f"plain TransformerLens hooks {_s(t['transformer_lens'])}"
    rate = f"{found['tflops_per_s']:.0f} of {found['matrix_tflops_per_s']:.0f} TFLOP/s"
    return [
        (what, _s(t["engine"]), plain, f"{found['ratio']:.1f}x faster", "", ""),
        (
            "its matrix rate",
            rate,
            "one large product in the same run",
            f"{found['share_of_matrix_rate']:.0%}",
            "",
            "",
        ),
        ("its peak memory", f"{peak['engine']:.1f} GiB", f"plain hooks {peak['plain']:.1f} GiB", "", "", ""),
    ]


def growth_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for every size of every axis."""
    rows: list[tuple[str, ...]] = []
    for axis, one in found.items():
        for r in one["rows"]:
            rows.append(
                (
                    f"{r['value']} {axis}",
                    str(r["runs"]),
                    f"{r['seconds']:.3f} s",
                    f"{r['flops'] / 1e9:.1f}",
                    f"{r['least_flops'] / 1e9:.1f}",
                    f"{r['flops_over_least']:.2f}x",
                )
            )
        e = one["exponents"]
        rows.append(
            (
                f"exponent in {axis}",
                "",
                f"{e['seconds']:.2f}",
                f"{e['flops']:.2f}",
                f"{e['least_flops']:.2f}",
                "",
            )
        )
    return rows


FILES = {
    "model.py": "the model and its prompt.",
    "plain.py": "TransformerLens' own bridge on the same weights, without gatelens' attention.",
    "sweep.py": "64 knockout runs: `gl.sweep` beside plain hooks.",
    "rate.py": "the share of the machine's own matrix rate that this sweep reaches.",
    "examples.py": "200 pictures, each under 64 knockouts: `gl.sweep` over examples beside plain hooks.",
    "maps.py": "exact patching maps beside TransformerLens' own functions and plain hooks.",
    "agreement.py": "when a gradient map of an organism is wrong, and whether it says so; run by itself.",
    "attribution.py": "attribution patching over all positions and layers beside TransformerLens' own.",
    "generate.py": "32 tokens under a knockout beside transformers' cached generation without.",
    "forward.py": "a plain forward pass beside transformers' own.",
    "memory.py": "peak memory of the cross-modal attention measure beside a plain forward pass.",
    "growth.py": "runs, tokens and layers doubled; operations beside the least possible.",
    "explore.py": "a moved control of `gatelens explore` until its answer is drawn, in Chromium.",
    "store.py": "1,000,000 activations written and read beside the disk's own rate and numpy memmap.",
    "workers.py": "two workers beside one, here and on Ray; what planning a million units costs.",
    "rivals.py": "other toolkits in environments that it makes in `build/rivals/`; their scripts are in `in_rivals/`.",
    "gpu.py": "the sweep at Chameleon-7B's real size, where there is a GPU.",
    "views.py": "pages of attention in Chromium: size, time to open, time to answer.",
    "timing.py": "how times are taken. `report.py`: the tables. `--only sweep,forward` runs parts and writes no files.",
}

GROWTH_HEAD = ("size", "runs", "gl.sweep", "GFLOP", "least GFLOP", "over least")


def plain_text(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in columns, for the terminal."""
    table = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def readme(results: dict[str, Any]) -> str:
    """The page that stands beside the results."""
    m = results["machine"]
    model = results["model"]
    parts = [
        "# Benchmarks",
        "",
        "Written by `make bench` (or `python -m benchmarks`), all of it in one run; its numbers are in "
        "`results.json`.",
        "",
        f"Machine: {m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gib']} GiB"
        f"{', ' + m['gpu'] if m['gpu'] else ', no GPU'}; Python {m['python']}, torch {m['torch']}, transformers "
        f"{m['transformers']}, TransformerLens {m['transformer_lens']}. Load before the run: {m['load_before']}.",
        "",
        f"Model: {model['class']} with random weights, {model['parameters'] / 1e6:.1f}M parameters, "
        f"{model['layers']} layers, {model['dtype']}; {model['positions']} positions, {model['image_tokens']} of them "
        "image tokens. A sweep is 8 start layers × {gate, image, 10 random image tokens, last image token} → text "
        "× {mask, zero}.",
        "",
        "Sides of a pair are timed in turn in one process; times are medians, ratios those of medians (in brackets "
        "the least and the most of the pairs). Peak memory is what the process holds at most during a pass less "
        "what it held before, each in a process of its own. A rival is timed in its own environment, on the same "
        "weights, and gatelens right before it.",
        "",
        markdown(HEAD, summary(results)),
        "",
    ]
    if results.get("growth") and "error" not in results["growth"]:
        parts += [
            "## Growth",
            "",
            "One thing doubles, the rest stays as in the sweep. Operations are those of the products of matrices, "
            "counted by torch; the least possible is the clean run once and of each run the cells its knockout can "
            "change.",
            "",
            markdown(GROWTH_HEAD, growth_rows(results["growth"])),
            "",
        ]
    notes = {row["toolkit"]: row for row in results.get("rivals") or []}
    if notes:
        parts += ["## Rivals", ""]
        for name, row in notes.items():
            on = ", ".join(f"{k} {v}" for k, v in (row["versions"] or {}).items())
            parts.append(f"- {name}{f' ({on})' if on else ''}: {row['note']}.")
        parts.append("")
    parts += ["## Files", ""] + [f"- `{name}`: {what}" for name, what in FILES.items()] + [""]
    return "\n".join(parts)


def _s(times: dict[str, Any]) -> str:
    seconds = times["median_s"]
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _met(passes: bool) -> str:
    return "met" if passes else "NOT MET"
