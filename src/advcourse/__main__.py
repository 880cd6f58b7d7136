"""``python -m advcourse`` is the command `advcourse`."""

from .cli import app

app(prog_name="advcourse")
