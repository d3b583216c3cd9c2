"""Turns the `bpe.model` of a ruCLIP checkpoint into a tokenizer of the library `tokenizers`, exactly.

`bpe.model` is YouTokenToMe's plain-text format: `n_characters n_rules`, a line `code_point id` per character, a line
`left right result` per merge rule in the order of their priority, and the ids of unknown, padding, begin and end. The
same segmentation in other words: words split at white space, each with a leading U+2581, BPE with the merges in rule
order, unknown characters in a row fused to one token. Two rules never make the same string: what has once been merged
in one way is merged so wherever it occurs. A file in which they do is refused.

Source: YouTokenToMe 1.0.6 (VK, 2019); Sennrich et al. 2016 (BPE).
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Metaspace, Sequence, Split
from tokenizers.processors import TemplateProcessing

from product_classificator.errors import ArtifactError

PAD, UNKNOWN, BEGIN, END = "<PAD>", "<UNK>", "<BOS>", "<EOS>"
PAD_ID, BEGIN_ID, END_ID = 0, 2, 3
"""What the network of ruCLIP was trained with."""

_WORD_MARK = "▁"
_LONGEST_TOKEN = 1_000  # in characters; each rule may double the longest, so a few dozen could fill the memory
_WHITE_SPACE = Regex(f"[\\t-\\r {_WORD_MARK}]+")


@dataclass(frozen=True)
class _Rules:
    """What a `bpe.model` holds: token -> id of all tokens that are not special, and the merges by priority."""

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    unknown_id: int


def read_bpe(path: str | Path) -> Tokenizer:
    """Reads a `bpe.model`.

    Returns:
        A tokenizer that lower-cases, segments, and puts begin and end around: `[2] + ids + [3]`. Truncation and padding
        are off.

    Raises:
        ArtifactError: the file is missing, is no such file, or does not fit ruCLIP.
    """
    try:
        rules = _parse(Path(path).read_text(encoding="utf-8"))
        special = {PAD: PAD_ID, UNKNOWN: rules.unknown_id, BEGIN: BEGIN_ID, END: END_ID}
        model = BPE(vocab={**rules.vocabulary, **special}, merges=rules.merges, unk_token=UNKNOWN, fuse_unk=True)
    except (OSError, ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise ArtifactError(
            f"{path} must be a bpe.model in YouTokenToMe's text format ({error!r}): fetch the checkpoint again"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(_WHITE_SPACE, "removed"),
            Metaspace(replacement=_WORD_MARK, prepend_scheme="always", split=False),
        ]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, BEGIN_ID), (END, END_ID)]
    )
    return tokenizer


def _parse(text: str) -> _Rules:
    lines = [[int(number) for number in line.split()] for line in text.strip().split("\n")]
    n_characters, n_rules = lines[0]
    if len(lines) != n_characters + n_rules + 2:
        raise ValueError(f"{n_characters + n_rules + 2} lines are promised, found {len(lines)}")
    names = {number: chr(code_point) for code_point, number in lines[1 : n_characters + 1]}
    merges = []
    for left, right, result in lines[n_characters + 1 : -1]:
        merges.append((names[left], names[right]))
        names[result] = names[left] + names[right]
        if len(names[result]) > _LONGEST_TOKEN:
            raise ValueError(f"a token has at most {_LONGEST_TOKEN} characters, found {len(names[result])}")
    unknown, pad, begin, end = lines[-1]
    if (pad, begin, end) != (PAD_ID, BEGIN_ID, END_ID):
        raise ValueError(f"ruCLIP has padding 0, begin 2 and end 3, found {pad}, {begin} and {end}")
    if len(names) != n_characters + n_rules or {unknown, pad, begin, end} & set(names):
        raise ValueError("an id is given twice")
    vocabulary = {name: number for number, name in names.items()}
    if len(vocabulary) != len(names):
        raise ValueError("two rules make the same token")
    return _Rules(vocabulary, merges, unknown)
