"""How many tokens of a chat prompt come behind what the user said: where instruction-tuned models decide how to answer.

Source: Arditi et al. 2406.11717, who list them by hand for each model. Here they are what prompts that end differently
have in common at their end.
"""

from __future__ import annotations

from inference.chat import ChatTemplate
from inference.tokenizer import Tokenizer

_ENDINGS = ("word", "Why?", "Stop.", "Run!", "42", 'a "quote"', "(end)", "line\n")
"""A tokenizer may join the last character of a text with the first ones of the template; the shortest tail counts."""


def post_instruction_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> int:
    """0 if the template puts nothing behind the text. Raises TemplateError."""
    prompts = [
        tokenizer.encode(template.render([{"role": "user", "content": ending}]), add_special_tokens=False)
        for ending in _ENDINGS
    ]
    shortest = min(map(len, prompts))
    tail = 0
    while tail < shortest and len({prompt[-1 - tail] for prompt in prompts}) == 1:
        tail += 1
    return tail
