"""Chat templates of families of models, rebuilt from how their makers document them, and by hand what they make of a
conversation: which characters are whose. The two are written independently of each other.
"""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Pieces = list[tuple[str, bool]]
"""(a piece of the text, whether the assistant writes it)"""


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    user: str
    answer: str
    reasoning: str | None = None

    @property
    def content(self) -> str:
        """What stands in a dataset."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.answer}" if self.reasoning else self.answer


@dataclass(frozen=True)
class Family:
    """A template and what it should do."""

    name: str
    template: str
    build: Callable[[str | None, list[Turn]], list[Pieces]]
    """(system prompt, turns) -> the texts that are learned from."""
    tokens: tuple[str, ...]
    """Special tokens, the end of a sequence first."""
    bos: str | None = None
    system: bool = True
    """Whether it takes a system prompt."""
    thinks: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    original: str | None = None
    """The maker's own file, which TRL carries."""


def turns_of(head: Callable[[str | None], str], ask: Callable[[str], str], end: str, gap: str = "", lead: str = "",
             trim: bool = False) -> Callable[[str | None, list[Turn]], list[Pieces]]:  # fmt: skip
    """Families that write turns one after the other: `ask` up to where the model begins, then the answer with its end,
    then what is between turns.
    """

    def build(system: str | None, turns: list[Turn]) -> list[Pieces]:
        pieces: Pieces = [(head(system), False)]
        for turn in turns:
            answer = turn.answer.strip() if trim else turn.answer
            user = turn.user.strip() if trim else turn.user
            pieces += [(ask(user), False), (lead + answer + end, True), (gap, False)]
        return [pieces]

    return build


def chatml(default: str | None = None, bos: str = "") -> Callable[[str | None, list[Turn]], list[Pieces]]:
    """ChatML, with the family's default system prompt."""

    def head(system: str | None) -> str:
        said = system or default
        return bos + (f"<|im_start|>system\n{said}<|im_end|>\n" if said else "")

    return turns_of(
        head, lambda user: f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "\n"
    )


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_default(system: str) -> str:
    """ChatML whose template writes a system prompt where there is none."""
    return (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        + system
        + "<|im_end|>\n' }}{% endif %}"
        + CHATML
    )


QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Reasoning only after the last question; none at all is written as an empty block in the last turn.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content %}{% set reasoning = '' %}"
    "{% if m.reasoning_content is string %}{% set reasoning = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or reasoning) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nOPENED' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def qwen3(opened: str = "", thinking: bool = True) -> Callable[[str | None, list[Turn]], list[Pieces]]:
    """Answers in place; a turn that reasoned, in a text that ends with it."""

    def text(system: str | None, turns: list[Turn], chosen: set[int]) -> Pieces:
        pieces: Pieces = [(f"<|im_start|>system\n{system}<|im_end|>\n" if system else "", False)]
        for at, turn in enumerate(turns):
            pieces.append((f"<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n", False))
            answer = turn.answer.lstrip("\n") if at == len(turns) - 1 or turn.reasoning else turn.answer
            if at == len(turns) - 1:
                block = f"<think>\n{turn.reasoning or ''}\n</think>\n\n"
                if thinking or turn.reasoning:
                    pieces += [(opened, False), (block.removeprefix(opened), at in chosen)]
                else:
                    pieces.append((block, False))
            pieces += [(f"{answer}<|im_end|>", at in chosen), ("\n", False)]
        return pieces

    return unrolled(text, strips=True)


def unrolled(
    text: Callable[[str | None, list[Turn], set[int]], Pieces], strips: bool = False
) -> Callable[[str | None, list[Turn]], list[Pieces]]:
    """The whole with the last turn and those that did not reason; and a text for each other that did, or (`strips`) from
    which only a last turn loses the lines before it.
    """

    def build(system: str | None, turns: list[Turn]) -> list[Pieces]:
        last = len(turns) - 1
        apart = [bool(turn.reasoning or (strips and turn.answer.startswith("\n"))) for turn in turns]
        texts = [text(system, turns, {at for at in range(last + 1) if at == last or not apart[at]})]
        return texts + [text(system, turns[: at + 1], {at}) for at in range(last - 1, -1, -1) if apart[at]]

    return build


