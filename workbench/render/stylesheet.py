"""Style sheets: one for self-contained pages, one for fragments in notebooks. No fonts, pictures or scripts from elsewhere."""

from __future__ import annotations

from workbench.render import palette

__all__ = ["NOTEBOOK", "PAGE"]

_DARK = " ".join(f"--wb-color-{index}: {color};" for index, color in enumerate(palette.COLORS_ON_DARK))

PAGE = f"""
:root {{ color-scheme: light dark;
  --wb-page: #f6f7f9; --wb-card: {palette.CARD}; --wb-ink: {palette.INK}; --wb-muted: {palette.MUTED};
  --wb-grid: {palette.GRID}; --wb-line: #e4e7ec; --wb-link: #0b62a8; --wb-mark: #fff4d6; --wb-soft: #f2f4f7;
  --wb-good: #067647; --wb-bad: #b42318; --wb-warn: #93370d; --wb-live: #175cd3; }}
@media (prefers-color-scheme: dark) {{ :root {{
  --wb-page: #12151b; --wb-card: #1b2029; --wb-ink: #e6e9ef; --wb-muted: #98a2b3;
  --wb-grid: #333b49; --wb-line: #2c3442; --wb-link: #7ab8ff; --wb-mark: #43370f; --wb-soft: #232a35;
  --wb-good: #4fd18b; --wb-bad: #ff8a80; --wb-warn: #f7b955; --wb-live: #7ab8ff;
  {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--wb-page); color: var(--wb-ink); line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; }}
main {{ max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }}
h1, h2, h3, p, dd, dt, li, figcaption {{ overflow-wrap: anywhere; unicode-bidi: isolate; }}
th, td {{ overflow-wrap: break-word; unicode-bidi: isolate; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 4px 0 10px; font-weight: 680; letter-spacing: -0.015em; text-wrap: balance; }}
h2 {{ font-size: 19px; margin: 44px 0 14px; font-weight: 650; letter-spacing: -0.01em; }}
h3 {{ font-size: 15px; margin: 0 0 8px; font-weight: 620; }}
p {{ margin: 0 0 10px; }}
a {{ color: var(--wb-link); text-decoration: none; }}
a:hover {{ text-decoration: underline; }}
.wb-eyebrow {{ color: var(--wb-muted); font-size: 13px; display: flex; gap: 10px; align-items: center; flex-wrap: wrap; }}
.wb-pill {{ display: inline-block; border: 1px solid currentColor; border-radius: 999px; padding: 0 9px; font-size: 12px;
  line-height: 19px; font-weight: 600; white-space: nowrap; }}
.wb-complete {{ color: var(--wb-good); }} .wb-failed {{ color: var(--wb-bad); }} .wb-running {{ color: var(--wb-live); }}
.wb-cancelled, .wb-interrupted {{ color: var(--wb-warn); }}
.wb-facts {{ display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 14px 0 0; font-size: 13.5px; }}
.wb-facts div {{ display: flex; gap: 7px; min-width: 0; }}
.wb-facts dt {{ color: var(--wb-muted); flex: none; }} .wb-facts dd {{ margin: 0; min-width: 0; }}
.wb-lead {{ font-size: 19px; line-height: 1.48; margin: 28px 0 26px; max-width: 62em;
  border-left: 3px solid {palette.COLORS[0]};
  padding-left: 18px; text-wrap: pretty; }}
.wb-card {{ background: var(--wb-card); border: 1px solid var(--wb-line); border-radius: 10px; padding: 16px 18px;
  min-width: 0; }}
summary {{ cursor: pointer; color: var(--wb-muted); font-size: 13.5px; }} details[open] > summary {{ margin-bottom: 10px; }}
.wb-metrics + details {{ margin-top: 14px; }}
.wb-metrics {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(212px, 1fr)); gap: 14px; }}
.wb-metric .wb-name {{ color: var(--wb-muted); font-size: 13px; overflow-wrap: anywhere; }}
.wb-metric .wb-value {{ font-size: 27px; line-height: 1.3; font-weight: 640; font-variant-numeric: tabular-nums;
  letter-spacing: -0.02em; overflow-wrap: anywhere; }}
.wb-metric .wb-unit {{ font-size: 15px; font-weight: 500; letter-spacing: 0; color: var(--wb-muted); margin-left: 5px; }}
.wb-metric .wb-more {{ font-size: 12.5px; color: var(--wb-muted); overflow-wrap: anywhere; }}
.wb-views {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 18px; }}
.wb-views figure {{ margin: 0; }} .wb-wide {{ grid-column: 1 / -1; }}
.wb-views svg {{ display: block; width: 100%; height: auto; }}
.wb-views img {{ display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }}
figcaption {{ color: var(--wb-muted); font-size: 13px; margin-top: 8px; }}
.wb-scroll {{ overflow-x: auto; }}
.wb-data {{ max-height: 320px; overflow-y: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 6px 18px 6px 0; border-bottom: 1px solid var(--wb-line); vertical-align: top; }}
th {{ color: var(--wb-muted); font-weight: 550; font-size: 12.5px; white-space: nowrap; }}
tr:last-child td {{ border-bottom: 0; }}
td.wb-number, th.wb-number {{ text-align: right; white-space: nowrap; }}
td code {{ white-space: pre-wrap; overflow-wrap: break-word; }}
tr.wb-changed td:first-child {{ font-weight: 650; }} tr.wb-changed mark {{ background: var(--wb-mark); color: inherit;
  border-radius: 4px; padding: 1px 6px; margin-left: -6px; }}
code, pre {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; overflow-wrap: anywhere; }}
pre {{ margin: 0; white-space: pre-wrap; line-height: 1.55; unicode-bidi: isolate; }}
.wb-stack > * + * {{ margin-top: 18px; }}
.wb-notes {{ padding-left: 20px; margin: 0; }} .wb-notes li {{ margin: 4px 0; }}
.wb-pairs {{ display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 4px 20px; margin: 0; font-size: 13.5px; }}
.wb-pairs dt {{ color: var(--wb-muted); }} .wb-pairs dd {{ margin: 0; min-width: 0; }}
.wb-missing {{ color: var(--wb-muted); font-size: 13.5px; }}
.wb-cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 18px; }}
a.wb-card {{ color: inherit; display: flex; flex-direction: column; gap: 8px; }}
a.wb-card:hover {{ text-decoration: none; border-color: var(--wb-link); }}
a.wb-card h3 {{ font-size: 16.5px; margin: 0; }} a.wb-card p {{ margin: 0; font-size: 14px; }}
a.wb-card svg {{ width: 100%; max-width: none !important; height: auto; margin: 4px 0; }}
.wb-foot {{ color: var(--wb-muted); font-size: 12.5px; margin-top: 48px; }}
.wb-clip {{ display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden; }}
@media (max-width: 560px) {{ main {{ padding: 22px 14px 40px; }} h1 {{ font-size: 24px; }} .wb-lead {{ font-size: 17px; }} }}
@media print {{ body {{ background: none; }} .wb-card {{ break-inside: avoid; }} main {{ max-width: none; padding: 0; }} }}
"""

