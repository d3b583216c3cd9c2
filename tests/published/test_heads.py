import json
import logging
import pickle
import sys
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from product_classificator.errors import ArtifactError
from product_classificator.heads import HeadBundle
from product_classificator.published.heads import read_published_heads
from product_classificator.types import Embeddings, strings
from tests.published.hostile import HOSTILE

PUBLISHED = Path(__file__).parents[3] / "shared" / "fixtures" / "published-heads"
LABELS = {
    "sex": {np.int64(1): "для женщин", np.int64(0): "для детей", np.int64(2): np.str_("ё")},
    "isadult": {0: False, 1: np.True_},
    "sub_category": {0: "a", 1: "b"},
}


def layers(n_labels: int, width: int = 6, hidden: int = 5) -> list[nn.Module]:
    return [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, n_labels), nn.Dropout(0.2)]


def changed(**parameters: torch.Tensor | None) -> nn.Sequential:
    """Return a network whose first layer has other parameters."""
    network = nn.Sequential(*layers(3))
    for name, tensor in parameters.items():
        setattr(network[0], name, None if tensor is None else nn.Parameter(tensor))
    return network


def products(n: int = 7, width: int = 8) -> Embeddings:
    image, text = np.random.default_rng(1).normal(size=(2, n, width // 2)).astype(np.float32)
    has_image, has_text = np.ones((2, n), dtype=bool)
    return Embeddings(strings([str(i) for i in range(n)]), image, text, has_image, has_text, "clip-1")


@pytest.fixture(scope="module")
def pca() -> PCA:
    return PCA(6, random_state=0).fit(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) + 1)


@pytest.fixture
def networks() -> dict[str, nn.Sequential]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: nn.Sequential(*layers(n)).eval() for name, n in (("sex", 3), ("isadult", 2))}


@pytest.fixture
def folder(tmp_path: Path, pca: PCA, networks: dict[str, nn.Sequential]) -> Path:
    """Published files of two characteristics, with a projection from 8 to 6."""
    (tmp_path / "label_to_char.pkl").write_bytes(pickle.dumps(LABELS, 4))
    (tmp_path / "pca_all.pkl").write_bytes(pickle.dumps(pca, 4))
    for name, network in networks.items():
        torch.save(network, tmp_path / f"{name}.pt")
    return tmp_path


def read(folder: Path) -> HeadBundle:
    return replace(read_published_heads(folder, encoder_name="clip"), encoder_fingerprint="clip-1")


def logits(bundle: HeadBundle, embeddings: Embeddings) -> np.ndarray:
    return bundle.network.logits(embeddings, bundle.vocabulary.weigh([""] * len(embeddings)))


def expected(networks: dict[str, nn.Sequential], reduced: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(reduced)).numpy() for network in networks.values()], 1)


def rezip(path: Path, **changes: bytes | None) -> None:
    """Changes entries of an archive of torch.save; `None` leaves one out."""
    with ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    with ZipFile(path, "w") as archive:
        for name, content in {**entries, **{f"{root}/{name}": content for name, content in changes.items()}}.items():
            if content is not None:
                archive.writestr(name, content)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are kept outside the project")
def test_the_published_files_give_the_published_vectors_and_logits(tmp_path: Path) -> None:
    golden = np.load(PUBLISHED / "golden.npz")
    read_published_heads(PUBLISHED, encoder_name="ruclip").save(tmp_path / "heads")
    bundle = HeadBundle.load(tmp_path / "heads").bound_to("ruclip", "clip-1", 512, 512)
    vectors = golden["embeddings"]
    embeddings = replace(products(len(vectors)), image=vectors[:, :512], text=vectors[:, 512:])
    found = logits(bundle, embeddings)
    assert len(bundle.labels) == 6
    labels = json.loads((PUBLISHED / "labels.json").read_text("utf-8"))
    for name, columns in zip(bundle.labels, bundle.network.shape.columns, strict=True):
        assert np.abs(found[:, columns] - golden[f"logits_{name}"]).max() < 1e-4
        assert list(bundle.labels[name]) == [
            {"False": "false", "True": "true"}.get(label, label) for label in labels[name]
        ]