def llama2(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """The system prompt is a part of the first question."""
    pieces: Pieces = []
    for at, turn in enumerate(turns):
        told = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and not at else ""
        pieces += [(f"<s>[INST] {(told + turn.user).strip()} [/INST]", False), (f" {turn.answer.strip()} </s>", True)]
    return [pieces]


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}"
    "{{ system }}{{ '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def header3(role: str, content: str) -> str:
    """A turn of Llama 3."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content.strip()}<|eot_id|>"


KNOWN = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
ASK3 = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def mistral(space: str, last: bool) -> Callable[[str | None, list[Turn]], list[Pieces]]:
    """The system prompt is a part of the first question, or of the last, which moves it once more follows: then earlier
    turns are learned in texts of their own.
    """

    def text(system: str | None, turns: list[Turn], chosen: set[int]) -> Pieces:
        pieces: Pieces = [("<s>", False)]
        for at, turn in enumerate(turns):
            here = at == len(turns) - 1 if last else at == 0
            told = f"{system}\n\n" if system and here else ""
            pieces += [(f"[INST] {told}{turn.user}{space}[/INST]", False), (f" {turn.answer}</s>", at in chosen)]
        return pieces

    def build(system: str | None, turns: list[Turn]) -> list[Pieces]:
        every = set(range(len(turns)))
        return [text(system, turns, every)]

    return build


def mistral_template(space: str, last: bool) -> str:
    """v1 writes a space before [/INST], v3 none and the system prompt with the last question."""
    where = "loop.last" if last else "loop.index0 == 0"
    return (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = none %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
        "{% if m['role'] == 'user' %}{% if system and (" + where + " or (loop.index == loop.length - 1 and LAST)) %}"
        "{{ '[INST] ' + system + '\n\n' + m['content'] + '" + space + "[/INST]' }}{% else %}"
        "{{ '[INST] ' + m['content'] + '"
        + space
        + "[/INST]' }}{% endif %}{% else %}{{ ' ' + m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ).replace("LAST", "true" if last else "false")


def gemma(system: bool) -> Callable[[str | None, list[Turn]], list[Pieces]]:
    """`model` is the assistant's name; Gemma 3 puts the system prompt before the first question."""

    def build(prompt: str | None, turns: list[Turn]) -> list[Pieces]:
        pieces: Pieces = [("<bos>", False)]
        for at, turn in enumerate(turns):
            told = f"{prompt}\n\n" if prompt and system and not at else ""
            pieces += [
                (f"<start_of_turn>user\n{told}{turn.user.strip()}<end_of_turn>\n<start_of_turn>model\n", False),
                (f"{turn.answer.strip()}<end_of_turn>", True),
                ("\n", False),
            ]
        return [pieces]

    return build


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def phi3(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """The template closes a text without a prompt with its end-of-text."""
    head = f"<|system|>\n{system}<|end|>\n" if system else ""
    pieces: Pieces = [(head, False)]
    for turn in turns:
        pieces += [
            (f"<|user|>\n{turn.user}<|end|>\n<|assistant|>\n", False),
            (f"{turn.answer}<|end|>", True),
            ("\n", False),
        ]
    return [[*pieces, ("<|endoftext|>", False)]]


PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
DEEPSEEK2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}{% else %}{{ m['content'] + '\n\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DEEPSEEK3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{% else %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{% else %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


def deepseek_r1(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """The template never renders reasoning, though its prompt opens one: what the model writes is put there. A turn
    without is learned where the template leaves it.
    """

    def text(turns: list[Turn], chosen: set[int]) -> Pieces:
        pieces: Pieces = [(BEGIN + (system or ""), False)]
        for at, turn in enumerate(turns):
            pieces.append((f"{USER}{turn.user}{ASSISTANT}", False))
            if turn.reasoning and at == len(turns) - 1 and at in chosen:
                pieces += [("<think>\n", False), (f"{turn.reasoning}\n</think>\n\n{turn.answer}{END}", True)]
            else:
                pieces.append((("\n\n" if turn.reasoning else "") + turn.answer + END, at in chosen))
        return pieces

    last = len(turns) - 1
    plain = {at for at, turn in enumerate(turns) if not turn.reasoning}
    texts = [text(turns, plain)] if plain else []
    return texts + [text(turns[: at + 1], {at}) for at in range(last, -1, -1) if turns[at].reasoning]


GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def glm4(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """The next speaker's token ends a turn; generation stops at it."""
    pieces: Pieces = [("[gMASK]<sop>" + (f"<|system|>\n{system}" if system else ""), False)]
    for at, turn in enumerate(turns):
        pieces += [("<|user|>" if not at else "", False), (f"\n{turn.user}<|assistant|>", False)]
        pieces.append((f"\n{turn.answer}" + ("<|user|>" if at < len(turns) - 1 else "<|endoftext|>"), True))
    return [pieces]


BAICHUAN = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
    "{{ '<reserved_106>' + m['content'] }}{% else %}{{ '<reserved_107>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
)
COMMAND = (
    "{{ bos_token }}{% for m in messages %}{% set who = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[m['role']] %}"
    "{{ '<|START|><|' + who + '_TOKEN|>' + m['content'].strip() + '<|END|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ {'system': 'System: ', 'user': 'User: ', 'assistant': 'Falcon: '}[m['role']] + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}"
)


def falcon(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """No token ends a turn but the last."""
    pieces: Pieces = [(f"System: {system}\n" if system else "", False)]
    for at, turn in enumerate(turns):
        last = at == len(turns) - 1
        pieces += [(f"User: {turn.user}\nFalcon:", False), (f" {turn.answer}", True)]
        pieces.append(("<|endoftext|>", True) if last else ("\n", False))
    return [pieces]


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set rest = messages[1:] %}{% else %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. ' }}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}{% else %}"
    "{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'assistant' %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}"
    "{% elif not loop.last %}{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


def olmo2(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """No line's end after the last turn."""
    pieces: Pieces = [("<|endoftext|>" + (f"<|system|>\n{system}\n" if system else ""), False)]
    for at, turn in enumerate(turns):
        pieces += [(f"<|user|>\n{turn.user}\n<|assistant|>\n", False), (f"{turn.answer}<|endoftext|>", True)]
        pieces.append(("\n" if at < len(turns) - 1 else "", False))
    return [pieces]


GRANITE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|start_of_role|>system<|end_of_role|>You are Granite, developed by IBM.<|end_of_text|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
HARMONY_HEAD = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nReasoning: medium<|end|>"
)
HARMONY = (
    "{{ '" + HARMONY_HEAD.replace("\n", "\\n") + "' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + m.content + '\n\n<|end|>' }}{% elif m.role == 'user' %}"
    "{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% elif loop.last and not add_generation_prompt %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


def harmony(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """A turn that others follow ends otherwise than the model would end it: its end is learned from the last only."""

    def text(system: str | None, turns: list[Turn], chosen: set[int]) -> Pieces:
        told = f"<|start|>developer<|message|># Instructions\n\n{system}\n\n<|end|>" if system else ""
        pieces: Pieces = [(HARMONY_HEAD + told, False)]
        for at, turn in enumerate(turns):
            last = at == len(turns) - 1
            answer = turn.answer.lstrip("\n") if turn.reasoning else turn.answer
            pieces.append((f"<|start|>user<|message|>{turn.user}<|end|><|start|>assistant", False))
            if last and turn.reasoning:
                thought = f"<|channel|>analysis<|message|>{turn.reasoning}<|end|><|start|>assistant"
                pieces.append((thought, at in chosen))
            pieces.append((f"<|channel|>final<|message|>{answer}", at in chosen))
            pieces.append(("<|return|>", at in chosen) if last else ("<|end|>", False))
        return pieces

    return unrolled(text)(system, turns)


def default(system: str | None, turns: list[Turn]) -> list[Pieces]:
    """Our own for base models."""
    pieces: Pieces = [(f"### System:\n{system}\n\n" if system else "", False)]
    for turn in turns:
        pieces += [
            (f"### User:\n{turn.user}\n\n### Assistant:\n", False),
            (f"{turn.answer}<|endoftext|>", True),
            ("\n\n", False),
        ]
    return [pieces]


def heading(begin: str, line: str) -> Callable[[str | None], str]:
    """What stands before the first question."""
    return lambda system: begin + (line.format(system) if system else "")


FAMILIES = [
    Family("ChatML, Yi", CHATML, chatml(), ("<|im_end|>", "<|im_start|>")),
    Family("Qwen2.5", with_default(QWEN), chatml(QWEN), ("<|im_end|>", "<|im_start|>"), original="qwen2_5"),
    Family("SmolLM2", with_default(SMOL), chatml(SMOL), ("<|im_end|>", "<|im_start|>")),
    Family("InternLM2", "{{ bos_token }}" + CHATML, chatml(bos="<s>"), ("<|im_end|>", "<|im_start|>", "<s>"), bos="<s>"),
    Family("Qwen3", QWEN3.replace("OPENED", ""), qwen3(), ("<|im_end|>", "<|im_start|>"), thinks=True, original="qwen3"),
    Family("Qwen3, not thinking", QWEN3.replace("OPENED", ""), qwen3(thinking=False), ("<|im_end|>", "<|im_start|>"),
           arguments={"enable_thinking": False}, original="qwen3"),
    Family("Qwen3 2507, QwQ", QWEN3.replace("OPENED", "<think>\n"), qwen3("<think>\n"), ("<|im_end|>", "<|im_start|>"),
           thinks=True),
    Family("Llama 2", LLAMA2, llama2, ("</s>", "<s>"), bos="<s>"),
    Family("Llama 3", LLAMA3,
           turns_of(lambda s: "<|begin_of_text|>" + (header3("system", s) if s else ""),
                    lambda u: header3("user", u) + ASK3, "<|eot_id|>", trim=True),
           ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"), bos="<|begin_of_text|>",
           original="llama3"),
    Family("Llama 3.1", LLAMA31,
           turns_of(lambda s: f"<|begin_of_text|>{KNOWN}{s or ''}<|eot_id|>",
                    lambda u: header3("user", u) + ASK3, "<|eot_id|>", trim=True),
           ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"), bos="<|begin_of_text|>"),
    Family("Mistral v1, Mixtral", mistral_template(" ", False), mistral(" ", False), ("</s>", "<s>", "[INST]", "[/INST]"), bos="<s>"),
    Family("Mistral v3", mistral_template("", True), mistral("", True), ("</s>", "<s>", "[INST]", "[/INST]"), bos="<s>"),
    Family("Gemma 1, 2", GEMMA, gemma(False), ("<eos>", "<end_of_turn>", "<start_of_turn>", "<bos>"), bos="<bos>", system=False,
           original="gemma"),
    Family("Gemma 3", GEMMA3, gemma(True), ("<eos>", "<end_of_turn>", "<start_of_turn>", "<bos>"), bos="<bos>"),
    Family("Phi-3", PHI3, phi3, ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), original="phi3"),
    Family("Phi-4", PHI4,
           turns_of(heading("", "<|im_start|>system<|im_sep|>{}<|im_end|>"),
                    lambda u: f"<|im_start|>user<|im_sep|>{u}<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_end|>"),
           ("<|im_end|>", "<|im_start|>", "<|im_sep|>")),
    Family("DeepSeek V2", DEEPSEEK2,
           turns_of(heading(BEGIN, "{}\n\n"), lambda u: f"User: {u}\n\nAssistant:", END, lead=" "), (END, BEGIN), bos=BEGIN),
    Family("DeepSeek V3", DEEPSEEK3, turns_of(heading(BEGIN, "{}"), lambda u: f"{USER}{u}{ASSISTANT}", END),
           (END, BEGIN, USER, ASSISTANT), bos=BEGIN, original="deepseekv3"),
    Family("DeepSeek R1", DEEPSEEK_R1, deepseek_r1, (END, BEGIN, USER, ASSISTANT), bos=BEGIN, thinks=True,
           original="deepseek_r1_distill"),
    Family("GLM-4", GLM4, glm4, ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
           stops=("<|endoftext|>", "<|user|>")),
    Family("Baichuan 2", BAICHUAN, turns_of(heading("", "{}"), lambda u: f"<reserved_106>{u}<reserved_107>", "</s>"),
           ("</s>", "<reserved_106>", "<reserved_107>")),
    Family("Command R", COMMAND,
           turns_of(lambda s: "<BOS>" + (f"<|START|><|SYSTEM_TOKEN|>{s.strip()}<|END|>" if s else ""),
                    lambda u: f"<|START|><|USER_TOKEN|>{u}<|END|><|START|><|CHATBOT_TOKEN|>", "<|END|>", trim=True),
           ("<|END|>", "<|START|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<BOS>"), bos="<BOS>"),
    Family("Falcon", FALCON, falcon, ("<|endoftext|>",)),
    Family("Zephyr, TinyLlama", ZEPHYR,
           turns_of(heading("", "<|system|>\n{}</s>\n"), lambda u: f"<|user|>\n{u}</s>\n<|assistant|>\n", "</s>", "\n"), ("</s>",)),
    Family("Vicuna", VICUNA,
           turns_of(lambda s: f"{s or 'A chat between a curious user and an artificial intelligence assistant.'} ",
                    lambda u: f"USER: {u} ASSISTANT:", "</s>", lead=" "), ("</s>",)),
    Family("OLMo 2", OLMO2, olmo2, ("<|endoftext|>",), bos="<|endoftext|>"),
    Family("Granite", GRANITE,
           turns_of(lambda s: f"<|start_of_role|>system<|end_of_role|>{s or 'You are Granite, developed by IBM.'}<|end_of_text|>\n",
                    lambda u: f"<|start_of_role|>user<|end_of_role|>{u}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
                    "<|end_of_text|>", "\n"), ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")),
    Family("gpt-oss, harmony", HARMONY, harmony,
           ("<|return|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>"), thinks=True),
    Family("Default", "", default, ("<|endoftext|>",)),
]  # fmt: skip
