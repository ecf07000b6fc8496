"""Whether a reply is what was asked for: format and size are read from the picture itself and compared with the request.

RULES: pure. The result is a sentence for a person; a picture with one is not saved and not requested again.
"""

from workers.picture_header import PictureHeader, read_header
from workers.wire.messages import Request, Response


def validate(request: Request, source: PictureHeader | None, response: Response) -> str:
    """Why `response` is not a result of `request`, "" when it is. `source`: the header of the picture that was sent."""
    if request.dry_run:
        return ""
    found = read_header(response.data)
    if found is None:
        return "the reply is no picture"
    expected = request.format or (source.format if source else found.format)
    if found.format != expected:
        return f"the reply is {found.format}, not {expected}"
    if not found.width or not found.height:
        return f"the reply is a {found.format} without a size"
    stated = (response.resized_width, response.resized_height)
    if any(stated) and stated != (found.width, found.height):
        return f"the reply says {stated[0]}x{stated[1]} and is {found.width}x{found.height}"
    if not _has_requested_size(request, found):
        wanted = f"{request.target_width}x{request.target_height}"
        return f"the reply is {found.width}x{found.height}, asked for {wanted}"
    return ""


def _has_requested_size(request: Request, found: PictureHeader) -> bool:
    width, height = request.target_width, request.target_height
    if "enlarge=no" in request.parameters.split("&"):
        return found.width <= (width or found.width) and found.height <= (height or found.height)
    if not width or not height:
        return found.height == height if not width else found.width == width
    if request.fit == "contain":
        is_inside = found.width <= width and found.height <= height
        return is_inside and (found.width == width or found.height == height)
    return (found.width, found.height) == (width, height)