def test_published_heads_give_the_logits_of_their_networks(
    folder: Path, networks: dict[str, nn.Sequential], pca: PCA
) -> None:
    embeddings = products()
    reduced = pca.transform(np.concatenate([embeddings.image, embeddings.text], 1)).astype(np.float32)
    assert np.allclose(logits(read(folder), embeddings), expected(networks, reduced), atol=1e-5)


def test_a_bundle_of_published_heads_predicts_the_same_when_it_is_loaded(folder: Path) -> None:
    bundle, embeddings = read(folder), products()
    bundle.save(folder / "heads")
    loaded = HeadBundle.load(folder / "heads")
    one, two = (each.predict(embeddings, [""] * 7).probabilities for each in (bundle, loaded))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (loaded.encoder_name, loaded.encoder_fingerprint) == ("clip", "clip-1")


def test_without_a_projection_the_heads_read_both_parts(folder: Path, networks: dict[str, nn.Sequential]) -> None:
    (folder / "pca_all.pkl").unlink()
    bundle, embeddings = read(folder), products(width=6)
    assert (bundle.image_dim, bundle.text_dim, bundle.network.shape.hidden) == (3, 3, 10)
    both = np.concatenate([embeddings.image, embeddings.text], 1)
    assert np.allclose(logits(bundle, embeddings), expected(networks, both), atol=1e-5)


def test_modules_of_torchvision_are_read_as_those_of_torch(
    folder: Path, networks: dict[str, nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logits(read(folder), products())
    mlp = type("MLP", (nn.Sequential,), {"__module__": "torchvision.ops.misc"})
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["torchvision.ops.misc"])["MLP"] = mlp
    torch.save(mlp(*networks["sex"]), folder / "sex.pt")
    monkeypatch.undo()
    assert np.array_equal(logits(read(folder), products()), before)


def test_labels_are_in_the_order_of_their_numbers(folder: Path) -> None:
    assert read(folder).labels == {"sex": ("для детей", "для женщин", "ё"), "isadult": ("false", "true")}


def test_labels_without_a_network_are_left_out_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert "sub_category" not in read(folder).labels
    assert "has labels but no network of sub_category" in caplog.text


def test_a_missing_part_is_zeros_before_the_projection(
    folder: Path, networks: dict[str, nn.Sequential], pca: PCA
) -> None:
    embeddings = products()
    embeddings.has_image[::2], embeddings.image[::2] = False, 0
    embeddings.has_text[1::2], embeddings.text[1::2] = False, 0
    reduced = pca.transform(np.concatenate([embeddings.image, embeddings.text], 1)).astype(np.float32)
    assert np.allclose(logits(read(folder), embeddings), expected(networks, reduced), atol=1e-5)


def test_a_product_without_a_photo_is_predicted_from_its_text(folder: Path) -> None:
    embeddings = products(1)
    embeddings.image[:], embeddings.has_image[:] = 0, False
    predictions = read(folder).predict(embeddings, ["text"])
    assert predictions.is_known.tolist() == [True]
    assert np.isclose(predictions.probabilities["sex"].sum(), 1)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["label_to_char.pkl", "pca_all.pkl", "sex.pt"])
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(folder: Path, name: str, kind: str) -> None:
    content = HOSTILE[kind](folder / "ran")
    if name == "sex.pt":
        rezip(folder / name, **{"data.pkl": content})
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is not one of the published files .*: nothing in it was executed"):
        read(folder)
    assert not (folder / "ran").exists()


def test_a_network_that_is_a_bare_pickle_is_not_run(folder: Path) -> None:
    (folder / "sex.pt").write_bytes(HOSTILE["a call of eval"](folder / "ran"))
    with pytest.raises(ArtifactError, match=r"sex\.pt is not one of the published files \(File is not a zip file"):
        read(folder)
    assert not (folder / "ran").exists()


