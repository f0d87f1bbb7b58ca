"""Text of models, data and names is never markup: on a terminal, in Markdown and in HTML it is shown as it is.

A character that would move the cursor, change the order of others or break the line is shown by its number, as
`\\u001b`; what is markup there is escaped. The three say the same of a text.
"""

from __future__ import annotations

import html as html_entities
import re
from collections.abc import Iterable

# Controls but for line breaks and tabs, Unicode's line and paragraph separators, its Bidi_Control characters (UAX 9,
# section 2), and halves of surrogate pairs, which no file takes.
_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Of Markdown, where a line begins with the text or goes on with it; GitHub makes links of bare addresses.
_MARKUP = re.compile(r"[\\`*\[\]|~#$@]|(?<!\w)_|_(?!\w)|^[-+=](?=[-+=\s]|$)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def terminal(text: object) -> str:
    """For a terminal or a log: no escape sequence, no carriage return. JSON stays the same JSON.

    >>> terminal("a\\x1b[2Jb"), terminal("x[i] [bold] :smile:")
    ('a\\\\u001b[2Jb', 'x[i] [bold] :smile:')
    """
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text).replace("\r\n", "\n"))


def html(text: object) -> str:
    """For HTML, between tags or in an attribute's quotes.

    >>> html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html_entities.escape(terminal(text))


def markdown(text: object) -> str:
    """For a line of Markdown: a heading, a cell of a table, a sentence. Line breaks become spaces.

    >>> markdown("a|b\\n<script> [x](javascript:y)")
    'a\\\\|b &lt;script&gt; \\\\[x\\\\](javascript:y)'
    """
    line = re.sub(r"\s*\n\s*|\t", " ", terminal(text).strip())
    return html_entities.escape(_MARKUP.sub(r"\\\g<0>", line), quote=False)


def markdown_row(cells: Iterable[object]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(markdown, cells))} |"
