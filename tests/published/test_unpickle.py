import pickle
from pathlib import Path

import pytest

from product_classificator.errors import ArtifactError
from product_classificator.published.unpickle import Name, Record, read_pickle
from tests.published.hostile import HOSTILE

ALLOWED = {"numpy dtype", "numpy ndarray", "sklearn.decomposition._pca PCA"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"only plain tensors, arrays and containers .*: nothing of it was run; get"
    ):
        read_pickle(HOSTILE[kind](tmp_path / "ran"), ALLOWED, "file.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_refusal_names_the_file_and_what_it_holds() -> None:
    with pytest.raises(ArtifactError, match=r"file\.pkl holds 'posix system': nothing"):
        read_pickle(b"cposix\nsystem\n.", ALLOWED, "file.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_constants_and_containers_are_read_as_pickle_would(protocol: int) -> None:
    shared = ["ё", -1]
    value = {"a": (1, 2.5, None), 7: [True, False, (), (1,), (1, 2), (1, 2, 3, 4)], "b": [shared, shared], "e": {}}
    assert read_pickle(pickle.dumps(value, protocol), ALLOWED, "file.pkl") == value


def test_an_allowed_name_becomes_a_record_of_its_call_and_its_state() -> None:
    found = read_pickle(b"\x80\x02cnumpy\ndtype\ncnumpy\nndarray\n\x85R}X\x01\x00\x00\x00aNsb.", ALLOWED, "file.pkl")
    assert isinstance(found, Record)
    assert (found.name, found.args, found.state) == ("numpy dtype", (Name("numpy ndarray"),), {"a": None})


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", pickle.dumps({"a": [1, 2]})[:-3], b"h\x05.", b".", b"\xff.", b"a.", b"(\x85."]
)
def test_half_a_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"file\.pkl is not a whole pickle .*: get the file anew"):
        read_pickle(content, ALLOWED, "file.pkl")


def test_depth_and_large_memo_numbers_cost_nothing() -> None:
    found = read_pickle(b"\x80\x02)r\xff\xff\xff\x7f" + b"\x85" * 100_000 + b".", ALLOWED, "file.pkl")
    for _ in range(100_000):
        (found,) = found  # type: ignore[misc]
    assert found == ()