def test_a_missing_file_of_labels_is_named(folder: Path) -> None:
    (folder / "label_to_char.pkl").unlink()
    with pytest.raises(ArtifactError, match=r"need label_to_char\.pkl, and .* is missing: name the folder"):
        read(folder)


def test_a_network_without_labels_is_refused(folder: Path, networks: dict[str, nn.Sequential]) -> None:
    torch.save(networks["sex"], folder / "colour.pt")
    with pytest.raises(ArtifactError, match=r"needs its labels in label_to_char\.pkl: .* without labels: colour"):
        read(folder)


def test_a_folder_without_networks_is_refused(folder: Path) -> None:
    for path in folder.glob("*.pt"):
        path.unlink()
    with pytest.raises(ArtifactError, match="has 0 networks"):
        read(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "expected a dict of characteristics"),
        ({"sex": ["a", "b"]}, "sex needs a dict of numbers and labels"),
        ({"sex": {0: "a", 2: "b"}}, "labels of sex must be numbered from 0 without a gap"),
        ({"sex": {"0": "a", "1": "b"}}, "labels of sex must be numbered from 0 without a gap"),
        ({"sex": {0: "a"}}, "sex needs two labels or more, each once"),
        ({"sex": {0: "a", 1: "a"}}, "sex needs two labels or more, each once"),
        ({"sex": {0: "a", 1: 1}}, "a name must be text"),
        ({"sex": {0: "a", 1: "\udc80"}}, "a name must be text"),
        ({"sex": {np.datetime64(0, "s"): "a", 1: "b"}}, "found dtype 'M8'"),
        ({1: {0: "a", 1: "b"}}, "a name must be text"),
    ],
)
def test_labels_of_another_form_are_refused(folder: Path, labels: object, message: str) -> None:
    (folder / "label_to_char.pkl").write_bytes(pickle.dumps(labels, 4))
    with pytest.raises(ArtifactError, match=rf"label_to_char\.pkl is not one of the published files \(.*{message}"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"components_": np.ones((6, 9))},
            r"a PCA has a mean \(d,\) and components \(k, d\), found \(8,\) and \(6, 9\)",
        ),
        ({"components_": [[1.0]]}, "expected an array of 2 axes"),
        ({"mean_": np.full(8, np.nan)}, "numbers must be finite"),
        ({"mean_": np.arange(8)}, "expected fractions, found int64"),
        ({"mean_": np.array([None] * 8)}, "expected numbers, texts or truth values, found dtype 'O8'"),
        ({"mean_": np.ones((1, 1, 8))}, "expected an array of 1 axes"),
        ({"whiten": True}, "expected a fitted PCA without whitening"),
        ({"whiten": "no"}, "expected a fitted PCA without whitening"),
    ],
)
def test_a_projection_of_another_form_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    pca = pickle.loads((folder / "pca_all.pkl").read_bytes())  # noqa: S301 - made by the fixture above
    vars(pca).update(change)
    (folder / "pca_all.pkl").write_bytes(pickle.dumps(pca, 4))
    with pytest.raises(ArtifactError, match=rf"pca_all\.pkl is not one of the published files \({message}"):
        read(folder)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
            "expected Linear ReLU Dropout Linear Dropout, found Linear ReLU",
        ),
        (
            lambda: nn.Sequential(*layers(3)[:3], nn.Linear(4, 3), nn.Dropout()),
            "do not fit together: weights of sex",
        ),
        (lambda: {"0.weight": torch.ones(5, 6)}, "expected Linear ReLU Dropout Linear Dropout, found dict"),
        (lambda: changed(weight=torch.ones(6, 5).T), r"a tensor of \(5, 6\) is expected to lie row by row"),
        (lambda: changed(weight=torch.full((5, 6), torch.inf)), "numbers must be finite"),
        (lambda: changed(weight=torch.ones(5, 6, dtype=torch.float64)), "it names 'torch DoubleStorage'"),
        (lambda: changed(bias=None), "expected an array of 1 axes"),
    ],
)
def test_a_network_of_another_form_is_refused(folder: Path, network: object, message: str) -> None:
    torch.save(network(), folder / "sex.pt")  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data/0": b"short"}, r"a tensor of 30 numbers does not fit into its 5 bytes"),
        ({"data/0": None}, r"a tensor of 30 numbers does not fit into its 0 bytes"),
        ({"byteorder": b"big"}, "little-endian"),
        ({"data.pkl": None}, r"has a data\.pkl"),
    ],
)
def test_an_archive_that_does_not_hold_what_it_promises_is_refused(
    folder: Path, changes: dict[str, bytes | None], message: str
) -> None:
    rezip(folder / "sex.pt", **changes)
    with pytest.raises(ArtifactError, match=rf"sex\.pt is not one of the published files \(.*{message}"):
        read(folder)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(folder: Path) -> None:
    with ZipFile(folder / "sex.pt", "w", ZIP_DEFLATED) as archive:
        archive.writestr("sex/data.pkl", bytes(10**7))
    with pytest.raises(ArtifactError, match=r"an archive of torch\.save is not compressed"):
        read(folder)


