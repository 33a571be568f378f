"""Answers that tell who wrote them, for the researcher; annotators are not shown what was found.

A comparison is blind only if the texts are. A model that calls itself by name ("As an AI developed
by ...") breaks that, so such answers are counted and listed on the campaign's page.
"""

from __future__ import annotations

import re

_MAKERS = (
    r"openai|anthropic|google(?: deepmind)?|deepmind|meta(?: ai)?|microsoft|mistral(?: ai)?|cohere|"
    r"alibaba(?: cloud)?|deepseek|x\.?ai|nvidia|hugging ?face|amazon|baidu|tencent|zhipu(?: ai)?|"
    r"moonshot(?: ai)?|ai2|the allen institute"
)
_MODELS = (
    r"chat ?gpt|gpt-?[2345](?:\.\d)?\w*|instructgpt|claude|gemini|gemma|bard|llama(?:[ -]?\d)?|"
    r"mistral|mixtral|qwen|tongyi|deepseek|grok|phi-\d|command r\+?|vicuna|alpaca|ernie|kimi|olmo|"
    r"smollm|copilot"
)
_PATTERNS = {
    "names its maker": re.compile(
        rf"\b(?:developed|created|made|built|trained|designed) by (?:{_MAKERS})\b", re.IGNORECASE
    ),
    "names itself": re.compile(
        rf"\b(?:i am|i'm|i’m|my name is|call me|as) (?:(?:an? |the )?(?:\w+ ){{0,3}}?)"
        rf"(?:{_MODELS})\b",
        re.IGNORECASE,
    ),
    "calls itself a model": re.compile(
        r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
        r"|\bi(?: am|'m|’m) (?:just |only |merely )?an? (?:ai|(?:large )?language model)\b",
        re.IGNORECASE,
    ),
    "tells when its knowledge ends": re.compile(
        r"\bmy (?:knowledge|training)(?: data)? (?:cut-?off|ends|only goes|was last updated)\b",
        re.IGNORECASE,
    ),
}


def giveaways(text: str) -> list[str]:
    """Return what in an answer tells that a model, or which one, wrote it."""
    return [name for name, pattern in _PATTERNS.items() if pattern.search(text)]
