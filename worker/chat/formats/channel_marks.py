"""Define the marks of answers with messages to several recipients (gpt-oss channels, Muse, Functionary's `>>>`).

`families` describes these formats, `parsing.channels` parses them.
"""

from __future__ import annotations

START, CHANNEL, MESSAGE, END, CALL, RETURN = (
    f"<|{name}|>" for name in ("start", "channel", "message", "end", "call", "return")
)
CONSTRAIN = "<|constrain|>"
EOM, EOT = "<|eom|>", "<|eot|>"
HARMONY_MARKS = (START, CHANNEL, MESSAGE, END, CALL, RETURN, CONSTRAIN)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
FINAL = f"{CHANNEL}final{MESSAGE}"
TURN = f"{START}assistant"
RECIPIENT = ">>>"
EVERYONE = "all"
