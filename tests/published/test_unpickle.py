import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from product_classificator.published.unpickle import NAMES, Array, read_pickle
from tests.published.hostile import HOSTILE


def _attributes() -> dict[str, dict[str, Any]]:
    return {name: dict(getattr(stand_in, "__dict__", {})) for name, stand_in in NAMES.items()}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_in_it_runs(kind: str, tmp_path: Path) -> None:
    before = _attributes()
    with pytest.raises(ValueError, match=r"."):
        read_pickle(HOSTILE[kind](tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()
    assert _attributes() == before


def test_a_refusal_says_what_the_pickle_names() -> None:
    with pytest.raises(ValueError, match=r"it names 'posix system'"):
        read_pickle(b"cposix\nsystem\n.")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_constants_and_containers_are_read_as_pickle_would(protocol: int) -> None:
    shared = ["ё", -1]
    value = {"a": (1, 2.5, None), 7: [True, False, (), (1,), (1, 2), (1, 2, 3, 4)], "b": [shared, shared], "e": {}}
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["NumPy 1", "NumPy 2"])
def test_arrays_and_scalars_are_read_as_numpy_would(core: bytes) -> None:
    arrays = [np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.eye(3)), np.array(["ё", "ab"])]
    data = pickle.dumps([*arrays, np.int64(7), np.str_("ё"), np.True_], 3)
    for written in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        data = data.replace(b"c" + written + b"\n", b"c" + core + b"\n")
    *found, number, text, truth = read_pickle(data)
    for stand_in, array in zip(found, arrays, strict=True):
        assert isinstance(stand_in, Array)
        assert np.array_equal(stand_in.values, array)
    assert (number, text, truth) == (7, "ё", True)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", pickle.dumps({"a": [1, 2]})[:-3], b"h\x05.", b".", b"\xff.", b"a.", b"(\x85."]
)
def test_half_a_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_pickle(content)


def test_depth_and_large_memo_numbers_cost_nothing() -> None:
    nested = read_pickle(b"\x80\x02)r\xff\xff\xff\x7f" + b"\x85" * 100_000 + b".")
    for _ in range(100_000):
        (nested,) = nested
    assert nested == ()
