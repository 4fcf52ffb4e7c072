"""For ms-swift (--external_plugins): its template chatml, but what is learned ends with <|im_end|>, not the line."""

from swift.template import TemplateMeta, register_template

register_template(
    TemplateMeta(
        "chatml_row",
        prefix=[],
        prompt=["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
        chat_sep=["<|im_end|>\n"],
        suffix=["<|im_end|>"],
    )
)