# Notebook front ends bring their own colours (--jp-*, --vscode-*); everywhere else the text keeps the page's colour and
# lines and secondary text are that colour made faint. The colours of a status have a contrast of 4 to white and to VS
# Code's dark page alike, about the most that one colour can have to both.
NOTEBOOK = """
.workbench { color: var(--jp-content-font-color1, var(--vscode-foreground, inherit)); line-height: 1.45; font-size: 13px;
  font-family: var(--jp-ui-font-family, var(--vscode-font-family, system-ui, sans-serif)); max-width: 1100px; }
.workbench * { box-sizing: border-box; overflow-wrap: break-word; }
.workbench .wb-head { display: flex; gap: 4px 12px; align-items: baseline; flex-wrap: wrap; margin: 2px 0 4px; }
.workbench .wb-title { font-size: 15px; font-weight: 650; }
.workbench .wb-dim { opacity: 0.68; }
.workbench code { font-size: 12px; background: none; padding: 0; color: inherit; }
.workbench .wb-pill { border: 1px solid currentColor; border-radius: 999px; padding: 0 8px; font-size: 11px; font-weight: 600;
  white-space: nowrap; }
.workbench .wb-complete { color: var(--jp-success-color0, #159146); }
.workbench .wb-failed { color: var(--jp-error-color1, #d94f45); }
.workbench .wb-running { color: var(--jp-info-color0, #3080d3); }
.workbench .wb-cancelled, .workbench .wb-interrupted { color: var(--jp-warn-color0, #bf6700); }
.workbench .wb-lead { font-size: 15px; margin: 8px 0 12px; padding-left: 12px; border-left: 3px solid #56b4e9; max-width: 60em; }
.workbench .wb-metrics { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0; }
.workbench .wb-metric { border: 1px solid rgba(128, 128, 128, 0.32); border-radius: 8px; padding: 7px 12px;
  min-width: 132px; max-width: 280px; }
.workbench .wb-name, .workbench .wb-more { font-size: 11.5px; opacity: 0.72; }
.workbench .wb-value { font-size: 19px; font-weight: 640; font-variant-numeric: tabular-nums; }
.workbench .wb-unit { font-size: 12px; font-weight: 500; opacity: 0.72; margin-left: 4px; }
.workbench .wb-data { max-height: 320px; overflow-y: auto; }
.workbench h3 { font-size: 13.5px; margin: 14px 0 4px; font-weight: 640; }
.workbench .wb-scroll { overflow-x: auto; }
.workbench table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; margin: 2px 0; border: 0; }
.workbench table th, .workbench table td { text-align: left; padding: 3px 16px 3px 0; border: 0; vertical-align: top;
  border-bottom: 1px solid rgba(128, 128, 128, 0.28); background: none; }
.workbench table tr { background: none; }
.workbench table th { font-weight: 600; opacity: 0.72; white-space: nowrap; }
.workbench table td.wb-number, .workbench table th.wb-number { text-align: right; white-space: nowrap; }
.workbench summary { cursor: pointer; margin: 4px 0; opacity: 0.72; }
.workbench .wb-notes { padding-left: 18px; margin: 4px 0; }
.workbench .wb-views { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 12px; margin: 10px 0; }
.workbench .wb-wide { grid-column: 1 / -1; }
.workbench figure { margin: 0; }
.workbench img { max-width: 100%; height: auto; background: #fff; border-radius: 8px; padding: 6px; }
.workbench figcaption, .workbench .wb-caption { font-size: 12px; opacity: 0.72; margin: 2px 0; }
.workbench pre { white-space: pre-wrap; font-size: 12px; background: none; color: inherit; margin: 2px 0; }
"""
