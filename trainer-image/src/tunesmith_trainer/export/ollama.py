"""Ollama's Modelfile beside a GGUF file: the chat template in Ollama's language, and where answers end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith_trainer.chat import ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE = "Modelfile"
SYSTEM, USER, ASSISTANT = ("\u27e6system\u27e7", "\u27e6user\u27e7", "\u27e6assistant\u27e7")


def modelfile(file: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """What `ollama create NAME -f Modelfile` reads."""
    lines = [f"FROM ./{file}"]
    template = go_template(tokenizer)
    if template is None:
        lines.append(
            "# The chat template has no exact form in Ollama's language: Ollama takes the one that it finds by"
        )
        lines.append("# itself in the file. See `ollama show --template`.")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{tokenizer.decode([end])}"' for end in ends(tokenizer)]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The chat template as one of Go's text/template, for system, user and assistant by turns. None where it does more
    than put text between the turns.

    A conversation is what is before the first turn, and then each turn with what follows it: after a user's, what
    begins the answer.
    """
    if not tokenizer.chat_template or "strftime_now" in str(tokenizer.chat_template):  # today's date would stay
        return None

    def render(*turns: tuple[str, str]) -> str:
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # of Jinja, or what the template raises
            return ""

    system, user, assistant = ("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT)
    one = between(render(user), USER)
    many = between(render(user, assistant, user, assistant, user), USER, ASSISTANT, USER, ASSISTANT, USER)
    led = between(render(system, user, assistant, user), SYSTEM, USER, ASSISTANT, USER)
    if one is None or many is None or led is None:
        return None
    (start, answer), again, (before, after, *rest) = one, many[2], led
    if many != [start, answer, again, answer, again, answer] or rest != [answer, again, answer]:
        return None
    # A beginning-of-text token is the engine's to add.
    bos = tokenizer.bos_token or ""
    start, before = start.removeprefix(bos), before.removeprefix(bos)
    if any(mark in part for part in (start, before, after, answer, again) for mark in ("{{", "}}", '"""')):
        return None
    return (
        f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{start}{{{{ end }}}}"
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{answer}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{again}{{{{ end }}}}'
        "{{ end }}"
    )


def between(text: str, *marks: str) -> list[str] | None:
    """What is before, between and after the marks, if these are there in their order, each once."""
    found = []
    for mark in marks:
        part, there, text = text.partition(mark)
        if not there:
            return None
        found.append(part)
    found.append(text)
    return None if any(mark in part for part in found for mark in marks) else found
