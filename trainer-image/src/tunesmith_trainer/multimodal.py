"""The processor of a model that reads images, video or audio: placeholders of its chat template -> as many tokens as a
medium takes, and media -> the tensors of a batch.

How many tokens a medium takes is known before anything of it is decoded but an image's size: the processor is asked
once about a blank image of each size. So rows are tokenised and measured first, and pixels are made where a batch is.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith_trainer import grounding
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.media import KINDS, Kind, Medium

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast
    from tunesmith.training.plan import Place

    from tunesmith_trainer.data import Message, Row

Span = tuple[int, int]
FILES = ("processor_config.json", "preprocessor_config.json")
# What the processor says of tokens, and not of media.
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
SECTIONS: dict[Kind, str] = {"image": "image_processor", "video": "video_processor", "audio": "feature_extractor"}
ARGUMENTS: dict[Kind, str] = {"image": "images", "video": "videos", "audio": "audio"}

KNOWN = 1000
"""Media whose placeholders are kept for the next time."""


class Multimodal:
    """A model's processor, and the media of the rows that are learned from."""

    def __init__(self, processor: Any, place: Place, config: dict[str, Any]) -> None:
        self.processor, self.place = processor, place
        self.family = str(config.get("model_type"))
        self.tokens: dict[Kind, str] = {}
        for kind in KINDS:
            token = getattr(processor, f"{kind}_token", None)
            has = getattr(processor, SECTIONS[kind], None) or (
                kind == "audio" and getattr(processor, "audio_processor", 0)
            )
            if token and has:
                self.tokens[kind] = str(getattr(token, "content", token))
        self.items: list[Medium] = []
        self.known: dict[Any, str] = {}
        self.bare: dict[Kind, str] = {}
        self.per_token: set[str] = set()

    def numbers(self, media: Sequence[Medium]) -> list[int]:
        """The media's places among all, for a column of a dataset."""
        begin = len(self.items)
        self.items += media
        return list(range(begin, len(self.items)))

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as chat templates of multi-modal models want them: every content is a list of parts."""
        found = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [self.part(part) for part in content]
            else:
                content = [{"type": "text", "text": content}] if content else []
            found.append({**message, "content": content})
        return found

    def part(self, part: Message) -> dict[str, str]:
        """A part as templates want it."""
        if part["type"] in KINDS:
            return {"type": part["type"]}
        return {"type": "text", "text": self.spelled(part)}

    def spelled(self, part: Message) -> str:
        """The text of a part that is one; a box as the family writes it."""
        if part["type"] == "ref":
            return grounding.reference(self.family, part["text"])
        if part["type"] == "box":
            size = grounding.NEEDS_GRID.get(self.family) and self.resized(part["medium"])
            return grounding.box(self.family, part["box"], part["scale"], image_size(part["medium"]), size or None)
        return str(part["text"])

    def raw(self, parts: Sequence[Message]) -> str:
        """A text with media, without a template: each medium as the template writes it within a turn."""
        return "".join(self.within(p["type"]) if p["type"] in KINDS else self.spelled(p) for p in parts)

    def within(self, kind: Kind) -> str:
        """How the template writes a medium."""
        if kind not in self.bare:
            mark = "\u2063mark\u2063"
            sides = [
                self.processor.tokenizer.apply_chat_template([{"role": "user", "content": [part]}], tokenize=False)
                for part in ({"type": "text", "text": mark}, {"type": kind})
            ] if self.processor.tokenizer.chat_template else ["", ""]  # fmt: skip
            before, _, after = sides[0].partition(mark)
            fits = sides[1].startswith(before) and sides[1].endswith(after) and self.tokens[kind] in sides[1]
            end = len(sides[1]) - len(after)
            self.bare[kind] = sides[1][len(before) : end] if fits else self.tokens[kind]
        return self.bare[kind]

    def expand(self, text: str, spans: list[Span], media: Sequence[Medium], where: str) -> tuple[str, list[Span]]:
        """`text` with as many placeholders as its media take, and `spans` moved with it: nothing of a medium is in
        them.
        """
        queues: dict[Kind, list[Medium]] = {kind: [m for m in media if m.kind == kind] for kind in KINDS}
        counts = {kind: len(queue) for kind, queue in queues.items()}
        for kind, count in counts.items():
            if count and kind not in self.tokens:
                raise DataError(
                    f"{where}: it has a {kind}, but model {self.place.uri} ({self.family}) reads "
                    f"{sorted(self.tokens) or 'text'} only"
                )
        tokens = {token: kind for kind, token in self.tokens.items()}
        pieces: list[str] = []
        moved: list[tuple[int, int, int, int]] = []
        length = last = 0
        for match in re.finditer("|".join(map(re.escape, tokens)), text):
            queue = queues[tokens[match[0]]]
            if not queue:
                break
            written = self.replacement(queue.pop(0))
            pieces += [text[last : match.start()], written]
            length += match.start() - last
            moved.append((match.start(), match.end(), length, length + len(written)))
            length, last = length + len(written), match.end()
        else:
            if not any(queues.values()):
                return "".join([*pieces, text[last:]]), [s for span in spans for s in shifted(span, moved)]
        found = {kind: text.count(token) for kind, token in self.tokens.items()}
        raise DataError(
            f"{where}: its media are {counts}, but the model's chat template writes placeholders for {found}: the "
            "template drops parts of it, or the text holds a placeholder's own token"
        )

    def replacement(self, medium: Medium) -> str:
        """What the placeholder of a medium becomes: as many tokens as it takes, with what the family writes between."""
        key = (medium.kind, image_size(medium)) if medium.kind == "image" else identity(medium)
        if key not in self.known:
            if len(self.known) >= KNOWN:
                self.known.clear()
            loaded: Any = self.load(medium)
            if medium.kind == "image":
                from PIL import Image

                loaded = Image.new("RGB", image_size(medium))
            made = self.call([self.tokens[medium.kind]], {medium.kind: [[loaded]]}, [medium])
            tokenizer = self.processor.tokenizer
            ids = [int(i) for i in made["input_ids"][0]]
            written = str(tokenizer.decode(ids, skip_special_tokens=False))
            if tokenizer(written, add_special_tokens=False)["input_ids"] != ids:
                raise ModelError(f"model {self.place.uri}: its processor's {medium.kind} tokens are no text")
            self.known[key] = written
        return self.known[key]

    def call(self, texts: list[str], loaded: dict[Kind, list[list[Any]]], media: Sequence[Medium]) -> Any:
        """The processor's answer."""
        arguments: dict[str, Any] = {}
        for kind, rows in loaded.items():
            flat = [one for row in rows for one in row]
            if flat:
                arguments[ARGUMENTS[kind]] = rows if kind == "image" else flat
        if "videos" in arguments:
            frames, said = zip(*arguments["videos"], strict=True)
            arguments |= {"videos": list(frames), "video_metadata": list(said), "do_sample_frames": False}
        if loaded.get("audio"):
            arguments["sampling_rate"] = self.rate
        try:
            return self.processor(
                text=texts,
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_tensors="pt",
                **arguments,
            )
        except DataError:
            raise
        except Exception as error:
            places = ", ".join(m.where for m in media[:3])
            raise DataError(f"{places}: the model's processor refuses it: {type(error).__name__}: {error}") from error

    def tensors(self, rows: Sequence[Sequence[int | Medium]]) -> dict[str, torch.Tensor]:
        """What the model is given beside the tokens of a batch, whose rows have these media, or those of these
        numbers.
        """
        return self.tensors_of([[self.items[one] if isinstance(one, int) else one for one in row] for row in rows])

    def tensors_of(self, media: Sequence[Sequence[Medium]]) -> dict[str, torch.Tensor]:
        """The same, of media themselves."""
        flat = [medium for row in media for medium in row]
        if not flat:
            return {}
        kinds = [kind for kind in KINDS if any(m.kind == kind for m in flat)]
        loaded: dict[Kind, list[list[Any]]] = {
            kind: [[self.load(m) for m in row if m.kind == kind] for row in media] for kind in kinds
        }
        texts = ["".join(self.tokens[m.kind] for m in row) for row in media]
        made = self.call(texts, loaded, flat)
        self.per_token |= {name for name in PER_TOKEN if name in made}
        return {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask", *PER_TOKEN)}

    def token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What kind each token is, for models that want it said (1: image, 2: video, 3: audio)."""
        import torch

        if not self.per_token:
            return {}
        types = torch.tensor(self.processor.create_mm_token_type_ids(input_ids.tolist()), device=input_ids.device)
        return dict.fromkeys(self.per_token, types)

    @property
    def rate(self) -> int:
        """Samples per second of audio."""
        section = getattr(self.processor, "feature_extractor", None) or self.processor.audio_processor
        return int(section.sampling_rate)

    def load(self, medium: Medium) -> Any:
        """A medium as the processor takes it: a PIL image, a video's frames, an array of sound."""
        try:
            if medium.kind == "image":
                from PIL import ImageOps

                with opened(medium) as image:
                    return ImageOps.exif_transpose(image).convert("RGB")
            return self.video(medium) if medium.kind == "video" else self.sound(medium)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{medium.where}: it cannot be read as {medium.kind}: {error}") from error

    def video(self, medium: Medium) -> tuple[Any, Any]:
        """(frames, what is known of them): those that the model's processor would choose; given ones as they are, two
        in a second.
        """
        import numpy as np
        from transformers.video_utils import VideoMetadata, read_video_pyav

        if medium.frames:
            frames = np.stack([np.asarray(self.load(frame)) for frame in medium.frames])
            count = len(frames)
            return frames, VideoMetadata(total_num_frames=count, fps=2.0, frames_indices=list(range(count)))
        section = self.processor.video_processor
        options = {name: getattr(section, name, None) for name in section.valid_kwargs.__annotations__}

        def chosen(metadata: Any, **_: Any) -> Any:
            if not options["do_sample_frames"]:
                return np.arange(metadata.total_num_frames)
            return np.asarray(section.sample_frames(metadata=metadata, **options))

        found: tuple[Any, Any] = read_video_pyav(medium.path or io.BytesIO(medium.content or b""), chosen)  # type: ignore[arg-type]
        return found

    def sound(self, medium: Medium) -> Any:
        """Samples at the model's rate, of all channels together."""
        import av
        import numpy as np

        with av.open(medium.path or io.BytesIO(medium.content or b"")) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=self.rate)
            parts = [
                made.to_ndarray()[0]
                for frame in (*container.decode(audio=0), None)
                for made in resampler.resample(frame)
            ]
        return np.concatenate(parts)

    def resized(self, medium: Medium) -> tuple[int, int]:
        """(width, height) of an image after the processor."""
        grid = self.processor.image_processor(images=[self.load(medium)], return_tensors="pt")["image_grid_thw"][0]
        patch = self.processor.image_processor.patch_size
        return int(grid[2]) * patch, int(grid[1]) * patch


