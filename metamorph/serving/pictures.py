"""Pictures of requests and answers: data URLs to pixels or features, and back."""

import asyncio
import base64
import binascii
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image
from torch import Tensor

from metamorph.data.images import decode_image
from metamorph.errors import SampleError, UserError
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import drawing_of, png_bytes
from metamorph.serving.fetching import Fetcher
from metamorph.serving.limits import Limits
from metamorph.serving.refusals import invalid
from metamorph.serving.served import Served

DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)
STARTS = {  # by content, whatever the URL says
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
}
AT_ONCE = 2  # threads that decode and encode: what is decoded takes far more memory than its file
T = TypeVar("T")


class PictureReader:
    """Reads and writes pictures beside the event loop."""

    def __init__(self, served: Served, limits: Limits, fetcher: Fetcher):
        self.served, self.limits, self.fetcher = served, limits, fetcher
        self._threads = ThreadPoolExecutor(AT_ONCE, "pictures")
        self._fetching = ThreadPoolExecutor(AT_ONCE, "fetching")

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    async def picture(self, url: str, param: str) -> Image.Image:
        """What the encoder takes of a picture: no more of it is kept. Raises `Refused`."""
        content = await self._content(url, param)
        return await self._beside(lambda: self._shrunk(content, param))

    async def drawing(self, url: str, param: str) -> Drawing | Image.Image:
        """As `picture`; one that carries features of this model is read as those."""
        content = await self._content(url, param)

        def read() -> Drawing | Image.Image:
            with_features = self._with_features(content, param)
            if with_features is None:
                return self._shrunk(content, param)
            picture = with_features.picture
            return Drawing(with_features.features, picture and self.served.shrink(picture))

        return await self._beside(read)

    async def own_drawing(self, url: str, param: str) -> Drawing:
        """A picture that this model made, with its features. Raises `Refused` for another."""
        content = await self._content(url, param)
        drawing = await self._beside(lambda: self._with_features(content, param))
        if drawing is None:
            raise invalid(param, f"{param}: expected a picture of this model, as it sent it")
        return drawing

    async def png(self, picture: Image.Image, features: Tensor | None = None) -> str:
        """In base64; with the features [tokens, C] inside, where there are some."""
        return await self._beside(lambda: png_text(picture, features))

    async def _beside(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def _content(self, url: str, param: str) -> bytes:
        """The bytes of a file of one of the formats."""
        if head := DATA_URL.match(url):
            try:
                content = base64.b64decode(url[head.end() :], validate=True)
            except (binascii.Error, ValueError) as error:
                raise invalid(param, f"{param}: its base64 is damaged: {error}") from error
        elif url[:5].lower() == "data:":
            raise invalid(param, f"{param}: expected data:image/...;base64,..., got {url[:40]!r}")
        else:
            loop, most = asyncio.get_running_loop(), self.limits.body
            content = await loop.run_in_executor(
                self._fetching, lambda: self.fetcher.fetch(url, most, param)
            )
        if not any(start.match(content) for start in STARTS.values()):
            raise invalid(param, f"{param}: expected a picture as {', '.join(STARTS)}")
        return content

    def _shrunk(self, content: bytes, param: str) -> Image.Image:
        try:
            return self.served.shrink(decode_image(content, "of the request", self.limits.pixels))
        except SampleError as error:
            raise invalid(param, f"{param}: {error}", error.cause.replace(" ", "_")) from error

    def _with_features(self, content: bytes, param: str) -> Drawing | None:
        try:
            return drawing_of(content, self.served.tokens, self.served.width, self.limits.pixels)
        except (SampleError, UserError) as error:
            raise invalid(param, f"{param}: {error}") from error


def png_text(picture: Image.Image, features: Tensor | None = None) -> str:
    """As `PictureReader.png`."""
    if features is not None:
        return base64.b64encode(png_bytes(Drawing(features, picture))).decode()
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def data_url(png: str) -> str:
    """Of a PNG in base64."""
    return f"data:image/png;base64,{png}"
