"""The property on which training by conversations rests: for the templates of the families that people use, what is
learned is exactly what the assistant writes, whatever is said.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer.families import FAMILIES, Family, Pieces, Turn
from trainer.support import artifact_path
from trainer.test_data import read
from tunesmith.training.plan import ChatPlan, Place, TrainPlan
from tunesmith_trainer import chat
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.masks import IGNORED, Masker
from tunesmith_trainer.rows import decode, encode

pytestmark = pytest.mark.trainer

SAID = [*'abe .:\n"{}<|/é日🙂', "user", "assistant", "final", "return", "think", " a", "</", "{{ x }}"]
WORDS = st.lists(st.sampled_from(SAID), min_size=1, max_size=6).map("".join).filter(lambda text: text.strip())
SYSTEM = st.none() | WORDS.map(str.strip)
PLAIN = st.builds(Turn, WORDS, WORDS)
THINKING = st.builds(Turn, WORDS, WORDS, st.none() | WORDS.map(str.strip))


def tokenizer_of(family: Family) -> Any:
    """A byte-level tokenizer with the family's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {symbol: at for at, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    eos, *others = family.tokens
    extra = [token for token in others if token != family.bos]
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, bos_token=family.bos, additional_special_tokens=extra
    )
    fast.chat_template = family.template or chat.DEFAULT
    fast.chat = chat.Chat(arguments=family.arguments, stops=family.stops)
    return fast


TOKENIZERS = {family.name: family for family in FAMILIES}


def conversation(system: str | None, turns: list[Turn]) -> Row:
    """A row."""
    head = [{"role": "system", "content": system}] if system else []
    said = [
        m
        for t in turns
        for m in ({"role": "user", "content": t.user}, {"role": "assistant", "content": t.content})
    ]  # fmt: skip
    return Row("d row 1", messages=(*head, *said))


def runs(pieces: Pieces) -> list[tuple[str, bool]]:
    """Pieces of a kind, joined."""
    found: list[tuple[str, bool]] = []
    for text, learned in pieces:
        if text and found and found[-1][1] == learned:
            found[-1] = (found[-1][0] + text, learned)
        elif text:
            found.append((text, learned))
    return found


