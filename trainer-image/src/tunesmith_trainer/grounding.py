"""References and boxes as each family of models was taught to write them."""

from __future__ import annotations

from collections.abc import Sequence

# Families whose boxes are in pixels of the image as their processor resizes it.
NEEDS_GRID = {"qwen2_5_vl": True, "qwen2_5_omni": True, "qwen2_5_omni_thinker": True}
# Family -> (reference, box of four, point); others get OTHERS. {0}…{3} are x1, y1, x2, y2.
QWEN2 = ("<|object_ref_start|>{}<|object_ref_end|>", "<|box_start|>({0},{1}),({2},{3})<|box_end|>",
         "<|box_start|>({0},{1})<|box_end|>")  # fmt: skip
INTERN = ("<ref>{}</ref>", "<box>[[{0}, {1}, {2}, {3}]]</box>", "<point>[[{0}, {1}]]</point>")
OTHERS = ("{}", "[{0}, {1}, {2}, {3}]", "[{0}, {1}]")
FORMS = {"qwen2_vl": QWEN2, "internvl": INTERN, "internvl_chat": INTERN}


def reference(family: str, text: str) -> str:
    """What is pointed at."""
    return FORMS.get(family, OTHERS)[0].format(text)


def box(
    family: str,
    values: Sequence[float],
    scale: str,
    size: tuple[int, int],
    resized: tuple[int, int] | None = None,
) -> str:
    """A box or point of an image of `size`: in pixels of the resized image for families that see those, else in
    thousandths of the image.
    """
    width, height = size
    target = resized or (1000, 1000)
    found = []
    for place, value in enumerate(values):
        part = value if scale == "norm1" else value / (width, height)[place % 2]
        found.append(round(part * target[place % 2]))
    return FORMS.get(family, OTHERS)[1 if len(found) == 4 else 2].format(*found)
