"""The scripts of docs/papers run on organisms, and say what plain hooks, transformers or a closed form say."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
import sys
import tokenize
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gatelens.shipped_organisms import organism_folder

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "papers"
PAGE = FOLDER.parent / "papers.md"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
MOST_LINES = 40
SMALL = {"too_late_to_recall": 80, "head_pursuit": 8, "process_image_tokens": 2}  # others run with 4 examples
IGNORED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def documentation(name: str) -> str:
    return ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""


def code_lines(path: Path) -> int:
    """Lines of a script that hold code: neither blank, nor a comment, nor documentation."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in IGNORED:
            used |= set(range(token.start[0], token.end[0] + 1))
    return len(used - documented)


@pytest.mark.parametrize("name", SCRIPTS)
def test_says_what_it_is_of_and_fits_a_screen(name: str) -> None:
    said = documentation(name)
    assert re.search(r"arXiv \d{4}\.\d{5}", said)
    assert "\nLeft out: " in said
    assert code_lines(FOLDER / f"{name}.py") <= MOST_LINES
    imported = re.findall(r"^(?:import|from) (gatelens\S*)", (FOLDER / f"{name}.py").read_text(), flags=re.M)
    assert imported == ["gatelens"]


def test_lines_are_counted() -> None:
    assert code_lines(FOLDER / "_common.py") < len((FOLDER / "_common.py").read_text().splitlines()) - 10
    assert code_lines(Path(__file__)) > MOST_LINES


def test_the_page_lists_every_script() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"\(papers/(\w+)\.py\)", page)) == set(SCRIPTS)
    for name in SCRIPTS:
        (number,) = set(re.findall(r"arXiv (\d{4}\.\d{5})", documentation(name)))
        assert f"arxiv.org/abs/{number}" in page