def coded(masker: Masker, row: Row) -> list[list[tuple[str, bool]]]:
    """What a row's labels say: runs of tokens, learned or not, as text again."""
    every = []
    for _, _, ids, labels, _ in masker.tokens([row]):
        assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
        marks = [(int(token), label != IGNORED) for token, label in zip(ids, labels, strict=True)]
        grouped: list[tuple[list[int], bool]] = []
        for token, learned in marks:
            if grouped and grouped[-1][1] == learned:
                grouped[-1][0].append(token)
            else:
                grouped.append(([token], learned))
        every.append([(masker.tokenizer.decode(tokens), learned) for tokens, learned in grouped])
    return every


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_exactly_what_the_assistant_writes_is_learned(family: Family) -> None:
    masker = Masker(tokenizer_of(family), "Assistant")

    @settings(max_examples=40, derandomize=True, database=None)
    @given(SYSTEM, st.lists(THINKING if family.thinks else PLAIN, min_size=1, max_size=4))
    def check(system: str | None, turns: list[Turn]) -> None:
        said = system if family.system else None
        row = conversation(said, turns)
        expected = [runs(pieces) for pieces in family.build(said, turns)]
        texts = masker.texts(row)
        assert [one.text for one in texts] == ["".join(text for text, _ in pieces) for pieces in expected]
        for one, pieces in zip(texts, expected, strict=True):
            assert [one.text[start:end] for start, end in merged(one.spans)] == [t for t, learned in pieces if learned]
        assert coded(masker, row) == expected

    check()


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch, as one."""
    found: list[tuple[int, int]] = []
    for start, end in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.original], ids=lambda family: family.name)
def test_the_makers_own_template_gives_the_same(family: Family) -> None:
    import trl

    rebuilt, own = tokenizer_of(family), tokenizer_of(family)
    own.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{family.original}.jinja").read_text()
    turns = [
        Turn("a", "b", "c" if family.thinks else None),
        Turn("d", "e"),
        Turn("f", "g", "h" if family.thinks else None),
    ]
    row = conversation("s" if family.system else None, turns)
    assert coded(Masker(own, "Assistant"), row) == coded(Masker(rebuilt, "Assistant"), row)


def test_an_empty_reasoning_can_be_left_unlearned() -> None:
    tokenizer = tokenizer_of(TOKENIZERS["Qwen3"])
    row = conversation(None, [Turn("a", "b"), Turn("c", "d")])
    for learned, last in ((True, "<think>\n\n</think>\n\nd<|im_end|>"), (False, "d<|im_end|>")):
        [one] = coded(Masker(tokenizer, "Assistant", learned), row)
        assert [text for text, is_learned in one if is_learned] == ["b<|im_end|>", last]
    thought = conversation(None, [Turn("a", "b", "c")])
    [one] = coded(Masker(tokenizer, "Assistant", False), thought)
    assert one[-2] == ("<think>\nc\n</think>\n\nb<|im_end|>", True)


def test_the_systems_prompt_is_the_rows_else_the_specs_else_the_templates() -> None:
    tokenizer = tokenizer_of(TOKENIZERS["Qwen2.5"])
    for spec, own, expected in (("spec's", "row's", "row's"), ("spec's", None, "spec's"), (None, None, "You are Qwen")):
        tokenizer.chat = chat.Chat(system=spec)
        [one] = Masker(tokenizer, "Assistant").texts(conversation(own, [Turn("a", "b")]))
        assert one.text.startswith(f"<|im_start|>system\n{expected}")
        assert one.text.count("<|im_start|>system") == 1


def test_a_rows_own_arguments_come_first() -> None:
    tokenizer = tokenizer_of(TOKENIZERS["Qwen3, not thinking"])
    turns = conversation(None, [Turn("a", "b")]).messages
    [one] = coded(Masker(tokenizer, "Assistant"), Row("r", turns, chat_template_kwargs={"enable_thinking": True}))
    assert one[-2] == ("<think>\n\n</think>\n\nb<|im_end|>", True)
    [one] = coded(Masker(tokenizer, "Assistant"), Row("r", turns))
    assert one[-2] == ("b<|im_end|>", True)


def test_a_base_model_gets_the_default_template_and_its_artefact_has_it(
    make_plan: Callable[..., TrainPlan], tiny: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer
    from tunesmith_trainer.train import train

    base = tmp_path / "base"
    shutil.copytree(tiny, base, ignore=shutil.ignore_patterns("chat_template*"))
    plan = make_plan().model_copy(update={"model": Place(uri="pvc://models/base", path=str(base))})
    with pytest.raises(ModelError, match=r"no chat template.*spec\.chatTemplate\.type to Default"):
        train(plan)
    ending = train(plan.model_copy(update={"chat_template": ChatPlan(type="Default", system="Be kind.")}))
    adapter = artifact_path(plan, ending)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    template = (adapter / "chat_template.jinja").read_text()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert text == "### User:\nhi\n\n### Assistant:\n"


def test_arguments_of_the_template_are_a_column(tmp_path: Path) -> None:
    lines = {"query": "Q", "response": "A", "chat_template_kwargs": {"enable_thinking": False}}
    row = read(tmp_path / "d.jsonl", json.dumps(lines))[0]
    assert row.chat_template_kwargs == {"enable_thinking": False}
    assert decode(encode(row)) == row
    with pytest.raises(DataError, match=r"row 1: chat_template_kwargs is text: .*expected an object"):
        read(tmp_path / "d.jsonl", json.dumps(lines | {"chat_template_kwargs": "x"}))
