"""Images, videos and audio of a row: where they are, and where they stand in its messages. Nothing is decoded here.

A message with media has a list of parts as its content: `{"type": "text", "text": …}`, `{"type": "image", "medium":
Medium}` (or video, audio), and for grounding `{"type": "ref", "text": …}` and `{"type": "box", …}`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from tunesmith_trainer.files import kind_of

if TYPE_CHECKING:
    from tunesmith_trainer.data import Content, Message, Reader, Row

Kind = Literal["image", "video", "audio"]
KINDS: tuple[Kind, ...] = ("image", "video", "audio")
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "image": ("images", "image"),
    "video": ("videos", "video"),
    "audio": ("audios", "audio"),
}
TAG = re.compile(r"<(image|video|audio|ref-object|bbox)>")
# The type of a part as OpenAI's, Anthropic's and transformers' messages name it -> (kind, where its value may be).
PARTS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "image": ("image", ("image", "url", "path", "base64", "source")),
    "image_url": ("image", ("image_url",)),
    "video": ("video", ("video", "url", "path", "base64")),
    "video_url": ("video", ("video_url",)),
    "audio": ("audio", ("audio", "url", "path", "base64", "audio_url")),
    "audio_url": ("audio", ("audio_url",)),
    "input_audio": ("audio", ("input_audio",)),
}
EXPECTED = "a path relative to the dataset's file, base64, or {bytes, path} as Parquet has it"


@dataclass(frozen=True)
class Medium:
    """One image, video or piece of audio, as it lies in a file or as a file's bytes."""

    kind: Kind
    where: str
    """For messages: `datasets[0] pvc://c/train.jsonl row 17 images[0]`."""
    path: str | None = None
    content: bytes | None = field(default=None, repr=False)
    frames: tuple[Medium, ...] = ()
    """Of a video that is given as images."""


@dataclass
class Shelf:
    """The media that a row's columns hold, taken one after the other where the row's text names them."""

    queues: dict[Kind, list[Medium]]
    objects: list[tuple[str, Any]]
    """(ref or box, value) of the column `objects`, each kind in its order."""
    named: frozenset[str]
    """Tags that mean something in this row: those of its columns. Others are text."""
    seen: dict[str, int] = field(default_factory=dict)
    images: list[Medium] = field(default_factory=list)
    """Those that were taken, for boxes."""
    boxes: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    """Boxes with the number of their image."""

    def take(self, kind: Kind) -> Medium | None:
        """The next medium of a kind."""
        self.seen[kind] = self.seen.get(kind, 0) + 1
        medium = self.queues[kind].pop(0) if self.queues[kind] else None
        if medium and kind == "image":
            self.images.append(medium)
        return medium


def parts_of(value: list[Any]) -> list[Message] | str:
    """A message's list of parts in our form; the media are looked for later (`attach`). What is wrong, else."""
    found: list[Message] = []
    for number, part in enumerate(value):
        type_ = part.get("type") if isinstance(part, dict) else None
        if type_ == "text" and isinstance(part.get("text"), str):
            found.append({"type": "text", "text": part["text"]})
        elif type_ in PARTS:
            kind, names = PARTS[type_]
            given = next((part[name] for name in names if part.get(name) is not None), None)
            if isinstance(given, dict):
                given = given.get("url") or given.get("data") or given
            found.append({"type": kind, "given": given})
        else:
            return f"part {number} is of type {type_!r}, expected text or one of {sorted(PARTS)}"
    return found


