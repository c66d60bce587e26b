"""The text of a page before its scripts: what Sphinx and the theme write makes a reader wait.

A page as they write it shows nothing before its `<head>` has come: all pictures of its widgets, in
one script of up to a megabyte, the widgets' code, and a library of icons. On a slow line that is
fifteen seconds. `text_first` lets all that come after the text; the theme has no setting for it.
Two things it drops: fonts that would be fetched first of all, and thebe, which would run cells on
another host and for which the book has no button.
"""

import re

DROPPED = re.compile(
    r"""\s*(
    <link\ rel="preload"\ as="font"[^>]*>
    | <script>const\ THEBE_JS_URL.*?</script>
    | <script[^>]*/sphinx-thebe\.js[^>]*></script>
    )""",
    re.VERBOSE | re.DOTALL,
)
WIDGETS = re.compile(
    r'\s*<script type="application/vnd\.jupyter\.widget-state\+json">.*?</script>', re.DOTALL
)
# Models of live figures, of about a megabyte each; they are read after the whole page has come.
MODELS = re.compile(
    r'\s*<script type="application/json" class="mmcl-data"[^>]*>.*?</script>', re.DOTALL
)
# A script from a file that holds up the page. Not Sphinx's options: a line of script behind them
# needs them, and they are small.
HOLDING_UP = re.compile(
    r'<script (?=[^>]*\bsrc=")(?![^>]*(?:\basync\b|\bdefer\b|/documentation_options\.js))'
)


def text_first(page: str) -> str:
    """The HTML of a page, with everything that its text does not need after the text."""
    head, head_end, body = page.partition("</head>")
    body, body_end, rest = body.rpartition("</body>")
    widgets = "".join(WIDGETS.findall(head) + MODELS.findall(body))
    body = MODELS.sub("", body)
    head = HOLDING_UP.sub('<script defer="defer" ', DROPPED.sub("", WIDGETS.sub("", head)))
    return head + head_end + body + widgets + body_end + rest
