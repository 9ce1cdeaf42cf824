"""The body of a request as queries: JSON with instances, one photo as it is, or a form with photos."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from .queries import PhotoQuery, QueryError

if TYPE_CHECKING:
    from .queries import Verb

__all__ = ["Instances", "Style", "queries_of"]

JSON, FORM = "application/json", "multipart/form-data"
# Longer than any name; similar names are searched for, which takes time.
Name = Annotated[str, Field(min_length=1, max_length=256)]


class EncodedPhoto(BaseModel):
    """The bytes of a photo's file."""

    model_config = ConfigDict(extra="forbid")

    b64: str = Field(description="The file in base64: JPEG, PNG, WebP, AVIF, TIFF, GIF, BMP, JPEG 2000, PPM or TGA.")


class Choices(BaseModel):
    """What is asked about a photo."""

    model_config = ConfigDict(extra="forbid", strict=True)

    target: int | Name | list[int | Name] | None = Field(
        None, description="The class to explain, or several: its number, or a part of its name."
    )
    topk: int | None = Field(None, ge=1, description="Explain the K most probable classes; of a prediction, name K.")
    method: Name | None = Field(None, description="The method; gradcam if it is left out.")
    layer: Name | None = Field(None, description="The layer; found automatically if it is left out.")


class Instance(Choices):
    """A photo, and what is asked about it."""

    image: EncodedPhoto


class Style(BaseModel):
    """How an overlay looks; in the address."""

    colormap: str = Field("jet", description="A colormap of OpenCV or matplotlib.")
    alpha: float = Field(0.5, ge=0, le=1, description="Opacity of the heatmap.")


class Instances(BaseModel):
    """The body of KServe's v1 protocol."""

    # TensorFlow Serving's clients send a signature_name, and others more; none of it matters here.
    model_config = ConfigDict(extra="ignore")

    instances: list[Instance] = Field(min_length=1)


async def queries_of(request: Request, verb: Verb, *, longest: int | None, max_photos: int) -> list[PhotoQuery]:
    """The queries of a request, one for each photo.

    Args:
        longest: as in `PhotoQuery`.

    Raises:
        QueryError: a body of an unknown type (415), that cannot be read (400), or with too many photos.
        BodyTooLarge: while the body comes in.
    """
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind == JSON:
        queries = _of_json(await request.body(), verb, longest)
    elif kind == FORM:
        queries = await _of_form(request, verb, longest, max_photos)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        fields = request.query_params.multi_items()
        choices = _of_fields((name, value) for name, value in fields if name not in Style.model_fields)
        queries = [_query(await request.body(), choices, verb, longest, "photo")]
    else:
        raise QueryError(f"the body is {kind}; send {JSON}, {FORM}, or a photo as image/jpeg, image/png, ...", 415)
    if len(queries) > max_photos:
        raise QueryError(f"{len(queries)} photos were sent; send at most {max_photos} at once", 413)
    return queries


def _of_json(body: bytes, verb: Verb, longest: int | None) -> list[PhotoQuery]:
    try:
        instances = Instances.model_validate_json(body).instances
    except ValidationError as error:
        raise QueryError(_sentence(error), 400) from None
    queries = []
    for number, instance in enumerate(instances):
        name = f"instances[{number}].image"
        try:
            data = base64.b64decode(instance.image.b64, validate=True)
        except (binascii.Error, ValueError):
            raise QueryError(f"{name}.b64: not base64 of the standard alphabet", 400) from None
        queries.append(_query(data, instance, verb, longest, name))
    return queries


async def _of_form(request: Request, verb: Verb, longest: int | None, max_photos: int) -> list[PhotoQuery]:
    async with request.form(max_files=max_photos, max_fields=32, max_part_size=64 * 1024) as form:
        photos = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        if not photos:
            raise QueryError("the form has no file; send each photo as a file", 400)
        choices = _of_fields((name, value) for name, value in form.multi_items() if isinstance(value, str))
        return [
            _query(await photo.read(), choices, verb, longest, f"{name}[{number}]" if len(photos) > 1 else name)
            for number, (name, photo) in enumerate(photos)
        ]


def _of_fields(fields: Iterable[tuple[str, str]]) -> Choices:
    """The choices in the fields of a form or of the address; ``target`` may be there several times."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name == "target":
            values.setdefault("target", []).append(value)
        elif name == "topk":
            if not re.fullmatch(r"\d{1,9}", value):
                raise QueryError(f"topk: {value!r} is not a whole number from 1", 400)
            values["topk"] = int(value)
        else:
            values[name] = value
    try:
        return Choices.model_validate(values)
    except ValidationError as error:
        raise QueryError(_sentence(error), 400) from None


def _query(data: bytes, choices: Choices, verb: Verb, longest: int | None, name: str) -> PhotoQuery:
    if not data:
        raise QueryError(f"{name}: no bytes came; send a photo", 400)
    target = choices.target
    targets = () if target is None else tuple(target) if isinstance(target, list) else (target,)
    if targets and choices.topk is not None:
        raise QueryError(f"{name}: give only one of target and topk", 400)
    return PhotoQuery(
        data, verb, targets, choices.topk, choices.layer, choices.method or "gradcam", longest=longest, name=name
    )


def _sentence(error: ValidationError) -> str:
    """The first fault that pydantic found, as ``instances[0].topk: ...``."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{place or 'the body'}: {message}"