def identity(medium: Medium) -> tuple[Any, ...]:
    """What a medium is told apart from others by, without its bytes."""
    content = medium.content and hashlib.sha256(medium.content).digest()
    return medium.kind, medium.path, content, *map(identity, medium.frames)


def shifted(span: Span, moved: Sequence[tuple[int, int, int, int]]) -> list[Span]:
    """A range of the text before -> ranges of the text after, without what was put in."""
    start, end = span
    found: list[Span] = []
    delta, at = 0, start
    for old_start, old_end, new_start, new_end in moved:
        if old_end <= start:
            delta = new_end - old_end
        elif old_start >= end:
            break
        else:
            if at < old_start:
                found.append((at + delta, new_start))
            delta, at = new_end - old_end, max(at, old_end)
    if at < end:
        found.append((at + delta, end + delta))
    return found


def opened(medium: Medium) -> Any:
    """An image whose header is read."""
    from PIL import Image

    return Image.open(medium.path or io.BytesIO(medium.content or b""))


def image_size(medium: Medium) -> tuple[int, int]:
    """(width, height) of an image as it is looked at, by its header."""
    try:
        with opened(medium) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except Exception as error:
        raise DataError(f"{medium.where}: it cannot be read as image: {error}") from error
    return (height, width) if turned else (width, height)


def load_processor(place: Place, config: dict[str, Any]) -> Multimodal | None:
    """The processor of a model that reads more than text; None for others."""
    if not any((Path(place.path) / name).is_file() for name in FILES):
        return None
    from transformers import AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(place.path, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"model {place.uri}: its processor cannot be loaded: {error}") from error
    if not hasattr(processor, "tokenizer"):
        return None
    found = Multimodal(processor, place, config)
    return found if found.tokens else None


def processor_of(tokenizer: PreTrainedTokenizerFast, row: Row | None = None, media: Sequence[Medium] = ()) -> Any:
    """The Multimodal that `load_tokenizer` left with a tokenizer, or None. Refuses media without it."""
    found = getattr(tokenizer, "multimodal", None)
    if media and found is None and row:
        raise DataError(
            f"{row.where}: it has media ({media[0].kind}), but the model reads text only: use a multi-modal model with "
            "its processor's files (preprocessor_config.json)"
        )
    return found
