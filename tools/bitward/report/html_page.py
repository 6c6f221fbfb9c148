"""The frame of a report as one HTML file: styles, light and dark, and the escaping of everything that comes out of files.

No script, no font, no picture from elsewhere: a content security policy in the page forbids them, whatever a name in a file says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bitward.report.names import printable_text

NAME_LIMIT = 240
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def text(words: str, limit: int = 4000) -> str:
    """Words from anywhere, made visible and harmless in HTML, in attributes as in text; the middle of very long ones is left out."""
    shown = printable_text(words[: 4 * limit])
    if len(shown) > limit:
        tail = limit // 3
        shown = f"{shown[: limit - tail - 1]}…{shown[-tail:]}"
    return escape(shown, quote=True)


def name(words: str) -> str:
    """The name of a tensor or file, which a line may break at its dots and slashes."""
    shown = text(words.replace("\\", "\\\\"), NAME_LIMIT)
    return shown.replace(".", ".<wbr>").replace("/", "/<wbr>")


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    return head + "\n".join(body) + "\n</main>\n</body>\n</html>\n"


def section(title: str, content: Iterable[str], lead: str = "") -> str:
    """A section with a heading; nothing if it has no content. ``lead`` is HTML."""
    inner = "\n".join(content)
    if not inner:
        return ""
    first = f'<p class="lead">{lead}</p>\n' if lead else ""
    return f"<section>\n<h2>{text(title)}</h2>\n{first}{inner}\n</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """A table of HTML cells; ``right`` are the columns of numbers."""

    def cell(kind: str, column: int, content: str) -> str:
        return f"<{kind}{' class=num' if column in right else ''}>{content}</{kind}>"

    lines = ['<div class="scroll" tabindex="0"><table>']
    lines.append("<thead><tr>" + "".join(cell("th", at, one) for at, one in enumerate(head)) + "</tr></thead><tbody>")
    lines += ["<tr>" + "".join(cell("td", at, one) for at, one in enumerate(row)) + "</tr>" for row in rows]
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


STYLE = """
:root{color-scheme:light dark;--ground:#fbfbfa;--card:#fff;--ink:#1d2126;--soft:#59626d;--line:#dfe2e6;--cell:#e4e7eb;
--bad:#b8430a;--bad-ground:#fdf0e8;--fixed:#0b62a4;--fixed-ground:#e8f2fa;--good:#1b7040;--good-ground:#e8f5ed;
--other:#8a3f7d;--warn:#8a5a00;--warn-ground:#fdf5df;--heat:#0b62a4;--bar:#8b95a1}
@media (prefers-color-scheme:dark){:root{--ground:#15181c;--card:#1c2025;--ink:#e4e7ea;--soft:#a0a9b3;--line:#333a42;--cell:#2b3138;
--bad:#ff9a5c;--bad-ground:#38231a;--fixed:#6fb7f0;--fixed-ground:#182a3a;--good:#6fcf97;--good-ground:#17301f;
--other:#dd9fd2;--warn:#e8bd57;--warn-ground:#332a14;--heat:#6fb7f0;--bar:#7b8590}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.5rem;line-height:1.3;margin:.1rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .6rem}h3{font-size:.95rem;margin:1rem 0 .3rem;overflow-wrap:anywhere}
p{margin:.3rem 0}.eyebrow,.lead,.meta,figcaption,.soft{color:var(--soft)}.eyebrow{font-size:.85rem;letter-spacing:.02em}
.lead{max-width:44rem;margin-bottom:.9rem}.meta{font-size:.9rem}
section{margin-top:2.6rem}
.verdict{display:flex;gap:.9rem;align-items:baseline;flex-wrap:wrap;padding:.9rem 1.1rem;border-radius:.6rem;border:1px solid}
.verdict b{font-size:1.1rem;white-space:nowrap}
.is-good{color:var(--good);background:var(--good-ground)}.is-bad{color:var(--bad);background:var(--bad-ground)}
.is-warn{color:var(--warn);background:var(--warn-ground)}.verdict span{color:var(--ink)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.8rem;margin:1.1rem 0 0;padding:0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.facts dt{color:var(--soft);font-size:.85rem}.facts dd{margin:.1rem 0 0;font-size:1.05rem;
font-variant-numeric:tabular-nums}
.facts small{display:block;white-space:normal;color:var(--soft);font-size:.82rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.45rem .7rem;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);white-space:nowrap}td.num,th.num{text-align:right;white-space:nowrap}
td:first-child,th:first-child{padding-left:0}
.scroll{overflow-x:auto}.scroll:focus-visible{outline:2px solid var(--fixed);outline-offset:3px}
code,.mono{font-family:ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.88em;overflow-wrap:anywhere}
ol.steps{list-style:none;margin:0;padding:0 0 0 1.4rem;border-left:2px solid var(--line)}
ol.steps li{position:relative;padding-bottom:1.1rem}ol.steps li:last-child{padding-bottom:0}
ol.steps li::before{content:attr(data-mark);position:absolute;left:-2.2rem;top:.05rem;width:1.45rem;height:1.45rem;border-radius:50%;
border:2px solid var(--line);background:var(--ground);font-size:.8rem;line-height:1.3rem;text-align:center}
li.done::before{color:var(--good);border-color:var(--good)!important}li.failed::before{color:var(--warn);border-color:var(--warn)!important}
ol.next li{margin:.35rem 0}ol.next{padding-left:1.3rem;margin:0}
figure{margin:0 0 1.4rem}figcaption{font-size:.88rem;margin-top:.35rem}
svg{display:block;max-width:none}svg text{fill:var(--soft);font-size:11px;font-family:inherit;font-variant-numeric:tabular-nums}
svg text.on{fill:var(--ground);font-weight:700}svg text.found{fill:var(--bad);font-weight:600}
svg text.right{fill:var(--fixed);font-weight:600}
.c-ok{fill:var(--cell)}.c-suspect{fill:var(--bad)}.c-fixed{fill:var(--fixed)}.c-changed{fill:var(--other)}
.c-none{fill:none;stroke:var(--line)}.heat{fill:var(--heat)}.bar{fill:var(--bar)}.axis{stroke:var(--line)}
.l-found{stroke:var(--bad);stroke-width:2}.l-right{stroke:var(--fixed);stroke-width:2;stroke-dasharray:4 3}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.88rem;color:var(--soft);margin:.2rem 0 .9rem;padding:0;list-style:none}
.key li{display:flex;align-items:center}
.key i{display:inline-flex;align-items:center;justify-content:center;width:1.2em;height:1.2em;border-radius:.2em;margin-right:.45em;
color:var(--ground);font-style:normal;font-size:.85em;line-height:1;font-weight:700}
.k-ok{background:var(--cell)}.k-suspect{background:var(--bad)}.k-fixed{background:var(--fixed)}.k-changed{background:var(--other)}
.chips{display:flex;flex-wrap:wrap;gap:.35rem;margin:.5rem 0 0;padding:0;list-style:none;font-size:.82rem}
.chips li{border:1px solid var(--line);border-radius:.4rem;padding:.1rem .5rem;overflow-wrap:anywhere}
.chips .suspect{border-color:var(--bad);color:var(--bad)}.chips .fixed{border-color:var(--fixed);color:var(--fixed)}
.chips .changed{border-color:var(--other);color:var(--other)}
.whole{white-space:nowrap}.fell{color:var(--good)}.rose{color:var(--bad)}.kept{color:var(--good);font-weight:600}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line);color:var(--soft);font-size:.85rem}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
