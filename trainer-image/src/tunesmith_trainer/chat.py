"""Conversations -> text, by the chat template of the model or the default one. Everything that renders does it here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import ChatPlan

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.media import text_of
from tunesmith_trainer.multimodal import processor_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For base models: no tokens that they never saw but their own end of text."""
THINK, ANSWER = "<think>", "</think>"
PROBE = "\u2063probe\u2063"
"""A content that stands for any other."""


@dataclass(frozen=True)
class Chat:
    """What a tokenizer's template is told beside the messages."""

    system: str | None = None
    """The system prompt of conversations that have none of their own."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the template, for example enable_thinking."""
    stops: tuple[str, ...] = ()
    """Tokens at which generation ends."""


def chat_of(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """The Chat that `set_up` left with a tokenizer."""
    found: Chat = getattr(tokenizer, "chat", None) or Chat()
    return found


def digest_of(tokenizer: Any) -> list[Any] | None:
    """All that decides how a conversation becomes tokens; None where it is not known of a tokenizer."""
    files = getattr(tokenizer, "files_digest", None)
    return files and [files, tokenizer.chat_template, asdict(chat_of(tokenizer)), version("transformers")]


def set_up(tokenizer: Any, plan: ChatPlan, ends: Sequence[int] = ()) -> None:
    """Let a tokenizer render as the plan says. `ends`: the tokens at which generation ends."""
    if plan.type == "Default":
        tokenizer.chat_template = DEFAULT
    stops = tokenizer.convert_ids_to_tokens(list(ends))
    tokenizer.chat = Chat(plan.system, dict(plan.arguments))
    tokenizer.chat = replace(tokenizer.chat, stops=tuple(dict.fromkeys([*stops, *turn_ends(tokenizer)])))


def turn_ends(tokenizer: Any) -> list[str]:
    """The special token that the template writes behind an answer, at which a model that learned it ends. That of base
    models with a template need not be their end of text.
    """
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        _, there, after = render(tokenizer, Row("the template"), turns).partition(PROBE)
    except Exception:  # of a template that wants other conversations
        return []
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = [one for one in special if there and after.lstrip().startswith(one)]
    return [max(found, key=len)] if found else []


def ends(tokenizer: Any) -> list[int]:
    """The tokens that end an answer."""
    return sorted({tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(chat_of(tokenizer).stops))})


def render(
    tokenizer: PreTrainedTokenizerFast, row: Row, messages: Sequence[Message] | None = None, prompt: bool = False
) -> str:
    """Messages, by default the row's, as the model sees them; with `prompt`, up to where it would begin to answer.
    Raises what the template raises.
    """
    chat = chat_of(tokenizer)
    turns = list(row.messages if messages is None else messages)
    if chat.system and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": chat.system})
    told: Any = {**chat.arguments, **row.chat_template_kwargs}
    text = tokenizer.apply_chat_template(
        readable(turns, tokenizer), tools=row.tools, tokenize=False, add_generation_prompt=prompt, **told
    )  # type: ignore[arg-type]
    return str(text)


def readable(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[Message]:
    """Messages as the tokenizer's chat template wants them."""
    if multimodal := processor_of(tokenizer):
        return list(multimodal.messages(messages))
    plain = [m if isinstance(m["content"], str) else {**m, "content": text_of(m["content"])} for m in messages]
    template = str(tokenizer.chat_template)
    keys = [key for key in ("reasoning_content", "thinking") if key in template]
    return plain if ANSWER in template or not keys else [apart(message, keys[0]) for message in plain]


def apart(message: Message, key: str) -> Message:
    """A message whose reasoning stands under a key of its own, for templates that find it nowhere else."""
    opened, closed, answer = message["content"].partition(ANSWER)
    if message["role"] != "assistant" or not closed:
        return message
    return {**message, "content": answer.lstrip("\n"), key: opened.partition(THINK)[2].strip("\n")}


@contextmanager
def template_errors(row: Row) -> Iterator[None]:
    """What a chat template raises, jinja's own or whatever it does with a row it did not expect, is the row's error."""
    try:
        yield
    except (DataError, ModelError):
        raise
    except Exception as error:
        raise DataError(f"{row.where}: the model's chat template refuses it: {error}") from error


def need_template(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> None:
    """See that conversations can be rendered."""
    if any(row.messages for row in rows) and not tokenizer.chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template, so that conversations cannot be rendered: use an instruction-"
            "tuned model, add a chat_template.jinja to it, set spec.chatTemplate.type to Default, or train on text rows"
        )
