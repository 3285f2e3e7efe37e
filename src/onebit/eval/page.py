"""The dress of every report: one HTML file with everything inside it, readable on a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["page"]


def page(title: str, body: Sequence[str]) -> str:
    """The whole file. `title` is text; `body` is HTML: a header, then sections, figures, a footer."""
    parts = {"style": _STYLE, "title": escape(title), "body": "\n".join(body)}
    text = _PAGE
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part, 1)
    return text


_STYLE = """
:root { color-scheme: light dark; --page: #faf9f6; --card: #ffffff; --ink: #1d2430; --soft: #5d6675; --rule: #e4e1d8;
  --accent: #0f766e; --minus: #2f6db3; --zero: #d5d2c8; --plus: #d9822b; --track: #eeece5; --bad: #9a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #11151b; --card: #191f28; --ink: #e7eaef; --soft: #9aa4b2; --rule: #2a323e;
    --accent: #2fb8aa; --minus: #5b9be0; --zero: #3d4655; --plus: #eb9c4a; --track: #242c37; --bad: #eb9c4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 60px; display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); align-items: start; }
header, .tiles, section, footer { grid-column: 1 / -1; }
.eyebrow { margin: 0; color: var(--accent); font-weight: 600; letter-spacing: .04em; }
h1 { margin: 4px 0 8px; font-size: clamp(30px, 6vw, 46px); line-height: 1.1; letter-spacing: -.02em;
  text-wrap: balance; }
h2 { margin: 0 0 14px; font-size: 19px; }
.lead { margin: 0; max-width: 62ch; color: var(--soft); }
.tiles { list-style: none; margin: 0; padding: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tiles li, figure, section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
.tiles li { padding: 14px 18px; }
.tiles b { display: block; font-size: 30px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span, figcaption, .caption { color: var(--soft); font-size: 14.5px; line-height: 1.45; }
@media (min-width: 900px) { .tall { grid-row: span 3; } }
figure, section { margin: 0; padding: 20px; min-width: 0; }
section p { margin: 0 0 8px; max-width: 75ch; }
figcaption, .caption { margin-top: 14px; }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; }
.label { fill: var(--soft); } .strong-label { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--rule); } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.faint { stroke: var(--accent); opacity: .3; stroke-width: 1; } .line.strong { stroke: var(--accent); }
.line.dotted { stroke: var(--plus); stroke-dasharray: 4 4; } .dot { fill: var(--plus); }
.key.faint { fill: var(--accent); opacity: .3; } .key.strong, .accent, .ternary { fill: var(--accent); }
.key.dotted, .plus, .embedding { fill: var(--plus); } .minus, .float { fill: var(--minus); }
.zero, .rest { fill: var(--zero); }
.track { fill: var(--track); } .whisker { fill: none; stroke: var(--ink); stroke-width: 1.5; }
pre { margin: 0; padding: 14px 16px; background: var(--page); border: 1px solid var(--rule); border-radius: 8px;
  font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-x: auto; tab-size: 4;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre.command { margin-bottom: 14px; user-select: all; }
footer { color: var(--soft); font-size: 13.5px; padding: 0 4px; } footer p { margin: 0 0 6px; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 6px 10px 6px 0; border-top: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; border-top: 0; } .right { text-align: right; white-space: nowrap; }
.wide { overflow-x: auto; } .soft { color: var(--soft); } .bad { color: var(--bad); font-weight: 600; }
.best { font-weight: 700; } summary { cursor: pointer; color: var(--soft); } details pre { margin-top: 10px; }
code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>{{style}}</style>
</head>
<body><main>
{{body}}
</main></body>
</html>
"""
