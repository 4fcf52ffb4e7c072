"""Labels: exactly the tokens that the model would write are learned, for each template and each loss_on."""

from __future__ import annotations

from typing import Any

import pytest
from trainer.support import CHATML, LLAMA3
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.masks import IGNORED, LossOn, Masker
from tunesmith_trainer.tokens import Limit, tokenize

pytestmark = pytest.mark.trainer

PLAIN = (  # no end-of-turn token, and a prompt that ends in a space, which a token of the answer may take along
    "System: be kind\n{% for m in messages %}{{ 'Human' if m['role'] == 'user' else 'Bot' }}: {{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}Bot: {% endif %}"
)
REWRITING = (  # a turn's answer is shortened once another turn follows, as reasoning templates do
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = Row(
    "datasets[0] d row 1",
    messages=(
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello world"},
        {"role": "user", "content": "who are you?"},
        {"role": "assistant", "content": "I am Xiao Huang.\n"},
    ),
)


@pytest.fixture
def with_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives the tokenizer another template."""

    def give(template: str | None) -> Any:
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return tokenizer

    return give


def learned(tokenizer: Any, row: Row, loss_on: LossOn, max_length: int = 512) -> list[str]:
    """The learned pieces of a row's texts: one string per run of learned tokens."""
    tokens = tokenize([row], Masker(tokenizer, loss_on), Limit(max_length)).table
    pieces: list[list[int]] = []
    for ids, labels in zip(tokens["input_ids"], tokens["labels"], strict=True):
        previous = False
        for token, label in zip(ids, labels, strict=True):
            assert label in (token, IGNORED)
            if label != IGNORED:
                pieces.append([]) if not previous else None
                pieces[-1].append(token)
            previous = label != IGNORED
    return [tokenizer.decode(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("template", "loss_on", "expected"),
    [
        (CHATML, "Assistant", ["hello world<|im_end|>", "I am Xiao Huang.\n<|im_end|>"]),
        (CHATML, "LastAssistant", ["I am Xiao Huang.\n<|im_end|>"]),
        (
            CHATML,
            "All",
            [
                "user\nhello<|im_end|>\n<|im_start|>assistant\nhello world<|im_end|>\n"
                "<|im_start|>user\nwho are you?<|im_end|>\n<|im_start|>assistant\nI am Xiao Huang.\n<|im_end|>\n"
            ],
        ),
        (LLAMA3, "Assistant", ["hello world<|eot_id|>", "I am Xiao Huang.<|eot_id|>"]),
        (LLAMA3, "LastAssistant", ["I am Xiao Huang.<|eot_id|>"]),
        (
            LLAMA3,
            "All",
            [
                "user<|end_header_id|>\n\nhello<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nhello world<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nwho are you?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nI am Xiao Huang.<|eot_id|>"
            ],
        ),
        (PLAIN, "Assistant", ["hello world\n", " I am Xiao Huang.\n\n<|im_end|>"]),
        (PLAIN, "LastAssistant", [" I am Xiao Huang.\n\n<|im_end|>"]),
        (REWRITING, "LastAssistant", ["I am Xiao Huang.\n<|im_end|>"]),
    ],
)
def test_learned_text_is_what_the_model_would_write(
    with_template: Any, template: str, loss_on: LossOn, expected: list[str]
) -> None:
    assert learned(with_template(template), TALK, loss_on) == expected


def test_a_turn_that_is_rewritten_is_learned_in_a_text_of_its_own(with_template: Any) -> None:
    thought = {"role": "assistant", "content": "<think>x</think>hello"}
    row = Row("r", messages=(TALK.messages[0], thought, *TALK.messages[2:]))
    tokenizer = with_template(REWRITING)
    assert learned(tokenizer, row, "Assistant") == [
        "I am Xiao Huang.\n<|im_end|>",
        "<think>x</think>hello<|im_end|>",
    ]
    texts = Masker(tokenizer, "Assistant").texts(row)
    assert ["<think>" in one.text for one in texts] == [False, True]
    assert (
        texts[1].text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>x</think>hello<|im_end|>\n"
    )


def test_a_template_that_renders_the_question_otherwise_is_refused(with_template: Any) -> None:
    template = "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    row = Row("datasets[0] d row 5", messages=TALK.messages)
    with pytest.raises(DataError, match=r"datasets\[0\] d row 5: .*not exact which tokens.*lossOn to All"):
        learned(with_template(template), row, "Assistant")


def test_a_conversation_that_ends_with_a_user_keeps_the_question_unlearned(with_template: Any) -> None:
    row = Row("r", messages=(*TALK.messages, {"role": "user", "content": "bye"}))
    assert learned(with_template(CHATML), row, "LastAssistant") == ["I am Xiao Huang.\n<|im_end|>"]


def test_text_is_learned_whole_and_ends_with_eos(with_template: Any) -> None:
    assert learned(with_template(None), Row("r", text="hello world"), "All")[0].endswith("world<|im_end|>")


def test_the_first_token_is_never_a_label(with_template: Any) -> None:
    assert tokenize([TALK], Masker(with_template(CHATML), "All"), Limit(512)).table["labels"][0][0] == IGNORED


def test_rows_are_cut_at_the_end_and_left_out_when_nothing_remains(with_template: Any) -> None:
    tokenizer = with_template(CHATML)
    short = Row("r", messages=TALK.messages[:2])
    tokens = tokenize(
        [short, Row("r", messages=({"role": "user", "content": "hello " * 50}, TALK.messages[1]))],
        Masker(tokenizer, "Assistant"),
        Limit(24),
    )
    assert (len(tokens.table), tokens.cut, tokens.dropped) == (1, 1, 1)
    with pytest.raises(DataError, match=r"nothing to learn is left of 1 rows within spec.training.maxLength 4"):
        tokenize([short], Masker(tokenizer, "Assistant"), Limit(4))


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([("user", "x")], "no assistant's turn"),
        ([("assistant", "x"), ("user", "x")], "the assistant begins"),
    ],
)
def test_a_conversation_without_a_question_and_an_answer_is_refused(
    with_template: Any, messages: list[tuple[str, str]], part: str
) -> None:
    row = Row("datasets[0] d row 2", messages=tuple({"role": role, "content": content} for role, content in messages))
    with pytest.raises(DataError, match=rf"datasets\[0\] d row 2: .*{part}"):
        learned(with_template(CHATML), row, "Assistant")


def test_what_the_template_refuses_names_the_row(with_template: Any) -> None:
    tokenizer = with_template("{{ raise_exception('System role not supported') }}")
    with pytest.raises(DataError, match=r"datasets\[0\] d row 1: the model's chat template refuses it: System role"):
        learned(tokenizer, TALK, "Assistant")


def test_a_model_without_a_template_is_refused(with_template: Any) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        learned(with_template(None), TALK, "Assistant")


def test_plain_text_has_no_assistant(with_template: Any) -> None:
    with pytest.raises(DataError, match=r"use spec\.method\.type PreTraining"):
        Masker(with_template(CHATML), "Assistant").texts(Row("r", text="x"))


@pytest.mark.parametrize(
    ("excluded", "expected"), [(1, ["I am Xiao Huang.\n<|im_end|>"]), (3, ["hello world<|im_end|>"])]
)
def test_a_turn_with_loss_false_is_read_and_not_learned(with_template: Any, excluded: int, expected: list[str]) -> None:
    messages = tuple(m | ({"loss": False} if i == excluded else {}) for i, m in enumerate(TALK.messages))
    assert learned(with_template(CHATML), Row("r", messages=messages), "Assistant") == expected
