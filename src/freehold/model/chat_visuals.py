"""Images and videos in a conversation: taken out of its messages, and their places in the prompt.

A message's image becomes a part `{"type": "image", "digest": ..., "rows": [[before, count], ...]}`: JSON data, by which
a conversation is recognised when it comes back. A template writes one marker for it; in that place come, for each run
of rows, the text before it (a time, in videos), the token that opens an image, `count` rows, and the token that
closes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from freehold.core.errors import ConfigError, RequestError, TemplateError, UnsupportedFieldError
from freehold.core.visuals import Frames, Placed, VisualKind
from freehold.loading.quoting import quoted
from freehold.model.m3_tokens import END_OF_IMAGE, IMAGE, START_OF_IMAGE, VIDEO, special_id
from freehold.model.tokenizer import Tokenizer
from freehold.model.vision.budget import Budget
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.image import image_frames, read_pixels
from freehold.model.vision.source import read_source
from freehold.model.vision.video import Video, video_frames
from freehold.model.vision.video_file import MAX_VIDEO_BYTES, read_video

_MARKERS: dict[VisualKind, str] = {"image": IMAGE, "video": VIDEO}
_ROW_IDS: dict[VisualKind, int] = {"image": -1, "video": -2}
"""What stands for a row in a prompt that was encoded but not yet placed."""

MARKER = re.compile("|".join(map(re.escape, _MARKERS.values())))
"""What templates write for an image or a video."""

_KINDS: dict[str, VisualKind] = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}
_SOURCES = ("image", "image_url", "video", "video_url", "url", "path")
_OWN_KEYS = ("digest", "rows")

MAX_VISUALS = 512
"""Most images and videos of one conversation."""

FPS_RANGE = (1e-6, 1e6)
"""Frames a second of a list of images: from one in twelve days on. A time that is written into the prompt has then at
most nine digits before its point."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A run of rows in a rendered conversation."""

    kind: VisualKind
    count: int

    @property
    def ids(self) -> list[int]:
        """What stands for it until it is placed."""
        return [_ROW_IDS[self.kind]] * self.count


