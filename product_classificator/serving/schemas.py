"""The bodies of requests and answers; the client reads the same models."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from product_classificator.types import Explanation

MAX_PRODUCTS = 64
MAX_EXPLAINED = 4
MAX_TIMEOUT_MS = 600_000

Text = Annotated[str, Field(max_length=100_000)]
Id = Annotated[str, Field(max_length=200)]
Probability = Annotated[float, Field(ge=0, le=1, description="Rounded to 6 digits.")]


class Product(BaseModel, extra="forbid"):
    """A product: a text, a photo, or both; without either, its status says so."""

    id: Id | None = Field(default=None, description="Returned as it is.")
    text: Text | None = Field(default=None, description="Title, then description on the next lines.")
    photo: str | None = Field(
        default=None, description="Image file in base64, or as a data URI, or, if the service fetches photos, its URL."
    )


class EmbedRequest(BaseModel, extra="forbid"):
    """Products to encode."""

    products: list[Product] = Field(min_length=1, max_length=MAX_PRODUCTS)


class ClassifyOptions(BaseModel, extra="forbid"):
    """What to return of each product."""

    characteristics: list[str] | None = Field(default=None, max_length=1000, description="Those to return; null: all.")
    top_k: int = Field(default=3, ge=1, le=1000, description="Labels in `top`.")
    min_precision: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Target precision: predictions expected to reach it are 'auto', others 'review'.",
    )
    explain: bool = Field(default=False, description=f"Why each was predicted; of up to {MAX_EXPLAINED} products.")


class ClassifyRequest(ClassifyOptions, EmbedRequest):
    """Products to classify, and what to return of each."""


class Scored(BaseModel):
    """A label and its calibrated probability."""

    label: str
    probability: Probability


class Prediction(BaseModel):
    """The prediction of one characteristic; no labels: none is predicted, or a multi-label one has none."""

    labels: list[str] = Field(description="One, unless the characteristic is multi-label.")
    confidence: Probability = Field(description="Probability that `labels` is right.")
    decision: Literal["auto", "review"] | None = Field(default=None, description="Null without `min_precision`.")
    top: list[Scored] = Field(description="The most probable labels, the predicted one first.")


class AnsweredProduct(BaseModel):
    """What every answer says of a product."""

    id: str | None
    status: str = Field(description="'ok', or what is wrong, such as 'image_truncated' or 'set_aside:text_empty'.")
    detail: str | None = Field(default=None, description="What is wrong with the photo, in words.")


class EmbeddedProduct(AnsweredProduct):
    """The vectors of one product: float32, little-endian, in base64; null without a usable photo or text."""

    image: str | None = None
    text: str | None = None


class ClassifiedProduct(AnsweredProduct):
    """The answer for one product."""

    is_out_of_distribution: bool | None = Field(default=None, description="Null without `min_precision`.")
    predictions: Mapping[str, Prediction] = Field(default={}, description="By characteristic; empty if it is unusable.")
    explanations: Mapping[str, Explanation] | None = None


class ClassifyAnswer(BaseModel):
    """Products in the order of the request."""

    model: str
    fingerprint: str = Field(description="Equal fingerprints mean equal answers.")
    min_precision: float | None
    products: list[ClassifiedProduct]


class EmbedAnswer(BaseModel):
    """Products in the order of the request."""

    model: str
    encoder_fingerprint: str
    products: list[EmbeddedProduct]


class ModelFacts(BaseModel):
    """A served model."""

    name: str
    fingerprint: str
    encoder: str
    encoder_fingerprint: str
    can_decide: bool = Field(description="Whether `min_precision` can be set.")
    loaded_at: str
    reload_error: str | None = Field(description="Why a newer model was refused, if one was.")
    characteristics: dict[str, list[str]] = Field(description="Labels by characteristic.")


class ModelsAnswer(BaseModel):
    """The served models; one."""

    models: list[ModelFacts]


class State(BaseModel):
    """Health or readiness."""

    state: Literal["alive", "stuck", "ready", "unready"]
    reason: str | None = None


class Problem(BaseModel):
    """Why a request got no answer; `code` names the HTTP status."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(BaseModel):
    """Every answer that is not 200."""

    error: Problem