def test_an_archive_that_promises_too_much_is_refused_before_it_is_read(folder: Path) -> None:
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        archive.writestr("sex/data/0", bytes(2**16))
        entry = archive.infolist()[0]
        archive.filelist.extend([entry] * 2**10)
    (folder / "sex.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match=r"it holds 67174400 bytes, the limit is 67108864"):
        read(folder)


@pytest.mark.parametrize("name", ["label_to_char.pkl", "pca_all.pkl", "sex.pt"])
def test_a_file_that_is_far_too_large_is_refused_unread(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ArtifactError, match=f"{name} .*it has 67108865 bytes, the limit is 67108864"):
        read(folder)


@pytest.mark.parametrize("network", [layers(4), layers(3, hidden=4), layers(3, width=8)])
def test_files_of_different_versions_are_refused(folder: Path, network: list[nn.Module]) -> None:
    torch.save(nn.Sequential(*network), folder / "isadult.pt")
    with pytest.raises(ArtifactError, match=r"do not fit together: weights of isadult are .*\(5, 6\).*, found"):
        read(folder)


def test_parts_that_cannot_be_equally_wide_are_refused(folder: Path) -> None:
    (folder / "pca_all.pkl").unlink()
    for name, n in (("sex", 3), ("isadult", 2)):
        torch.save(nn.Sequential(*layers(n, width=7)), folder / f"{name}.pt")
    with pytest.raises(ArtifactError, match=r"expected to be equally wide, and .* reads 7"):
        read(folder)


def test_heads_without_a_fingerprint_predict_nothing(folder: Path) -> None:
    bundle = read_published_heads(folder, encoder_name="clip")
    with pytest.raises(ArtifactError, match=r"for 'clip', do not know its weights yet: bind them .* with bound_to"):
        bundle.predict(products(), [""] * 7)


def test_heads_are_bound_to_the_encoder_of_their_name(folder: Path) -> None:
    bundle = read_published_heads(folder, encoder_name="clip").bound_to("clip", "clip-1", 4, 4)
    assert len(bundle.predict(products(), [""] * 7)) == 7
    assert bundle.bound_to("elsewhere/clip", "clip-1", 4, 4) is bundle


@pytest.mark.parametrize("encoder", [("lite", "clip-1", 4, 4), ("clip", "clip-1", 5, 4), ("clip", "clip-1", 4, 5)])
def test_heads_are_not_bound_to_an_encoder_that_does_not_fit(folder: Path, encoder: tuple[str, str, int, int]) -> None:
    with pytest.raises(ArtifactError, match=r"these are for 'clip' \(any, 4 \+ 4\), got .*; load the encoder they are"):
        read_published_heads(folder, encoder_name="clip").bound_to(*encoder)


def test_bound_heads_fit_no_other_weights(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"for 'clip' \(clip-1, 4 \+ 4\), got 'clip' \(clip-2"):
        read(folder).bound_to("clip", "clip-2", 4, 4)