def has_visuals(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any message holds an image or a video."""
    return any(_kind(part) for message in messages for part in _parts(message))


def gather_visuals(
    messages: Sequence[Mapping[str, Any]], config: VisionConfig, *, local: bool
) -> tuple[list[dict[str, Any]], list[Frames]]:
    """The messages with their images and videos as JSON data, and the frames of all of them in order.

    Parts may be {"type": "image", "image": X}, also with "url" or "path" in place of "image", and {"type": "image_url",
    "image_url": {"url": X}}; "video" and "video_url" likewise. X is bytes or a data URL; if `local`, also a path or an
    open Pillow image. A video may be a list of images; "fps" then says how many there are to a second. "where" names
    the part in errors, if its place in the messages is not the one that the caller knows; "otherwise" is a text for
    models that see nothing.

    Raises RequestError or UnsupportedFieldError, whose `field` is the place, for what cannot be read.
    """
    count = sum(1 for message in messages for part in _parts(message) if _kind(part))
    if count > MAX_VISUALS:
        raise RequestError(
            f"the conversation holds {count} images and videos; at most {MAX_VISUALS} are taken", field="messages"
        )
    frames: list[Frames] = []
    budget = Budget()
    copies = []
    for number, message in enumerate(messages):
        content: Any = message.get("content")
        if any(_kind(part) for part in _parts(message)):
            where = f"messages[{number}].content"
            if message.get("role") == "assistant":
                raise RequestError("an assistant's message cannot hold images or videos", field=where)
            content = [
                _read(part, config, frames, budget, _place(part, number, i), local) for i, part in enumerate(content)
            ]
        copies.append({**message, "content": content} if "content" in message else dict(message))
    return copies, frames


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _place(part: Any, message: int, index: int) -> str:
    """What errors call a part."""
    named = part.get("where") if isinstance(part, Mapping) else None
    return named if isinstance(named, str) else f"messages[{message}].content[{index}]"


def _kind(part: Any) -> VisualKind | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return _KINDS.get(kind) if isinstance(kind, str) else None


def _read(part: Any, config: VisionConfig, frames: list[Frames], budget: Budget, where: str, local: bool) -> Any:
    """A part as JSON data; what is to be seen is added to `frames`."""
    kind = _kind(part)
    if kind is None:
        return part
    try:
        source, fps = _source(part, kind)
        if kind == "image":
            image = image_frames(_counted(read_pixels(source, local=local), budget), config)
            budget.take("tokens", image.num_tokens)
            frames.append(image)
            return {"type": kind, "digest": image.digest.hex(), "rows": [["", image.num_tokens]]}
        video = _video(source, fps, config, budget, local)
    except UnsupportedFieldError as error:
        raise UnsupportedFieldError(f"{where}: {error}", field=where) from None
    except RequestError as error:
        raise RequestError(f"{where}: {error}", field=where) from None
    frames += video.segments
    rows = [[text, count] for text, count in _video_rows(video)]
    digest = "".join(segment.digest.hex() for segment in video.segments)
    return {"type": kind, "digest": digest, "rows": rows}


def _counted(pixels: Tensor, budget: Budget) -> Tensor:
    budget.take("pixels", pixels.shape[1] * pixels.shape[2])
    return pixels


def _source(part: Mapping[str, Any], kind: VisualKind) -> tuple[Any, Any]:
    """Where a part's data are, and a video's "fps"."""
    named = [key for key in _SOURCES if key in part and _KINDS.get(key, kind) == kind]
    if len(named) != 1:
        raise RequestError(f"a part of type {part['type']!r} must have its data under one of 'image', 'video', 'url'")
    known = {"type", "where", "otherwise", named[0], *(("fps",) if kind == "video" else ())}
    extra = sorted(map(str, set(part) - known))
    source = part[named[0]]
    if isinstance(source, Mapping):
        extra += sorted(map(str, set(source) - {"url"}))
        source = source.get("url")
    if extra:
        raise UnsupportedFieldError(f"a part of type {part['type']!r} has no field {extra[0]!r}")
    return source, part.get("fps")


def _video(source: Any, fps: Any, config: VisionConfig, budget: Budget, local: bool) -> Video:
    if not isinstance(source, (list, tuple)):
        if fps is not None:
            raise RequestError("'fps' is for a list of images; a video file says so itself", field="fps")
        return read_video(read_source(source, local=local, limit=MAX_VIDEO_BYTES), config, budget)
    times = None
    if fps is not None:
        low, high = FPS_RANGE
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not low <= fps <= high:
            raise RequestError(f"'fps' is {quoted(fps)}; it must be a number from {low:g} to {high:g}")
        times = [number / fps for number in range(len(source))]
    frames = (_counted(read_pixels(frame, local=local), budget) for frame in source)
    return video_frames(frames, len(source), times, config, budget)


def _video_rows(video: Video) -> Iterable[tuple[str, int]]:
    """(text before, rows) of each patch in time."""
    number = 0
    for segment in video.segments:
        for _ in range(segment.grid[0]):
            before = "" if video.seconds is None else f"]<]{video.seconds[number]:.1f} seconds[>["
            yield before, segment.num_tokens // segment.grid[0]
            number += 1


def visual_parts(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The parts that `gather_visuals` made, in order."""
    return [part for message in messages for part in _parts(message) if _kind(part) and "rows" in part]


def without_rows(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as a template is to see it."""
    if not visual_parts([message]):
        return message
    parts = [
        {k: v for k, v in part.items() if k not in _OWN_KEYS} if _kind(part) else part for part in message["content"]
    ]
    return {**message, "content": parts}


def write_rows(text: str, parts: Sequence[Mapping[str, Any]], aside: list[Any], place: str) -> str:
    """A rendered text with rows where the template wrote markers, each put aside in a place holder.

    place: a place holder with a gap for its number. Raises TemplateError unless there is one marker for each part.
    """
    found = MARKER.findall(text)
    if found != [_MARKERS[part["type"]] for part in parts]:
        raise TemplateError(
            f"this model's chat template writes {len(found)} places for the conversation's {len(parts)} images and "
            "videos; put them into messages of users"
        )
    left = iter(parts)

    def rows(match: re.Match[str]) -> str:
        part = next(left)
        written = []
        for before, count in part["rows"]:
            aside.append(Rows(part["type"], count))
            written.append(f"{before}{START_OF_IMAGE}{place.format(len(aside) - 1)}{END_OF_IMAGE}")
        return "".join(written)

    return MARKER.sub(rows, text)


class VisualChat:
    """How the conversations of a model that sees hold images and videos. Safe to use from several threads."""

    def __init__(self, config: VisionConfig, tokens: Mapping[VisualKind, int]) -> None:
        """tokens: the ids of the tokens that stand for rows."""
        self._config = config
        self._tokens = {_ROW_IDS[kind]: token for kind, token in tokens.items()}

    @staticmethod
    def of(config: VisionConfig, tokenizer: Tokenizer) -> VisualChat | None:
        """None if the vocabulary lacks one of the tokens for images. Raises ConfigError where it and the configuration
        contradict each other."""
        found = {}
        for text in (IMAGE, VIDEO, START_OF_IMAGE, END_OF_IMAGE):
            token = special_id(tokenizer, text)
            if token is None:
                return None
            found[text] = token
        tokens = {kind: found[marker] for kind, marker in _MARKERS.items()}
        for kind, token in tokens.items():
            if config.token_ids[kind] != token:
                raise ConfigError(
                    f"config.json says that token {config.token_ids[kind]} stands for an {kind}, but in the vocabulary "
                    f"{_MARKERS[kind]!r} is token {token}"
                )
        return VisualChat(config, tokens)

    def gather(
        self, messages: Sequence[Mapping[str, Any]], *, local: bool
    ) -> tuple[list[dict[str, Any]], list[Frames]]:
        """See `gather_visuals`."""
        return gather_visuals(messages, self._config, local=local)

    def place(self, ids: Sequence[int], frames: Sequence[Frames]) -> tuple[list[int], tuple[Placed, ...]]:
        """A prompt's real token ids, and where in it its frames stand.

        ids: with row ids in it, as many as the frames have tokens; each run is of one patch in time.
        """
        runs = []
        position = 0
        for is_row, group in groupby(ids, key=lambda token: token < 0):
            length = sum(1 for _ in group)
            if is_row:
                runs.append(range(position, position + length))
            position += length
        left = iter(runs)
        placed = []
        for item in frames:
            mine = tuple(next(left) for _ in range(item.grid[0]))
            assert sum(map(len, mine)) == item.num_tokens, "rows and frames do not fit"
            placed.append(Placed(item, mine))
        assert next(left, None) is None, "rows without frames"
        return [self._tokens.get(token, token) for token in ids], tuple(placed)


def take_visuals(
    chat: VisualChat | None, messages: Sequence[Mapping[str, Any]], *, local: bool
) -> tuple[Sequence[Mapping[str, Any]], list[Frames]]:
    """`VisualChat.gather`, or the messages as they are if they hold nothing to see. Without a `chat`, parts become what
    they have for models that see nothing; raises UnsupportedFieldError for one that has nothing."""
    if not has_visuals(messages):
        return messages, []
    if chat is None:
        return [_unseen(message, number) for number, message in enumerate(messages)], []
    return chat.gather(messages, local=local)


def _unseen(message: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """A message for a model that sees nothing: one text, if it held anything to see."""
    parts = _parts(message)
    if not any(_kind(part) for part in parts):
        return message
    texts = []
    for index, part in enumerate(parts):
        text = part.get("otherwise") if _kind(part) else part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            where = _place(part, number, index)
            raise UnsupportedFieldError(f"{where}: this model takes no images and no videos; send text", field=where)
        texts.append(text)
    return {**message, "content": "".join(texts)}