def attach(reader: Reader, row: Row, found: Mapping[str, Any], folder: Path) -> Row:
    """`row` with its media, from its columns and the parts of its messages, each where it stands."""
    reading = Attaching(reader, row.where, dict(found), folder)
    if not reading.any(row):
        return row
    sides: dict[str, tuple[Content, ...]] = {}
    for side, contents in (("positive", row.positives), ("negative", row.negatives)):
        sides[f"{side}s"] = tuple(reading.side(side, n, len(contents), one) for n, one in enumerate(contents))
    if row.text:
        shelf = reading.shelf("")
        parts = reading.whole([{"role": "user", "content": row.text}], shelf)[0]
        if reader.method != "PreTraining":
            return replace(row, text="", messages=(parts,), **sides)  # type: ignore[arg-type]
        return replace(row, parts=tuple(spelled(parts["content"])), **sides)  # type: ignore[arg-type]
    rejected = tuple(reading.whole(row.rejected, reading.shelf(""))) if row.rejected else ()
    return replace(row, messages=tuple(reading.whole(row.messages, reading.shelf(""))), rejected=rejected, **sides)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Attaching:
    """Looks for the media of one row."""

    reader: Reader
    where: str
    found: dict[str, Any]
    folder: Path

    def any(self, row: Row) -> bool:
        """Whether the row has media or boxes at all."""
        names = [name for prefix in ("", "positive_", "negative_") for kind in KINDS for name in columns(prefix, kind)]
        if any(self.found.get(name) not in (None, [], "") for name in (*names, "objects")):
            return True
        sides = (row.messages, row.rejected, *row.positives, *row.negatives)
        return any(isinstance(m["content"], list) for side in sides if not isinstance(side, str) for m in side)

    def fail(self, problem: str, expected: str) -> NoReturn:
        """Refuse the row."""
        self.reader.fail(self.where, problem, self.found, expected)

    def shelf(self, prefix: str, place: int | None = None) -> Shelf:
        """The media of the columns `images` and so on; with `place`, those of one of several documents."""
        queues: dict[Kind, list[Medium]] = {}
        named = set()
        for kind in KINDS:
            column = next((name for name in columns(prefix, kind) if name in self.found), None)
            values = self.values(column) if column else []
            if column:
                named.add(kind)
            if place is not None and (several := any(isinstance(one, list) for one in values)):
                values = values[place] if several and place < len(values) else []
                values = values if isinstance(values, list) else [values]
            queues[kind] = [self.medium(kind, one, f"{column}[{n}]") for n, one in enumerate(values)]
        objects = self.objects() if not prefix else []
        if "objects" in self.found and not prefix:
            named |= {"ref-object", "bbox"}
        return Shelf(queues, objects, frozenset(named))

    def values(self, column: str) -> list[Any]:
        """A column's media as a list."""
        value = self.found[column]
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                self.fail(f"{column} begins like a list but is no JSON", f"a list, each {EXPECTED}")
        if value is None or value == "":
            return []
        return list(value) if isinstance(value, list | tuple) else [value]

    def medium(self, kind: Kind, value: Any, at: str) -> Medium:
        """One medium, whose file is there."""
        where = f"{self.where} {at}"
        if isinstance(value, Mapping):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path") or value.get("url")
        if isinstance(value, list) and kind == "video" and value:
            frames = tuple(self.medium("image", one, f"{at}[{n}]") for n, one in enumerate(value))
            return Medium(kind, where, frames=frames)
        if isinstance(value, bytes):
            return Medium(kind, where, content=value)
        if not isinstance(value, str) or not value:
            self.fail(f"{at} is {kind_of(value) if value != '' else 'empty'}", EXPECTED)
        if value.startswith("data:"):
            return Medium(kind, where, content=self.decoded(value.partition(",")[2], at))
        scheme = urlsplit(value).scheme
        if scheme in ("http", "https", "s3", "hf"):
            self.fail(
                f"{at} is {value[:80]!r}, which the trainer does not fetch",
                "media that lie beside the dataset's file: take them into the dataset's folder",
            )
        name = urlsplit(value).path if scheme == "file" else value
        path = Path(name) if Path(name).is_absolute() else self.folder / name
        try:
            if path.is_file():
                return Medium(kind, where, path=str(path))
        except OSError:  # too long for a name
            pass
        if len(value) >= 64 and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", value):
            return Medium(kind, where, content=self.decoded(value, at))
        self.fail(f"{at}: there is no file {str(path)[:200]}", EXPECTED)

    def decoded(self, value: str, at: str) -> bytes:
        """The bytes of base64."""
        try:
            return base64.b64decode(value, validate=False)
        except (binascii.Error, ValueError) as error:
            self.fail(f"{at} is no base64: {error}", EXPECTED)

    def objects(self) -> list[tuple[str, Any]]:
        """References and boxes for grounding."""
        value = self.found.get("objects")
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        if not value:
            return []
        if not isinstance(value, Mapping):
            self.fail(f"objects is {kind_of(value)}", 'an object like {"ref": ["dog"], "bbox": [[x1, y1, x2, y2]]}')
        scale = value.get("bbox_type", "real")
        if scale not in ("real", "norm1"):
            self.fail(f"objects.bbox_type is {scale!r}", "real (pixels) or norm1 (0 to 1)")
        found: list[tuple[str, Any]] = [("ref", str(ref)) for ref in value.get("ref") or []]
        images = value.get("image_id") or []
        for n, box in enumerate(value.get("bbox") or []):
            if not isinstance(box, list) or len(box) not in (2, 4) or not all(isinstance(x, int | float) for x in box):
                self.fail(f"objects.bbox[{n}] is {str(box)[:80]}", "two numbers (a point) or four (x1, y1, x2, y2)")
            found.append(("box", (tuple(box), scale, images[n] if n < len(images) else 0)))
        return found

    def whole(self, messages: Sequence[Message], shelf: Shelf) -> list[Message]:
        """`messages` with all media of `shelf` at their places; those that no tag names stand before the first turn of
        the user.
        """
        placed = [{**message, "content": self.split(message["content"], shelf)} for message in messages]
        for kind in KINDS:
            left, seen = len(shelf.queues[kind]), shelf.seen.get(kind, 0)
            if left and not seen:
                target = next((m for m in placed if m["role"] == "user"), placed[0])
                content = target["content"]
                target["content"] = [
                    *({"type": kind, "medium": shelf.take(kind)} for _ in range(left)),
                    *([{"type": "text", "text": content}] if isinstance(content, str) else content),
                ]
            elif left:
                self.fail(
                    f"there are {seen + left} {kind}s but {seen} <{kind}> tags", f"as many, or no tag at all: {kind}s "
                    "without a tag come before the first question"
                )  # fmt: skip
        if shelf.objects:
            self.fail(f"{len(shelf.objects)} of objects have no tag", "a <ref-object> or <bbox> for each")
        for box, number in shelf.boxes:
            if number >= len(shelf.images):
                self.fail(f"a box is of image {number}, but there are {len(shelf.images)} images", "image_id from 0")
            box["medium"] = shelf.images[number]
        return placed

    def split(self, content: str | list[Message], shelf: Shelf) -> str | list[Message]:
        """A message's content in parts; text without media stays text."""
        if isinstance(content, list):
            parts: list[Message] = []
            for part in content:
                parts += self.split_text(part["text"], shelf) if part["type"] == "text" else [self.given(part, shelf)]
            return parts
        parts = self.split_text(content, shelf)
        return content if all(part["type"] == "text" for part in parts) else parts

    def given(self, part: Message, shelf: Shelf) -> Message:
        """A part whose medium stands in it, or in the row's column."""
        kind = part["type"]
        if part["given"] is None:
            return {"type": kind, "medium": self.next_of(kind, shelf)}
        medium = self.medium(kind, part["given"], f"{kind} in a message")
        if kind == "image":
            shelf.images.append(medium)
        return {"type": kind, "medium": medium}

    def next_of(self, kind: Kind, shelf: Shelf) -> Medium:
        """The next of a column."""
        medium = shelf.take(kind)
        if medium is None:
            count = shelf.seen[kind]
            self.fail(f"there are more <{kind}> tags than {kind}s ({count - 1})", f"as many {kind}s as tags")
        return medium

    def split_text(self, text: str, shelf: Shelf) -> list[Message]:
        """Text, cut at its tags."""
        parts: list[Message] = []
        for n, piece in enumerate(TAG.split(text)):
            if n % 2 == 0 or piece not in shelf.named:
                literal = piece if n % 2 == 0 else f"<{piece}>"
                if literal and parts and parts[-1]["type"] == "text":
                    parts[-1]["text"] += literal
                elif literal:
                    parts.append({"type": "text", "text": literal})
            elif piece in ("ref-object", "bbox"):
                parts.append(self.object("ref" if piece == "ref-object" else "box", shelf))
            else:
                parts.append({"type": piece, "medium": self.next_of(piece, shelf)})  # type: ignore[arg-type]
        return parts

    def object(self, kind: str, shelf: Shelf) -> Message:
        """The next reference or box."""
        place = next((n for n, (name, _) in enumerate(shelf.objects) if name == kind), None)
        if place is None:
            self.fail(f"there are more tags than objects.{'ref' if kind == 'ref' else 'bbox'}", "as many")
        value = shelf.objects.pop(place)[1]
        if kind == "ref":
            return {"type": "ref", "text": value}
        box, scale, number = value
        part: Message = {"type": "box", "box": box, "scale": scale}
        shelf.boxes.append((part, int(number)))
        return part

    def side(self, side: str, place: int, count: int, content: Content) -> Content:
        """One of the positives or negatives with its media; text with media is a user's message."""
        shelf = self.shelf(f"{side}_", place if count > 1 or self.nested(side) else None)
        messages = ({"role": "user", "content": content},) if isinstance(content, str) else content
        whole = tuple(self.whole(messages, shelf))
        return content if isinstance(content, str) and isinstance(whole[0]["content"], str) else whole

    def nested(self, side: str) -> bool:
        """Whether the column of a side has a list for each document."""
        names = [name for kind in KINDS for name in columns(f"{side}_", kind)]
        return any(
            isinstance(self.found.get(n), list) and any(isinstance(v, list) for v in self.found[n]) for n in names
        )


def columns(prefix: str, kind: Kind) -> tuple[str, ...]:
    """The names of the columns with media of a kind."""
    return tuple(prefix + name for name in COLUMNS[kind])


def spelled(content: str | list[Message]) -> list[Message]:
    """A content as parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def media_of(content: Content | Sequence[Message], parts: Sequence[Message] = ()) -> list[Medium]:
    """The media of a conversation, or of a text's parts, in their order."""
    messages = () if isinstance(content, str) else content
    return [part["medium"] for part in (*walk(messages), *parts) if part["type"] in KINDS]


def walk(messages: Sequence[Message]) -> Iterator[Message]:
    """All parts of messages whose content is a list."""
    for message in messages:
        if isinstance(message["content"], list):
            yield from message["content"]


def text_of(content: str | list[Message]) -> str:
    """What is text in a message's content."""
    return "".join(part.get("text", "") for part in spelled(content))