Run = Callable[[str], SimpleNamespace]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a script once, with few examples: the values it leaves, what it prints and its pictures."""
    done: dict[str, SimpleNamespace] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("TQDM_DISABLE", "1")

        def run(name: str) -> SimpleNamespace:
            if name not in done:
                out = tmp_path_factory.mktemp(name)
                patch.setattr(sys, "argv", [f"{name}.py", "--n", str(SMALL.get(name, 4)), "--out", str(out)])
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    values = runpy.run_path(str(FOLDER / f"{name}.py"))
                done[name] = SimpleNamespace(
                    **values, printed=printed.getvalue(), pictures=sorted(out.glob("*.png"))
                )
            return done[name]

        yield run
        sys.modules.pop("_common", None)


@pytest.mark.organism
@pytest.mark.parametrize("name", SCRIPTS)
def test_prints_a_table_draws_a_picture_and_reads_it(script: Run, name: str) -> None:
    made = script(name)
    *table, reading = made.printed.strip().splitlines()
    assert reading.startswith("Reading: ") and re.search(r"\d|none|no path", reading) and "nan" not in reading
    assert len([line for line in table if re.search(r"\d\.\d", line)]) >= 2
    assert made.pictures and all(path.stat().st_size > 5000 for path in made.pictures)


# --- one fact a script


def probability(model: Any, prompt: Any, word: str, hooks: Any = ()) -> float:
    """Of the next token, under plain hooks."""
    logits = model.run_with_hooks(prompt, fwd_hooks=list(hooks))
    return float(logits[0, -1].softmax(-1)[model.to_single_token(word)])


def cell(table: Any, **labels: Any) -> float:
    """The value of the one row with these labels."""
    for column, label in labels.items():
        table = table[table[column] == label]
    return float(table.value.item())


def shut(scores: torch.Tensor, hook: Any, queries: list[int], keys: list[int]) -> torch.Tensor:
    for query in queries:
        scores[:, :, query, keys] = -torch.inf
    return scores


def cut(layers: list[int], queries: list[int], keys: list[int]) -> list[tuple[str, Any]]:
    return [
        (f"blocks.{layer}.attn.hook_attn_scores", partial(shut, queries=queries, keys=keys))
        for layer in layers
    ]


@pytest.mark.organism
def test_cross_modal_flow_is_masked_scores(script: Run) -> None:
    made = script("cross_modal_flow")
    example = made.examples[0]
    prompt = made.model.prepare(example.image, example.prompt)
    last, (image, question) = (
        prompt.tokens.n_pos - 1,
        (prompt.tokens.positions(s) for s in ("image", "query - last")),
    )
    before = probability(made.model, prompt, example.answers[0])
    for path, queries, keys in (("image → last", [last], image), ("question → last", [last], question)):
        late = made.n_layers - 1
        assert made.width == 2  # of six layers: the one that is named and the one before
        for layer, window in ((0, [0]), (late, [late - 1, late])):
            after = probability(made.model, prompt, example.answers[0], cut(window, queries, keys))
            found = cell(made.table, path=path, layer=layer, example=example.id)
            assert found == pytest.approx(100 * (after - before) / before, abs=0.05)


@pytest.mark.organism
def test_map_the_flow_is_masked_scores(script: Run) -> None:
    made = script("map_the_flow")
    frames = [made.videos.tokens.positions(f"image[{i}]", 1) for i in (0, 1)]
    assert len(frames[0]) == len(frames[1]) > 0
    row = made.videos[1:2]
    token, before = int(made.clean.indices[1]), float(made.clean.values[1])
    logits = made.model.run_with_hooks(row, fwd_hooks=cut([2, 3], frames[1], frames[0]))
    after = float(logits[0, -1].softmax(-1)[token])
    found = cell(made.table, path="frame → later frame", layer=3, example=1)
    assert found == pytest.approx(100 * (after - before) / before, abs=0.05)


@pytest.fixture(scope="module")
def plain() -> Callable[[str], Any]:
    """An organism as transformers has it."""
    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            kind = "Llava" if name == "llava" else "Chameleon"
            of = getattr(transformers, f"{kind}ForConditionalGeneration")
            made[name] = of.from_pretrained(organism_folder(name), attn_implementation="eager").eval()
        return made[name]

    return load


@pytest.mark.organism
@torch.no_grad()
def test_visual_processing_is_transformers_with_other_embeddings(script: Run, plain: Any) -> None:
    made = script("visual_processing")
    hf = plain("llava")
    for i, example in enumerate(made.examples):
        prompt = made.prompts[i]
        embeddings = made.streams[i].clone()
        on = prompt.tokens.mask(f"image.mask({example.label})", masks=example.masks)
        embeddings[on] = made.mean
        logits = hf.lm_head(hf.model.language_model(inputs_embeds=embeddings).last_hidden_state)[0, -1]
        wrong = int(logits.argmax()) != made.model.to_single_token(example.label)
        assert cell(made.table, example=example.id, ablated="object") == float(wrong)
    last = made.model.run(prompt, made.grid["ablated"]["object"])[0, -1]
    assert torch.allclose(last, logits, atol=1e-3)


@pytest.mark.organism
@torch.no_grad()
def test_image_token_lens_is_norm_and_unembedding(script: Run, plain: Any) -> None:
    made = script("image_token_lens")
    hf, prompt, example = plain("open"), made.prompt, made.example  # those of the last picture
    states = hf(**prompt.tensors, output_hidden_states=True).hidden_states
    image = prompt.tokens.mask("image")[0]
    on = prompt.tokens.mask(f"image.mask({example.label})", masks=example.masks)[0]
    for layer in (1, 3):
        logits = hf.lm_head(hf.model.norm(states[layer]))[0].float()
        logits[:, hf.model.vocabulary_mapping.image_tokens] = torch.finfo(
            torch.float32
        ).min  # as Chameleon's forward
        ranks = (logits > logits[:, made.model.to_single_token(example.label), None]).sum(-1)
        for where, tokens in ((on, "on the object"), (image & ~on, "elsewhere")):
            found = cell(made.table, layer=layer, tokens=tokens, example=example.id)
            assert found == pytest.approx(float((ranks[where] < 5).float().mean()), abs=0.02)


@pytest.mark.organism
@torch.no_grad()
def test_back_patching_is_transformers_with_a_layer_put_back(script: Run, plain: Any) -> None:
    made = script("vlm_circuits")
    hf, right = plain("llava"), []
    for example in made.examples:
        prompt = made.model.prepare(example.image, example.prompt)
        image = prompt.tokens.mask("image")
        late = hf(**prompt.tensors, output_hidden_states=True).hidden_states[4]  # leaving layer 3

        def put_back(module: Any, args: Any, output: Any, image: Any = image, late: Any = late) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            stream[image] = late[image]
            return output

        handle = hf.model.language_model.layers[1].register_forward_hook(put_back)
        said = hf(**prompt.tensors).logits[0, -1]
        handle.remove()
        right.append(int(said.argmax()) == made.model.to_single_token(example.answers[0]))
    assert made.accuracy.loc["3 → 1"].mean() == np.mean(right)
    assert torch.allclose(made.model.run(prompt, made.grid["patch"]["3 → 1"])[0, -1], said, atol=1e-3)


@pytest.mark.organism
def test_head_attribution_cuts_one_head(script: Run) -> None:
    made = script("head_attribution")
    (layer, head), example = made.heads[14], made.examples[0]
    prompt = made.model.prepare(example.image, example.prompt)
    query, image = (prompt.tokens.positions(role) for role in ("query", "image"))

    def zero(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern[:, head, query[0] :, image[0] : image[-1] + 1] = 0
        return pattern

    hooks = [(f"blocks.{layer}.attn.hook_pattern", zero)]
    logits = made.model.run_with_hooks(prompt, fwd_hooks=hooks)[0, -1]
    found = made.logits([[(layer, head)]])[example.id].item()
    assert found == pytest.approx(float(logits[made.model.to_single_token(example.label)]), abs=1e-3)
    assert set(made.worth) == {"regression", "one at a time", "attention"} and len(made.worth) == len(
        made.heads
    )


@pytest.mark.organism
def test_head_pursuit_finds_what_is_made_of_atoms(script: Run) -> None:
    made = script("head_pursuit")
    torch.manual_seed(0)
    assert made.explained(torch.randn(9, 3) @ made.atoms[[1, 4, 7]], steps=3) == pytest.approx(1, abs=1e-4)
    outputs = torch.randn(9, made.atoms.shape[1])
    most = max(float((outputs @ atom).square().sum() / outputs.square().sum()) for atom in made.atoms)
    assert made.explained(outputs, steps=1) == pytest.approx(most, abs=1e-5)
    basis = torch.linalg.qr(made.atoms.T).Q
    assert made.explained(outputs, steps=len(made.atoms)) == pytest.approx(
        float((outputs @ basis).square().sum() / outputs.square().sum()), abs=1e-4
    )


@pytest.mark.organism
def test_fcct_restores_by_patching_one_output(script: Run) -> None:
    made = script("fcct")
    assert made.rate.loc["hidden state at last token"].iloc[-1] == pytest.approx(1, abs=1e-4)
    layer, rates = 4, []
    name = f"blocks.{layer}.hook_attn_out"
    for pair in made.pairs:
        clean, noisy = (made.model.prepare(one.image, one.prompt) for one in (pair.clean, pair.corrupt))
        _, cache = made.model.run_with_cache(clean, names_filter=name)

        def restore(output: torch.Tensor, hook: Any, cache: Any = cache) -> torch.Tensor:
            output[:, -1] = cache[name][:, -1]
            return output

        each = ((clean, ()), (noisy, ()), (noisy, [(name, restore)]))
        rates.append([probability(made.model, prompt, pair.target, hooks) for prompt, hooks in each])
    first, low, back = np.mean(rates, axis=0)
    assert made.rate.loc["attention at last token", layer] == pytest.approx(
        (back - low) / (first - low), abs=1e-3
    )


@pytest.mark.organism
def test_information_is_what_hiding_tokens_changes(script: Run) -> None:
    made = script("information_horizon")
    example, prompt = made.example, made.prompt  # of the last question
    image = prompt.tokens.positions("image")
    before = probability(made.model, prompt, example.answers[0])
    for layer in (1, 4):
        name = f"blocks.{layer}.attn.hook_pattern"
        looked = made.model.run_with_cache(prompt, names_filter=name)[1][name][0, :, -1].mean(0)
        gone = sorted(image, key=lambda position: float(looked[position]))[: len(image) // 2]
        others = [position for position in range(prompt.tokens.n_pos) if position not in gone]
        after = probability(
            made.model, prompt, example.answers[0], cut(list(made.layers[layer:]), others, gone)
        )
        found = cell(made.table, removed="half, least attended", layer=layer, example=example.id)
        assert found == pytest.approx(abs(after - before), abs=1e-4)


@pytest.mark.organism
@torch.no_grad()
def test_entropy_is_that_of_the_gram_matrix(script: Run, plain: Any) -> None:
    made = script("process_image_tokens")
    states = plain("llava")(**made.prompt.tensors, output_hidden_states=True).hidden_states
    image = made.prompt.tokens.mask("image")
    for layer in (0, 4):
        rows = states[layer + 1][image].double()
        shares = torch.linalg.eigvalsh(rows @ rows.T / rows.square().sum()).clamp(min=1e-12)
        entropy = float(-(shares * shares.log()).sum() / np.log(len(rows)))
        found = cell(made.spread, tokens="image", layer=layer, example=made.example.id)
        assert found == pytest.approx(entropy, abs=1e-3)
    assert made.kept("a red fox", None, before="a fox on a square") == 2 / 4


@pytest.mark.organism
def test_lost_in_attention_replaces_patterns(script: Run) -> None:
    made = script("lost_in_attention")

    def even(pattern: torch.Tensor, hook: Any, query: list[int]) -> torch.Tensor:
        for row in query:
            pattern[:, :, row] = (torch.arange(pattern.shape[-1]) <= row) / (row + 1)
        return pattern

    for example in made.examples[:2]:
        prompt = made.model.prepare(example.image, example.prompt)
        hook = partial(even, query=prompt.tokens.positions("query"))
        logits = made.model.run_with_hooks(prompt, fwd_hooks=[("blocks.4.attn.hook_pattern", hook)])
        right = int(logits[0, -1].argmax()) == made.model.to_single_token(example.answers[0])
        assert cell(made.table, pattern="even", layer=4, example=example.id) == float(right)
        assert torch.allclose(
            made.model.run(prompt, made.replaced("even", 4))[0, -1], logits[0, -1], atol=1e-3
        )
    readable = torch.tensor([[True, False, True], [True, True, True]])
    drawn = made.gaussian(torch.zeros(2, 4, 3), SimpleNamespace(layer=3, readable=readable))
    assert torch.allclose(drawn.sum(-1), torch.ones(2, 4)) and not drawn[0, :, 1].any() and drawn.std() > 0.1


@pytest.mark.organism
def test_sinks_are_scaled(script: Run) -> None:
    made = script("sinks")
    weights = torch.tensor([[[0.5, 0.25, 0.25]]])
    assert torch.allclose(made.scale([0], 2)(weights, None), torch.tensor([[[1.0, 0.25, 0.25]]]) / 1.5)
    assert torch.allclose(made.scale([0], 0)(weights, None), torch.tensor([[[0.0, 0.5, 0.5]]]))
    prompt, example = made.prompt, made.example  # the last question
    query, sinks = prompt.tokens.positions("query"), made.groups["V-sinks"].tolist()
    image = prompt.tokens.positions("image")
    assert len(sinks) == len(image) // 8 and set(sinks) <= set(image)
    before = probability(made.model, prompt, example.answers[0])
    after = probability(made.model, prompt, example.answers[0], cut([3], query, sinks))
    found = cell(made.table, scaled="V-sinks × 0", layer=3, example=example.id)
    assert found == pytest.approx(after - before, abs=1e-4)


@pytest.mark.organism
def test_too_late_to_recall_restores_mlp_outputs(script: Run) -> None:
    made = script("too_late_to_recall")
    name, effects = "blocks.0.hook_mlp_out", []
    for pair in made.pairs:
        right, wrong = (made.model.to_single_token(word) for word in (pair.target, pair.base))
        clean, corrupt = (made.model.prepare(one.image, one.prompt) for one in (pair.clean, pair.corrupt))
        first, cache = made.model.run_with_cache(clean, names_filter=name)

        def restore(output: torch.Tensor, hook: Any, cache: Any = cache) -> torch.Tensor:
            output[:, -1] = cache[name][:, -1]
            return output

        back = made.model.run_with_hooks(corrupt, fwd_hooks=[(name, restore)])
        high, low, middle = (
            float(x[0, -1, right] - x[0, -1, wrong]) for x in (first, made.model(corrupt), back)
        )
        effects.append((middle - low) / (high - low))
    assert made.table.loc["mlp_out of last token, restored", 0] == pytest.approx(np.mean(effects), abs=1e-3)
    assert 0.2 < made.table.loc["probe of last token", 5] <= 1
