"""What is computed of the products of a request, as the answer: in our form, or in that of KServe."""

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from product_classificator.errors import nearest
from product_classificator.serving import observe, schemas
from product_classificator.serving.call import Call, RefusedError, validated
from product_classificator.serving.model import ServedModel, ServedResult, Wanted
from product_classificator.serving.service import Service
from product_classificator.text import join_labels
from product_classificator.types import Floats


async def classified(service: Service, call: Call, asked: schemas.ClassifyRequest) -> schemas.ClassifyAnswer:
    """Answer a request for classification."""
    names = _checked(service, asked)
    model, results = await _answered(service, call, asked, (asked.top_k, asked.min_precision), explain=asked.explain)
    products = [result.product for result in results]
    for product in products:
        product.predictions = {name: product.predictions[name] for name in names if name in product.predictions}
        if product.explanations is not None:
            product.explanations = {name: product.explanations[name] for name in product.predictions}
        for name, prediction in product.predictions.items():
            if prediction.decision:
                observe.DECISIONS.labels(name, prediction.decision).inc()
    return schemas.ClassifyAnswer(
        model=model.name, fingerprint=model.fingerprint, min_precision=asked.min_precision, products=products
    )


async def embedded(service: Service, call: Call, asked: schemas.EmbedRequest) -> schemas.EmbedAnswer:
    """Answer a request for vectors."""
    model, results = await _answered(service, call, asked, (1, None))
    products = [
        schemas.EmbeddedProduct(
            id=product.id, status=product.status, detail=product.detail, image=_base64(image), text=_base64(text)
        )
        for product, image, text, _ in results
    ]
    fingerprint = model.classificator.encoder.fingerprint
    return schemas.EmbedAnswer(model=model.name, encoder_fingerprint=fingerprint, products=products)


async def _answered(
    service: Service, call: Call, asked: schemas.EmbedRequest, wanted: Wanted, *, explain: bool = False
) -> tuple[ServedModel, list[ServedResult]]:
    model, results = await service.answer(call, asked.products, wanted, explain=explain)
    for product, result in zip(asked.products, results, strict=True):
        result.product.id = product.id
    call.request.state.log["products"] = counts = Counter(result.product.status for result in results)
    for status, n in counts.items():
        observe.PRODUCTS.labels(status).inc(n)
    return model, results


def _checked(service: Service, asked: schemas.ClassifyRequest) -> Sequence[str]:
    """Return the wanted characteristics; what the model cannot do is refused (422)."""
    bundle, n = service.model.classificator.bundle, len(asked.products)
    names = list(bundle.labels) if asked.characteristics is None else asked.characteristics
    if unknown := [name[:100] for name in names if name not in bundle.labels]:
        raise RefusedError(422, f"unknown characteristic {unknown[0]!r}: {nearest(unknown[0], bundle.labels)}")
    if asked.min_precision is not None and bundle.novelty is None:
        rule = "this model has no thresholds, so it cannot guarantee a target precision"
        raise RefusedError(422, f"{rule}: leave min_precision out")
    if asked.explain and n > schemas.MAX_EXPLAINED:
        raise RefusedError(422, f"at most {schemas.MAX_EXPLAINED} products are explained at a time, got {n}")
    return names


def _base64(vector: Floats | None) -> str | None:
    return None if vector is None else base64.b64encode(vector.astype("<f4").tobytes()).decode()


class Tensor(BaseModel):
    """A column of the open inference protocol of KServe (v2)."""

    name: str
    shape: list[int] = Field(max_length=2)
    datatype: Literal["BYTES", "FP32"]
    data: list[str | float] = Field(min_length=1, max_length=schemas.MAX_PRODUCTS)


class InferRequest(BaseModel):
    """Products as columns: "text" and "photo" (base64), "" where a product has none."""

    id: str | None = Field(default=None, max_length=200)
    inputs: list[Tensor] = Field(min_length=1, max_length=2)
    parameters: schemas.ClassifyOptions = schemas.ClassifyOptions()


class InferAnswer(BaseModel):
    """By characteristic: labels (several as in CSV), `<name>_probability` and `<name>_decision`; and the status."""

    model_name: str
    model_version: str
    id: str | None
    outputs: list[Tensor]


async def inferred(service: Service, call: Call, asked: InferRequest) -> InferAnswer:
    """Answer a request of KServe."""
    names, n = [tensor.name for tensor in asked.inputs], len(asked.inputs[0].data)
    fits = all(len(tensor.data) == n and tensor.shape in ([n], [n, 1]) for tensor in asked.inputs)
    if not fits or names not in (["text"], ["photo"], ["text", "photo"], ["photo", "text"]):
        raise RefusedError(422, "inputs are 'text', 'photo' or both, as columns of one length and shape")
    rows = zip(*[tensor.data for tensor in asked.inputs], strict=True)
    products = [dict(zip(names, row, strict=True)) for row in rows]
    request = validated(schemas.ClassifyRequest, {**dict(asked.parameters), "products": products})
    answer = await classified(service, call, request)
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for product in answer.products for name in product.predictions):
        predictions = [product.predictions.get(name) for product in answer.products]
        columns[name] = [join_labels(p.labels) if p else "" for p in predictions]
        columns[f"{name}_probability"] = [p.confidence if p else 0.0 for p in predictions]
        if answer.min_precision is not None:
            columns[f"{name}_decision"] = [(p.decision if p else None) or "review" for p in predictions]
    columns["status"] = [product.status for product in answer.products]
    outputs = [
        Tensor(name=name, shape=[n], datatype="BYTES" if isinstance(data[0], str) else "FP32", data=data)
        for name, data in columns.items()
    ]
    return InferAnswer(model_name=answer.model, model_version=answer.fingerprint, id=asked.id, outputs=outputs)
