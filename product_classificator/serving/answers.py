"""Have the products of a request answered and counted, and write the answer: in our form, or in that of KServe."""

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from product_classificator.errors import nearest
from product_classificator.serving import metrics
from product_classificator.serving.body import Body, invalid
from product_classificator.serving.model import ServedResult, Upload
from product_classificator.serving.schemas import (
    MAX_EXPLAINED,
    MAX_PRODUCTS,
    ClassifiedProduct,
    ClassifyAnswer,
    ClassifyOptions,
    ClassifyRequest,
    EmbedAnswer,
    EmbeddedProduct,
)
from product_classificator.serving.service import Answer, RefusedError, Service
from product_classificator.text import join_labels
from product_classificator.types import Floats

FAILED = "failed"
"""Status of a product that made the computation fail."""


async def classified(body: Body, wanted: ClassifyOptions, uploads: Sequence[Upload]) -> ClassifyAnswer:
    """Answer a request for classification."""
    names, n = _checked(body, wanted, len(uploads)), len(uploads)

    async def answer() -> ClassifyAnswer:
        return await _classified(body.service, uploads, wanted, names, body.deadline)

    answered = await body.service.admitted(body.key, n, body.deadline, body.gone, answer)
    _count(body, [product.status for product in answered.products])
    return answered


async def _classified(
    service: Service, uploads: Sequence[Upload], wanted: ClassifyOptions, names: Sequence[str], deadline: float
) -> ClassifyAnswer:
    model, items, results = await service.answer(uploads, (wanted.top_k, wanted.min_precision), deadline)
    products = []
    for upload, item, result in zip(uploads, items, results, strict=True):
        product = ClassifiedProduct(id=upload.id, status=FAILED, detail=item.detail)
        if isinstance(result, ServedResult):
            product.status, product.is_out_of_distribution = result.status, result.is_out_of_distribution
            product.predictions = {name: result.predictions[name] for name in names if name in result.predictions}
            if wanted.explain and product.predictions:
                explanations = await service.explain(result)
                product.explanations = {name: explanations[name] for name in names if name in explanations}
        for name, prediction in product.predictions.items():
            if prediction.decision:
                metrics.DECISIONS.labels(name, prediction.decision).inc()
        products.append(product)
    return ClassifyAnswer(
        model=model.name, fingerprint=model.fingerprint, min_precision=wanted.min_precision, products=products
    )


def _checked(body: Body, wanted: ClassifyOptions, n: int) -> Sequence[str]:
    """Return the wanted characteristics; what the model cannot do is refused (422)."""
    bundle = body.service.model.classificator.bundle
    names = list(bundle.labels) if wanted.characteristics is None else wanted.characteristics
    if unknown := [name[:100] for name in names if name not in bundle.labels]:
        raise RefusedError(422, f"unknown characteristic {unknown[0]!r}: {nearest(unknown[0], bundle.labels)}")
    if wanted.min_precision is not None and bundle.novelty is None:
        raise RefusedError(
            422, "this model has no thresholds, so it cannot guarantee a target precision: leave min_precision out"
        )
    if wanted.explain and n > MAX_EXPLAINED:
        raise RefusedError(422, f"at most {MAX_EXPLAINED} products are explained at a time, got {n}")
    return names


async def embedded(body: Body, uploads: Sequence[Upload]) -> EmbedAnswer:
    """Answer a request for vectors."""

    async def answer() -> Answer:
        return await body.service.answer(uploads, (1, None), body.deadline)

    model, items, results = await body.service.admitted(body.key, len(uploads), body.deadline, body.gone, answer)
    products = []
    for upload, item, result in zip(uploads, items, results, strict=True):
        product = EmbeddedProduct(id=upload.id, status=FAILED, detail=item.detail)
        if isinstance(result, ServedResult):
            product.status, product.image, product.text = result.status, _base64(result.image), _base64(result.text)
        products.append(product)
    _count(body, [product.status for product in products])
    fingerprint = model.classificator.encoder.fingerprint
    return EmbedAnswer(model=model.name, encoder_fingerprint=fingerprint, products=products)


def _count(body: Body, statuses: Sequence[str]) -> None:
    body.request.state.log["products"] = counts = Counter(statuses)
    for status, n in counts.items():
        metrics.PRODUCTS.labels(status).inc(n)


def _base64(vector: Floats | None) -> str | None:
    return None if vector is None else base64.b64encode(vector.astype("<f4").tobytes()).decode()


class Tensor(BaseModel):
    """A column of the open inference protocol of KServe (v2)."""

    name: str
    shape: list[int] = Field(max_length=2)
    datatype: Literal["BYTES", "FP32"]
    data: list[str | float] = Field(min_length=1, max_length=MAX_PRODUCTS)


class InferRequest(BaseModel):
    """Products as columns: "text" and "photo" (base64), "" where a product has none."""

    id: str | None = Field(default=None, max_length=200)
    inputs: list[Tensor] = Field(min_length=1, max_length=2)
    parameters: ClassifyOptions = ClassifyOptions()

    def products(self) -> ClassifyRequest:
        """Return the rows; 422 if the columns do not fit together."""
        names, n = [tensor.name for tensor in self.inputs], len(self.inputs[0].data)
        fits = all(len(tensor.data) == n and tensor.shape in ([n], [n, 1]) for tensor in self.inputs)
        if not fits or names not in (["text"], ["photo"], ["text", "photo"], ["photo", "text"]):
            raise RefusedError(422, "inputs are 'text', 'photo' or both, as columns of one length and shape")
        rows = zip(*[tensor.data for tensor in self.inputs], strict=True)
        products = [dict(zip(names, row, strict=True)) for row in rows]
        try:
            return ClassifyRequest.model_validate({**dict(self.parameters), "products": products})
        except ValidationError as error:
            raise invalid(error) from None


class InferAnswer(BaseModel):
    """By characteristic: labels (several as in CSV), `<name>_probability` and `<name>_decision`; and the status."""

    model_name: str
    model_version: str
    id: str | None
    outputs: list[Tensor]


def infer_answer(answer: ClassifyAnswer, request_id: str | None) -> InferAnswer:
    """Return an answer as columns."""
    products = answer.products
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for product in products for name in product.predictions):
        predictions = [product.predictions.get(name) for product in products]
        columns[name] = [join_labels(p.labels) if p else "" for p in predictions]
        columns[f"{name}_probability"] = [p.confidence if p else 0.0 for p in predictions]
        if answer.min_precision is not None:
            columns[f"{name}_decision"] = [(p.decision if p else None) or "review" for p in predictions]
    columns["status"] = [product.status for product in products]
    outputs = [
        Tensor(name=name, shape=[len(data)], datatype="BYTES" if isinstance(data[0], str) else "FP32", data=data)
        for name, data in columns.items()
    ]
    return InferAnswer(model_name=answer.model, model_version=answer.fingerprint, id=request_id, outputs=outputs)
