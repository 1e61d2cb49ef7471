"""Images and text checked against each other, and the tensors they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from gatelens.errors import InputError, UnknownNameError, did_you_mean
from gatelens.hub_errors import one_line
from gatelens.pictures import ImageLike, load_image, thumbnail
from gatelens.tokens import Role, TokenMap

Images = ImageLike | Sequence[Any] | None


PER_PICTURE = frozenset({"image_sizes", "image_grid_thw"})  # tensors with one row per picture
PIXELS = frozenset({"pixel_values", "pixel_attention_mask"})  # which prompts without a picture do without


@dataclass(frozen=True)
class Origin:
    """The model that a batch was made for: a mark of its own, its family, how its processor scales pixels."""

    mark: str
    family: str
    scaling: Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class VLMInputs:
    """A batch of prompts with their pictures, padded on the left, which behaves like its token ids.

    ``tensors``: what transformers' forward takes (``input_ids``, ``attention_mask``, ``position_ids`` and,
    with images, ``pixel_values``). ``images``: the original pictures of each prompt, empty when unknown.
    ``rows``: for tensors whose rows are pictures or patches, how many belong to each example. ``made_for``: the
    model that they were made for; another model runs them if it would prepare them identically.

    ``inputs[2:5]`` and ``inputs[:, :30]`` are batches with their pictures; so is each prompt of a loop. Indexing away
    an axis (``inputs[0]``, ``inputs[:, -1]``) gives ids alone, a Tensor, which no model accepts as a prompt with
    pictures.

    Example:
        >>> batch = model.prepare([scene.image, scene.image], [scene.prompt, "<image>this is"])
        >>> batch.shape, batch[1:].texts
        (torch.Size([2, 70]), ('<image>this is',))
        >>> scene.prompt, inputs.images[0][0].size
        ('<image>this is a', (64, 64))
    """

    tensors: dict[str, Tensor]
    tokens: TokenMap
    images: tuple[tuple[Image.Image, ...], ...]
    texts: tuple[str, ...]
    single: bool = False  # prepared from one string rather than a list: generate answers with one string

    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    made_for: Origin | None = None

    @property
    def batch_size(self) -> int:
        return self.tokens.batch_size

    @property
    def ids(self) -> Int[Tensor, "batch pos"]:
        """The token ids alone; a picture is placeholders in them."""
        return self.tensors["input_ids"]

    @property
    def of_pictures(self) -> tuple[str, ...]:
        """Names of the tensors that hold pictures rather than positions."""
        return tuple(name for name in self.tensors if name in self.rows or name in PIXELS | PER_PICTURE)

    # --- as token ids

    @property
    def shape(self) -> torch.Size:
        """(batch, pos)"""
        return self.ids.shape

    @property
    def ndim(self) -> int:
        return 2

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the ids."""
        return self.ids.dtype

    def __len__(self) -> int:
        return self.batch_size

    def __iter__(self) -> Iterator[VLMInputs]:
        """Each prompt as a batch of one."""
        return (self.select([example]) for example in range(self.batch_size))

    def __getitem__(self, key: Any) -> Any:
        """A batch for slices (of prompts also a list of numbers), ids for everything else.

        Raises:
            InputError: positions would cut a picture, or do not begin with the first.
        """
        prompts, positions = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        numbers = prompts.tolist() if isinstance(prompts, Tensor) and prompts.ndim == 1 else prompts
        if not isinstance(numbers, (slice, list)) or not isinstance(positions, slice):
            return self.ids[key]
        if (
            isinstance(numbers, list)
            and len(numbers) == self.batch_size
            and set(map(type, numbers)) == {bool}
        ):
            numbers = [i for i, wanted in enumerate(numbers) if wanted]
        some = self if numbers == slice(None) else self.select(numbers)
        start, stop, step = positions.indices(self.shape[1])
        if (start, step) != (0, 1) or not stop:
            raise InputError(
                f"positions {start}:{stop}:{step} of a prompt: take them from the first on (inputs[:, :n]), as "
                "positions are counted from it"
            )
        return some if stop == self.shape[1] else some._first(stop)

    def __eq__(self, other: object) -> Any:
        """Bool[batch, pos], as of token ids: the same id in a prompt with the same pictures."""
        if not isinstance(other, VLMInputs):
            return NotImplemented
        mine, theirs = ([one._pictures() for one in inputs] for inputs in (self, other))
        n = max(len(mine), len(theirs))
        pairs = zip(mine * (n // len(mine)), theirs * (n // len(theirs)), strict=True)
        same = [len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in pairs]
        return (self.ids == other.ids) & torch.tensor(same, device=self.device)[:, None]

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnknownNameError(
            f"a batch of prompts has no '{name}'{did_you_mean(name, dir(type(self)))}; inputs.ids are its token ids, "
            "without pictures"
        )

    def _pictures(self) -> list[Tensor]:
        return [self.tensors[name] for name in self.of_pictures]

    def dim(self) -> int:
        return 2

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def expand(self, batch: int, pos: int = -1) -> VLMInputs:
        """One prompt ``batch`` times."""
        if self.batch_size != 1 or pos not in (-1, self.shape[1]):
            raise InputError(
                f"expand({batch}, {pos}) of {self.batch_size} prompts: only one prompt is repeated, whole"
            )
        return self.select([0] * batch)

    def to(self, device: str | torch.device) -> VLMInputs:
        """The same batch with its tensors on another device. Raises InputError where that cannot be used."""
        try:
            named = torch.device(device)
            moved = {name: value.to(named) for name, value in self.tensors.items()}
        except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
            raise InputError(f"device {device!r} cannot be used: {one_line(error)}") from error
        if named.type == "meta":
            raise InputError("device 'meta' cannot be used: it holds no values")
        return dataclasses.replace(self, tensors=moved)

    def cpu(self) -> VLMInputs:
        return self.to("cpu")

    def clone(self) -> VLMInputs:
        """The same batch with tensors of its own."""
        return dataclasses.replace(
            self, tensors={name: value.clone() for name, value in self.tensors.items()}
        )

    # --- parts and more of it

    def select(self, examples: slice | Sequence[int]) -> VLMInputs:
        """Some of the examples. Rows of ``pixel_values`` follow the example their picture belongs to."""
        chosen = self.tokens.examples(examples)
        pictures = any(self.tokens.image_sizes[e] for e in chosen)
        tensors: dict[str, Tensor] = {}
        for name, value in self.tensors.items():
            if name in self.rows:
                index = self._rows_of(name, [(e, self.rows[name][e]) for e in chosen])
                if index:
                    tensors[name] = value[index]
            elif name in PIXELS and not pictures:
                continue
            elif name == "position_ids" and value.ndim == 3:  # three or four streams come first
                tensors[name] = value[:, chosen]
            else:
                tensors[name] = value[chosen]
        rows = {name: tuple(counts[e] for e in chosen) for name, counts in self.rows.items()}
        return VLMInputs(
            tensors,
            self.tokens.select(chosen),
            tuple(self.images[e] for e in chosen),
            tuple(self.texts[e] for e in chosen),
            self.single and len(chosen) == 1,
            rows,
            self.made_for,
        )

    def _rows_of(self, name: str, counts: Sequence[tuple[int, int]]) -> list[int]:
        """The first rows of examples, with the number of each."""
        starts = np.cumsum([0, *self.rows[name]]).tolist()
        return [row for example, count in counts for row in range(starts[example], starts[example] + count)]

    def _first(self, n_pos: int) -> VLMInputs:
        """The first positions of each prompt."""
        tokens = self.tokens.first(n_pos)
        before = [len(sizes) for sizes in self.tokens.image_sizes]
        kept = [len(sizes) for sizes in tokens.image_sizes]
        tensors, rows = dict(self.tensors), dict(self.rows)
        if kept != before:
            if self._by_example():
                raise InputError(f"positions :{n_pos} leave out a picture: prepare the shorter prompts")
            for name, counts in self.rows.items():
                whole = [n == all_of_it for n, all_of_it in zip(kept, before, strict=True)]
                if not all(
                    w or n == 0 or c == b for w, n, c, b in zip(whole, kept, counts, before, strict=True)
                ):
                    raise InputError(
                        f"positions :{n_pos} leave out one of a prompt's pictures: prepare it again"
                    )
                rows[name] = tuple(c if w else n for w, n, c in zip(whole, kept, counts, strict=True))
                tensors[name] = self.tensors[name][self._rows_of(name, list(enumerate(rows[name])))]
                if not sum(kept):
                    del tensors[name], rows[name]
        for name, value in tensors.items():
            if name not in self.of_pictures and value.shape[-1] == self.shape[1]:
                tensors[name] = value[..., :n_pos]
        images = tuple(some[:n] for some, n in zip(self.images, kept, strict=True))
        return VLMInputs(tensors, tokens, images, self.texts, self.single, rows, self.made_for)

    def _by_example(self) -> bool:
        """Whether a tensor of pictures has its rows by example, several pictures in one."""
        own = {name for name, value in self.tensors.items() if value.shape[-1:] == self.shape[1:]}
        return bool(set(self.tensors) - own - set(self.rows))

    def grown(self, ids: Int[Tensor, "batch new"], tokens: TokenMap, texts: Sequence[str]) -> VLMInputs:
        """These prompts with the text generated after them.

        Args:
            tokens: the map of the grown prompts, with role ``pad`` where an example had ended.
            texts: what was written, one string an example.

        Raises:
            InputError: an image token was written.
        """
        tensors, n_pos, ids = dict(self.tensors), self.shape[1], ids.to(self.device)
        of_images = self.ids[(self.tokens.roles == Role.IMAGE).to(self.device)]
        if bool((written := torch.isin(ids, of_images)).any()):
            raise InputError(
                f"the model wrote an image token (id {int(ids[written][0])}), not a picture in a prompt: cut the "
                "text before it, inputs[i : i + 1, :n]"
            )
        for name, value in self.tensors.items():
            if name == "input_ids":
                new = ids
            elif name == "attention_mask":
                new = (tokens.roles[:, n_pos:] != Role.PAD).to(value)
            elif name == "position_ids":
                steps = [next_position_ids(value, step) for step in range(ids.shape[1])]
                new = torch.cat(steps, dim=-1)
            elif name not in self.of_pictures and value.shape == self.shape:
                # token types: what is written is not a picture and attends backwards alone
                other = (tokens.two_way[:, n_pos - 1] >= 0) | (tokens.roles[:, n_pos - 1] == Role.IMAGE)
                last = value[:, -1]
                new = torch.where(other.to(value.device), 1 - last, last)[:, None].expand(-1, ids.shape[1])
            else:
                continue
            tensors[name] = torch.cat([value, new], dim=-1)
        whole = tuple(f"{before}{after}" for before, after in zip(self.texts, texts, strict=True))
        return dataclasses.replace(self, tensors=tensors, tokens=tokens, texts=whole)

    def __repr__(self) -> str:
        n_pictures = sum(len(sizes) for sizes in self.tokens.image_sizes)
        head = f"VLMInputs({self.batch_size} x {self.shape[1]} positions, {n_pictures} picture(s), {self.device})"
        lines = [f"  {number}: {text[:90]!r}" for number, text in enumerate(self.texts[:6])]
        more = [f"  … {self.batch_size - 6} more"] if self.batch_size > 6 else []
        return "\n".join([head, *lines, *more])

    def _repr_html_(self) -> str:
        """Pictures as thumbnails over the table of who is where, of the first prompts."""
        some = self.select(slice(0, 4))
        pictures = [thumbnail(picture) for one in some.images for picture in one[:8]]
        more = f"<p>… {self.batch_size - 4} more</p>" if self.batch_size > 4 else ""
        return f"<div>{''.join(pictures)}</div>{some.tokens.show()._repr_html_()}{more}"


def next_position_ids(position_ids: Tensor, step: int) -> Tensor:
    """Positions of the token ``step`` after the prompt: one after the highest, the same in every stream."""
    highest = position_ids.amax(dim=-1, keepdim=True)
    if highest.ndim == 3:  # streams of time, height and width run together again after a picture
        highest = highest.amax(dim=0, keepdim=True).expand_as(highest)
    return highest + 1 + step


def match_images(images: Images, texts: Sequence[str], placeholder: str) -> list[list[Image.Image]]:
    """The pictures of each prompt, as many as it has placeholders.

    ``images``: one picture, a flat list (dealt out to the placeholders in order), or a list of lists, one a
    prompt. Raises InputError naming the prompt and both counts.
    """
    wanted = [text.count(placeholder) for text in texts]
    mark = "<image>"  # what a person writes; prepare puts the family's own placeholder and markers there
    if images is None:
        images = []
    elif isinstance(images, (Image.Image, str, Path, bytes, np.ndarray, Tensor)):
        images = [images]
    elif not isinstance(images, (list, tuple)):
        raise InputError(
            f"images is of type {type(images).__name__}: give a picture, a path, an array or a list"
        )
    nested: list[Any] = list(images)
    if any(isinstance(one, (list, tuple)) or one is None for one in nested):
        if len(nested) != len(texts):
            raise InputError(
                f"{len(nested)} lists of pictures for {len(texts)} prompts: give one list a prompt"
            )
        given = [_as_list(one) for one in nested]
    elif len(texts) == 1:
        given = [nested]
    elif sum(wanted) == len(nested):
        given, at = [], 0
        for n in wanted:
            given.append(nested[at : at + n])
            at += n
    else:
        given = [[one] for one in nested] if len(nested) == len(texts) else [nested]
        if len(given) != len(texts):
            raise InputError(
                f"{len(nested)} picture(s) for {len(texts)} prompts with {sum(wanted)} {mark} in all: "
                "give a list of lists, one per prompt"
            )
    for i, (n, pictures) in enumerate(zip(wanted, given, strict=True)):
        if n > len(pictures):
            raise InputError(
                f"prompt {i} has {n} {mark} and {len(pictures)} picture(s): give {n - len(pictures)} more"
            )
        if n < len(pictures):
            raise InputError(
                f"prompt {i} has {n} {mark} and {len(pictures)} picture(s): write {mark} where each one goes"
            )
    return [
        [load_image(p, f"picture {j} of prompt {i}") for j, p in enumerate(ps)] for i, ps in enumerate(given)
    ]


def _as_list(one: Any) -> list[Any]:
    if one is None:
        return []
    return list(one) if isinstance(one, (list, tuple)) else [one]
