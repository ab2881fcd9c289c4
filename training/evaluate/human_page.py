"""The raters' page: one HTML file that needs no server and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which reply is better?</title>
<style>
 body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 72em; margin: 1em auto; padding: 0 1em; }}
 fieldset {{ border: 1px solid #999; border-radius: .5em; margin: 1.5em 0; }}
 .prompt, .reply {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
 .prompt {{ font-weight: 600; }}
 .replies {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1em; margin: .8em 0; }}
 .reply {{ background: #f3f3f3; color: #111; border-radius: .5em; padding: .8em; }}
 label {{ margin-right: 1.5em; }}
 #bar {{ position: sticky; bottom: 0; background: Canvas; padding: .8em 0; border-top: 1px solid #999; }}
 @media (max-width: 45em) {{ .replies {{ grid-template-columns: 1fr; }} }}
</style>
<h1>Which reply is better?</h1>
<p>Read the question and both replies, then choose. You need not answer all of them. Answers are kept in this
browser until you save them; send the saved file back.</p>
<form id="form" data-sheet="{digest}">
{rows}
<div id="bar"><button type="submit">Save answers</button> <output id="count"></output></div>
</form>
<script>
const form = document.getElementById("form"), sheet = form.dataset.sheet;
const all = () => [...form.querySelectorAll("fieldset")].map((row, i) =>
  [i + 1, (row.querySelector("input:checked") || {{value: ""}}).value]);
const show = () => {{
  const given = all().filter(([, answer]) => answer).length;
  document.getElementById("count").value = given + " of " + all().length + " answered";
}};
try {{
  for (const [row, answer] of JSON.parse(localStorage.getItem(sheet) || "[]"))
    if (answer) form.querySelector(`input[name="row${{row}}"][value="${{answer}}"]`).checked = true;
}} catch (error) {{ console.warn(error); }}
form.addEventListener("change", () => {{ localStorage.setItem(sheet, JSON.stringify(all())); show(); }});
form.addEventListener("submit", event => {{
  event.preventDefault();
  const lines = ["row,answer," + sheet, ...all().map(row => row.join(","))];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\r\\n") + "\\r\\n"], {{type: "text/csv"}}));
  link.download = "answers.csv";
  link.click();
}});
show();
</script>
</html>
"""
_ROW = """<fieldset><legend>{number}</legend>
<p class="prompt">{prompt}</p>
<div class="replies"><div class="reply">{left}</div><div class="reply">{right}</div></div>
<label><input type="radio" name="row{number}" value="left"> left</label>
<label><input type="radio" name="row{number}" value="right"> right</label>
<label><input type="radio" name="row{number}" value="tie"> tie</label>
</fieldset>"""


def page(digest: str, rows: Sequence[tuple[str, ...]]) -> str:
    """The page for rows of (prompt, left, right), which must be escaped already."""
    shown = [
        _ROW.format(number=number, prompt=prompt, left=left, right=right)
        for number, (prompt, left, right) in enumerate(rows, start=1)
    ]
    return _PAGE.format(digest=digest, rows="\n".join(shown))
