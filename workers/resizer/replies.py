"""The task of a framed request and the reply to it, as far as both follow without the bytes of the picture.

RULES: pure. The reply to a request without ID is, byte for byte, one that the original program could have written.
"""

import time

from workers.imaging.limits import PictureRefused
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import Result
from workers.resizer.task import OK, Requester, Task, job_for
from workers.wire.messages import GIF, JPEG, PNG, Request, Response

TYPES = {"jpeg": JPEG, "png": PNG, "gif": GIF}


def task_of(request: Request, size: int, requester: Requester, serial: int, options: ResizerOptions) -> Task:
    """The task, without a slot, of a request for a picture of `size` bytes. Raises PictureRefused (400, 415, 422)."""
    job = job_for(
        request.target_width,
        request.target_height,
        request.fit,
        request.format,
        request.quality,
        options.wants_upright(bool(request.id)),
        _parameters(request, options),
        options.limits,
    )
    if not size:
        raise PictureRefused(415, "no picture in the request")
    return Task(serial, requester, job, length=size, is_small=size <= options.express_bytes, context=request)


def _parameters(request: Request, options: ResizerOptions) -> str:
    if not request.id:
        return f"{options.parameters}&original=yes"
    return f"{options.parameters}&{request.parameters}" if request.parameters else options.parameters


def response_to(request: Request, result: Result, load: tuple[str, int, int]) -> Response:
    """The Response without data. `load`: this resizer's name, pictures waiting, CPU processes."""
    response = Response(
        original_name=request.original_name,
        typ=TYPES.get(result.text, request.typ),
        width=result.source_width,
        height=result.source_height,
        resized_width=result.width,
        resized_height=result.height,
        processing_time=result.elapsed_ns,
        # A field of the wire format; nothing here is timed by it.
        created_at=time.clock_gettime_ns(time.CLOCK_REALTIME),
    )
    if request.id:
        response.id = request.id
        response.status = result.status
        response.server, response.queue, response.workers = load
        response.note = result.note
        if result.status != OK:
            response.error = result.text
    return response
