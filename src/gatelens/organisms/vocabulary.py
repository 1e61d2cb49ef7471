"""The organisms' tokenizer: whole words, lower case, and (for the native ones) one token for each image code."""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gatelens.data import scenes

PAD, BOS, EOS, UNK, SEP = "<pad>", "<s>", "</s>", "<unk>", "<sep>"
IMAGE, BOI, EOI = "<image>", "<racm3:break>", "<eoss>"  # the names Chameleon gives them
SPECIAL = (PAD, BOS, EOS, UNK, SEP, IMAGE, BOI, EOI)

# Every word of the scenes' texts and of easy-vqa's questions and answers; written out, so that the
# vocabulary does not depend on what happens to be installed.
_WORDS = (
    "a an and animal any answer are background behind black blue brown camera caption circle color colour "
    "contain describe diamond do does draw following gray green how image in is it left many next no not "
    "object objects of on one or photo picture present purple question rectangle red right scene shape show "
    "side square teal the there thing this three to triangle two what which yellow yes zero , . ? : !"
)


def words() -> list[str]:
    """The words in the order of their ids: fixed words and the scenes' classes."""
    return sorted({*_WORDS.split(), *scenes.CLASSES})


def image_code_name(code: int) -> str:
    """Chameleon's way to name image code 137: digits become letters, "IMGIMGBDHZ"."""
    return "IMGIMG" + "".join(chr(ord("A") + int(d)) for d in str(code)) + "Z"


def build_tokenizer(n_codes: int = 0) -> PreTrainedTokenizerFast:
    """A transformers tokenizer that pads left; ``n_codes`` image codes follow the words."""
    names = [*SPECIAL, *words(), *(image_code_name(i) for i in range(n_codes))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, names.index(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        sep_token=SEP,
        additional_special_tokens=[IMAGE, BOI, EOI],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of plain words, without BOS; fails on a word the vocabulary lacks, which training must never meet."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.unk_token_id in ids:
        unknown = [w for w in re.findall(r"\w+|[^\w\s]", text.lower()) if w not in tokenizer.get_vocab()]
        raise ValueError(f"words outside the organism's vocabulary: {unknown} in {text!r}")
    return ids
