"""Share a run, a bundle or an export: on the Hugging Face hub, with a model card, or in another folder.

Only files that `runs.SHARED` names leave the machine: heads, how they were made, and an encoder of the run's own. Ids,
labels, signatures and embeddings of products (`runs.OF_PRODUCTS`) follow on request; photos, texts and reports never.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined] # public all the same

from product_classificator.classificator.opening import EXPORT, open_heads
from product_classificator.encoders import EncoderSpec
from product_classificator.errors import ArtifactError, DataError
from product_classificator.evaluation.report import escape_markdown
from product_classificator.files import write_text
from product_classificator.runs import OF_PRODUCTS, SHARED


def push_to_hub(
    folder: str | Path, repository: str, *, private: bool = True, with_products: bool = False, **card: Any
) -> str:
    """Upload a run, a bundle or an export to the Hugging Face hub in one commit, and return the address of that.

    Args:
        folder: of the run, the bundle or the export.
        repository: "user/name"; created if there is none, what an earlier call left there is replaced.
        private: whether a new repository is private.
        with_products: also upload ids, labels, signatures and embeddings of the products, which `evaluate`, `audit` and
            explanations by similar products need.
        card: facts for the model card, such as `license="apache-2.0"`, see `huggingface_hub.ModelCardData`.

    Raises:
        ArtifactError: `folder` holds nothing to share, or the hub refuses it.
        DataError: the encoder is a folder of this machine and not a part of the run.
    """
    with TemporaryDirectory() as temporary:
        copy_shared(Path(folder), Path(temporary), with_products=with_products)
        model_card(Path(folder), repository, **card).save(Path(temporary, "README.md"))
        try:
            api = HfApi()
            repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
            new = {name: CommitOperationAdd(name, path) for name, path in _files(Path(temporary)).items()}
            old = filter_repo_objects(api.list_repo_files(repository), allow_patterns=[*SHARED, *OF_PRODUCTS])
            operations: list[Any] = [*new.values(), *(CommitOperationDelete(name) for name in old if name not in new)]
            # Not upload_folder, which commits in several steps: others could fetch a half.
            return str(api.create_commit(repository, operations, commit_message="Upload product heads").commit_url)
        except Exception as error:  # those of the client, and of the HTTP library that it happens to use
            reason = str(error).split("\n", 1)[0]
            raise ArtifactError(
                f"{repository} must be a repository that you may write to, the hub answers: {reason}: "
                "name it user/name, and log in with `hf auth login`"
            ) from error


def copy_shared(folder: Path, target: Path, *, with_products: bool = False) -> None:
    """Copy the files that are shared into an empty folder; arguments and errors as in `push_to_hub`."""
    opened, is_export = open_heads(folder), (folder / EXPORT).is_file()
    run, spec = opened.run, EncoderSpec.parse(opened.encoder)
    has_own_encoder = is_export or (run is not None and run.has_own_encoder)
    bases = [spec.base.removeprefix("hf:"), spec.text_encoder or ""]
    if not has_own_encoder and any(Path(base).is_absolute() for base in bases):
        raise DataError(f"others must be able to load the encoder, found {spec}: export the run, and share the export")
    for name in filter_repo_objects(_files(folder), allow_patterns=[*SHARED, *OF_PRODUCTS * with_products]):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    if run is None:
        return
    # Paths of this machine are nobody's business.
    paths = {name: Path(run.settings[name]).name for name in ("taxonomy", "corrections") if run.settings.get(name)}
    encoder = run.encoder.replace(str(folder.resolve()), str(target.resolve()))
    replace(run, folder=target, store=target / "embeddings", encoder=encoder, settings={**run.settings, **paths}).save()
    path = target / "bundle/manifest.json"
    manifest = json.loads(path.read_bytes()) | ({"encoder_name": "encoder"} if has_own_encoder else {})
    write_text(path, json.dumps(manifest, ensure_ascii=False, indent=1))
    if with_products and run.store.is_dir():
        shutil.copytree(run.store, target / "embeddings", dirs_exist_ok=True)


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def model_card(folder: Path, repository: str, **facts: Any) -> ModelCard:
    """Return the card of a run, a bundle or an export: its scores, what it learned from, what it is not for."""
    bundle, path = open_heads(folder).bundle, folder / "report/report.json"
    report = json.loads(path.read_bytes()) if path.is_file() else {"evaluation": {"characteristics": {}}, "facts": {}}
    scores = report["evaluation"]["characteristics"].items()
    task = ("image-text-classification", "catalog", "products of one shop", "f1")
    values = {name: round(score["macro_f1"], 4) for name, score in scores if score["macro_f1"] is not None}
    results = [EvalResult(*task, value, metric_name=f"macro-F1 of {name}") for name, value in values.items()]
    facts = {"library_name": "product_classificator", "tags": ["product-classification", "e-commerce"], **facts}
    data = ModelCardData(model_name=repository, eval_results=results or None, **facts)
    template, shown = Path(__file__).with_suffix(".md.jinja"), {"bundle": bundle, "escape": escape_markdown, **report}
    return ModelCard.from_template(data, template_path=str(template), repository=repository, **shown)  # type: ignore[no-any-return]
