"""All channels, in the order of the table. A new module of channels gets a line here."""

from loadtests.exfiltration import (
    bombs,
    crash,
    embeddings,
    fluent,
    framing,
    headers,
    jobs,
    json_spelling,
    load,
    outcome,
    races,
    site,
    sse,
    steering,
    text,
    timing,
    tools,
    vectors,
)
from loadtests.exfiltration.channel import Channel

MODULES = (
    headers,
    framing,
    json_spelling,
    sse,
    outcome,
    tools,
    steering,
    jobs,
    vectors,
    embeddings,
    text,
    fluent,
    site,
    timing,
    load,
    races,
    crash,
    bombs,
)
CHANNELS: dict[str, Channel] = {channel.name: channel for module in MODULES for channel in module.CHANNELS}
