import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from product_classificator.encoders.ruclip import read_bpe
from product_classificator.errors import ArtifactError
from tests.encoders.tiny_ruclip import write_bpe

SHARED = Path(__file__).parents[3] / "shared"
GOLDEN = SHARED / "fixtures/ruclip-tiny"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read_bpe(write_bpe(tmp_path_factory.mktemp("bpe") / "bpe.model"))


def tokens(tokenizer, text):
    return tokenizer.encode(text).tokens


def test_begin_and_end_stand_around_the_pieces_of_words(tokenizer):
    found = tokens(tokenizer, "Кружка КРУЖКА")
    assert found[0] == "<BOS>"
    assert found[-1] == "<EOS>"
    assert "".join(found[1:-1]) == "▁кружка▁кружка"
    assert tokenizer.encode("").ids == [2, 3]


def test_any_white_space_parts_words_and_the_word_mark_is_white_space(tokenizer):
    expected = tokens(tokenizer, "red mug")
    for text in ("red\tmug", "red \n mug ", "red▁mug", "\vred\f\rmug"):
        assert tokens(tokenizer, text) == expected
    assert tokens(tokenizer, "red\u00a0mug") != expected


def test_unknown_characters_in_a_row_are_one_unknown_token(tokenizer):
    assert tokens(tokenizer, "mug商品😀mug").count("<UNK>") == 1
    assert tokens(tokenizer, "商 品").count("<UNK>") == 2


def test_rules_are_applied_in_their_order(tmp_path):
    path = tmp_path / "bpe.model"
    # a=5 b=6 c=7: first b+c, then a+b, so "abc" is a, bc.
    path.write_text("4 2\n9601 4\n97 5\n98 6\n99 7\n6 7 8\n5 6 9\n1 0 2 3\n")
    assert read_bpe(path).encode("abc ab").ids == [2, 4, 5, 8, 4, 9, 3]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no numbers at all",
        "2 1\n97 4\n98 5\n",  # cut off
        "2 1\n97 4\n98 5\n4 77 6\n1 0 2 3\n",  # a rule over an unknown id
        "2 1\n97 4\n98 5\n4 5 6\n1 0 3 2\n",  # other special ids
        "2 1\n97 4\n98 4\n4 4 6\n1 0 2 3\n",  # an id twice
        "3 3\n97 4\n98 5\n99 6\n4 5 7\n7 6 8\n5 6 9\n4 9 10\n1 0 2 3\n",  # one rule too many
        "2 2\n97 4\n98 5\n4 5 6\n4 5 7\n1 0 2 3\n",  # the same token twice
        "1 0\n99999999999 4\n1 0 2 3\n",  # no such character
        "1 0\n-1 4\n1 0 2 3\n",  # nor this
        "1 0\n55296 4\n1 0 2 3\n",  # half a character
        "1 0\n97 -4\n1 0 2 3\n",  # an id below 0
        "1 0\n97 99999999999\n1 0 2 3\n",  # an id beyond 32 bits
        "1 0\n97 4\n-1 0 2 3\n",  # the same of the unknown
    ],
)
def test_what_is_no_bpe_model_is_refused(tmp_path, content):
    (tmp_path / "bpe.model").write_text(content)
    with pytest.raises(ArtifactError, match=r"must be a bpe.model in YouTokenToMe's text format"):
        read_bpe(tmp_path / "bpe.model")


def test_a_few_rules_that_double_a_token_without_end_are_refused(tmp_path):
    rules = "\n".join(f"{number} {number} {number + 1}" for number in range(4, 104))
    (tmp_path / "bpe.model").write_text(f"1 100\n97 4\n{rules}\n1 0 2 3\n")
    with pytest.raises(ArtifactError, match=r"a token has at most 1000 characters, found 1024"):
        read_bpe(tmp_path / "bpe.model")


def test_a_missing_file_is_an_error_of_the_package(tmp_path):
    with pytest.raises(ArtifactError, match="fetch the checkpoint again"):
        read_bpe(tmp_path / "bpe.model")


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden checkpoint is not here")
def test_token_ids_are_those_of_the_original_code():
    texts = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["texts"]
    golden = np.load(GOLDEN / "golden.npz")["input_ids"]
    tokenizer = read_bpe(GOLDEN / "bpe.model")
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(length=77)
    assert np.array_equal([encoding.ids for encoding in tokenizer.encode_batch(texts)], golden)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our tokenizer and YouTokenToMe on the same model."""
    youtokentome = pytest.importorskip("youtokentome", reason="YouTokenToMe cannot be built here")
    path = write_bpe(tmp_path_factory.mktemp("bpe") / "bpe.model")
    theirs = youtokentome.BPE(str(path))
    return read_bpe(path), lambda texts: theirs.encode(
        [text.lower() for text in texts], output_type=youtokentome.OutputType.ID
    )


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80), min_size=1))
def test_any_text_becomes_the_tokens_of_youtokentome(both, texts):
    ours, theirs = both
    assert [encoding.ids[1:-1] for encoding in ours.encode_batch([text.lower() for text in texts])] == theirs(texts)


@pytest.mark.skipif(not (SHARED / "data/ozon_ru").exists(), reason="the titles are not here")
def test_real_titles_become_the_tokens_of_youtokentome():
    youtokentome = pytest.importorskip("youtokentome", reason="YouTokenToMe cannot be built here")
    import pandas as pd

    titles = pd.read_parquet(SHARED / "data/ozon_ru/products.parquet", columns=["title"]).title.head(20_000).tolist()
    theirs = youtokentome.BPE(str(GOLDEN / "bpe.model"))
    expected = theirs.encode([title.lower() for title in titles], output_type=youtokentome.OutputType.ID)
    assert [e.ids[1:-1] for e in read_bpe(GOLDEN / "bpe.model").encode_batch(titles)] == expected
