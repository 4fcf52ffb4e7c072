"""Tiny random models that read images, video or audio, with processors made here, and data whose answer is only in the
media.
"""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path
from typing import Any

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
SPECIAL = (
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>", "<|audio_bos|>",
    "<|AUDIO|>", "<|audio_eos|>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}VIDEO"
    "{% elif c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def tokenizer_of(base: Any, video: str) -> Any:
    """The tests' tokenizer with the special tokens of media."""
    from trainer.conftest import make_tokenizer

    tokenizer = make_tokenizer(TEMPLATE.replace("VIDEO", video))
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL)}, replace_extra_special_tokens=False)
    return tokenizer


def larger(model: Any) -> Any:
    """Weights larger than the default initialisation, so that outputs differ visibly between inputs."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "audio" not in name:
                parameter.normal_(0, 0.1)
    return model


def qwen_vl(folder: Path, generation: int = 2) -> Path:
    """A random Qwen2.5-VL (generation 2) or Qwen3-VL (3), float32."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    patch = 14 if generation == 2 else 16
    video = "<|vision_start|><|video_pad|><|vision_end|>" if generation == 2 else "<|video_pad|>"
    tokenizer = tokenizer_of(None, video)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    common = {
        "image_token_id": ids["image_pad"], "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"], "vision_end_token_id": ids["vision_end"],
        "tie_word_embeddings": True,
    }  # fmt: skip
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "patch_size": patch,
        "out_hidden_size": 64,
    }
    sizes = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}
    shape = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": sizes}
    if generation == 2:
        config: Any = t.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
            vision_config={**vision, "fullatt_block_indexes": [1], "window_size": 2 * patch * 2}, **common,
        )  # fmt: skip
        model: Any = t.Qwen2_5_VLForConditionalGeneration(config)
        processor: Any = t.Qwen2_5_VLProcessor(
            t.Qwen2VLImageProcessor(**shape),
            tokenizer,
            t.Qwen2VLVideoProcessor(**shape),
            chat_template=tokenizer.chat_template,
        )
    else:
        config = t.Qwen3VLConfig(
            text_config={
                **text, "head_dim": 16,
                "rope_parameters": {**ROPE, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
            },
            vision_config={**vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}, **common,
        )  # fmt: skip
        model = t.Qwen3VLForConditionalGeneration(config)
        processor = t.Qwen3VLProcessor(
            t.Qwen2VLImageProcessor(**shape),
            tokenizer,
            t.Qwen3VLVideoProcessor(**shape),
            chat_template=tokenizer.chat_template,
        )
    larger(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def qwen_audio(folder: Path) -> Path:
    """A random Qwen2-Audio, float32."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    tokenizer = tokenizer_of(None, "")
    text = {**TEXT, "vocab_size": len(tokenizer), "model_type": "qwen2", "tie_word_embeddings": False}
    config = t.Qwen2AudioConfig(
        text_config=text,
        audio_config={
            "model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 50,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = t.Qwen2AudioForConditionalGeneration(config)
    extractor = t.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    processor = t.Qwen2AudioProcessor(extractor, tokenizer, chat_template=tokenizer.chat_template)
    larger(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pictures(folder: Path) -> dict[str, str]:
    """A picture of each colour, by the name of its file."""
    from PIL import Image

    for name, colour in COLOURS.items():
        Image.new("RGB", (56, 56), colour).save(folder / f"{name}.png")
    return {name: f"{name}.png" for name in COLOURS}


def sound(path: Path, pitch: float, seconds: float = 0.4) -> None:
    """A tone."""
    samples = [int(12000 * math.sin(2 * math.pi * pitch * n / 16000)) for n in range(int(16000 * seconds))]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def film(path: Path, colours: list[str], seconds: float = 1.0) -> None:
    """A video of one colour after another, each so long."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            frame = np.full((64, 64, 3), COLOURS[colour], dtype=np.uint8)
            for _ in range(int(8 * seconds)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
