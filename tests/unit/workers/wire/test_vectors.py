"""The golden frames, written by Go's encoder: they decode to their values, and encoding gives the same bytes."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from workers.wire import messages
from workers.wire.frames import FrameReader, frame

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
COMMON = {
    "original_name": "OriginalName",
    "typ": "Typ",
    "width": "Width",
    "height": "Height",
    "data": "ImgData",
    "created_at": "CreatedAt",
}
REQUEST = COMMON | {"target_width": "TargetWidth", "target_height": "TargetHeight", "dry_run": "DryRun"}
RESPONSE = COMMON | {
    "resized_width": "ResizedWidth",
    "resized_height": "ResizedHeight",
    "processing_time": "ProcessingTime",
}
EXTENSIONS = {
    "id": "ID",
    "fit": "Fit",
    "format": "Format",
    "quality": "Quality",
    "status": "Status",
    "error": "Error",
    "server": "Server",
    "queue": "Queue",
    "workers": "Workers",
}


def named(vector: dict[str, Any]) -> Any:
    return pytest.param(vector, id=vector["Name"])


def taken(vector: dict[str, Any]) -> tuple[bytes, bytes, Any]:
    whole = base64.b64decode(vector["Frame"])
    (payload,) = FrameReader().feed(whole)
    decode = messages.decode_request if vector["Kind"] == "Request" else messages.decode_response
    return whole, payload, decode(payload)


@pytest.mark.parametrize("vector", [named(v) for v in VECTORS])
def test_decodes_to_its_value(vector: dict[str, Any]) -> None:
    _, _, message = taken(vector)
    fields = REQUEST if vector["Kind"] == "Request" else RESPONSE
    expected = vector["Value"]
    for ours, theirs in fields.items():
        value = getattr(message, ours)
        if ours == "data":
            assert bytes(value) == base64.b64decode(expected[theirs] or "")
        else:
            assert value == expected[theirs]
    for ours, theirs in EXTENSIONS.items():
        if hasattr(message, ours):
            assert getattr(message, ours) == expected.get(theirs, type(getattr(message, ours))())


def has_extensions(vector: dict[str, Any]) -> bool:
    return not vector["Value"].keys() <= {*REQUEST.values(), *RESPONSE.values()}


@pytest.mark.parametrize("vector", [named(v) for v in VECTORS if not has_extensions(v)])
def test_encodes_byte_for_byte(vector: dict[str, Any]) -> None:
    whole, payload, message = taken(vector)
    if vector["Kind"] == "Request":
        written, parts = messages.encode_request(message), messages.encode_request_parts(message)
    else:
        written, parts = messages.encode_response(message), messages.encode_response_parts(message)
    assert written == payload
    assert frame(written) == whole
    assert b"".join(parts) == whole
    assert parts[1] is message.data or not message.data


def test_the_vectors_cover_both_messages_and_both_kinds() -> None:
    assert {v["Kind"] for v in VECTORS} == {"Request", "Response"}
    assert {has_extensions(v) for v in VECTORS} == {False, True}
