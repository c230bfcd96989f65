"""The page of a study: one file, nothing loaded, names are text; in a browser it sorts and filters.

The browser tests need Chromium (`chromium` or the like on the path) and are skipped without it.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.commands.cli import main
from experiments.report.axis import Axis
from experiments.report.figures import Drawing
from experiments.report.held import read_study
from experiments.report.page import render
from experiments.report.table import Table
from experiments.studies.label_noise import LabelNoise

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a finished study of 2 methods x 2 ratios x 2 seeds."""
    out = tmp_path_factory.mktemp("page") / "out"
    options = ["--subset", "100", "--epochs", "2", "--ratios", "0", "0.5", "--seeds", "0", "1"]
    options += ["--jobs", "1", "--threads", "1"]
    settings = ["--set", "backbone=resnet10_w8", "batch_size=50", "evaluate_every=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelNoise, "figures", ("accuracy", "cosines"))
        assert main(["table", "--out", str(out), *options, *settings]) == 0
    return out


class Parts(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def test_a_study_leaves_a_page_that_loads_nothing(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 5e6
    parts = Parts(page)
    links = [a[name] for _, a in parts.elements for name in ("src", "href", "srcset") if name in a]
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert not parts.all("link")
    assert "@import" not in page
    assert "url(" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for a in parts.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_a_page_holds_what_the_study_holds(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    held, text = read_study(out), Parts(page).text
    for table in held.tables.values():
        assert table.title in text
        assert all(entry in text for row in table.rows for entry in row)
    for sentence in (*held.facts["conclusion"], *held.notes, held.facts["command"]):
        assert sentence in text
    for run in held.results.runs:
        assert run.folder.name in text
        assert run.record.proof["labels"] in text
    assert "symmetric noise at ratio 0.5, seed 0" in text
    wrong = {run.record.noise["wrong"] / 100 for run in held.results.runs}
    assert all(f"{share:.3f}" in text for share in wrong)


def test_a_page_can_be_used_without_eyes_or_mouse(out):
    parts = Parts((out / "report.html").read_text(encoding="utf-8"))
    ids = [a["id"] for _, a in parts.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert parts.all("html")[0]["lang"] == "en"
    assert parts.all("a")[0]["href"] == "#main"
    named = [a["href"][1:] for a in parts.all("a")]
    named += [a["aria-labelledby"] for _, a in parts.elements if "aria-labelledby" in a]
    assert set(named) <= set(ids)
    assert len(parts.all("caption")) == len(parts.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in parts.all("th"))
    assert all(a["alt"] for a in parts.all("img"))
    assert all(a["aria-label"] for a in parts.all("svg"))
    sortable = [a for a in parts.all("table") if a.get("class") == "sortable"]
    assert len(sortable) >= 8


def test_the_page_is_the_same_when_it_is_read_from_the_folder(out, tmp_path, capsys):
    page = tmp_path / "again.html"
    assert main(["report", str(out), "--page", str(page)]) == 0
    assert page.read_text() == (out / "report.html").read_text()
    assert f"{page}: " in capsys.readouterr().out


def test_studies_stand_beside_each_other(out, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(out, other)
    assert main(["report", str(out), str(other)]) == 0
    page = (out / "comparison.html").read_text()
    parts = Parts(page)
    ids = [a["id"] for _, a in parts.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert page.count("Test accuracy on digits") == 2
    for folder in (out, other):
        assert str(folder)[-20:] in parts.text
    (out / "comparison.html").unlink()


def test_runs_are_named_by_what_varies(out):
    held = read_study(out)
    rows = [{**row, "eps_sq": i / 8} for i, row in enumerate(held.results.rows)]
    results = replace(held.results, axes=(Axis("eps_sq", "squared distortion"),), rows=rows)
    page = render([replace(held, results=results, tables={})], [{}])
    named = re.findall(r"<summary>\w+, eps_sq ([\d.]+), seed \d: test accuracy", page)
    assert len(set(named)) == len(results.runs)
    assert not Parts(page).all("form")  # nothing to filter by


def test_a_damaged_audit_is_one_line(tmp_path, capsys):
    (tmp_path / "audit.json").write_text(json.dumps({"estimates": [1]}))
    assert main(["report", str(tmp_path)]) == 2
    assert "audit.json is damaged" in capsys.readouterr().err


def test_an_audit_is_shown_with_its_contact_sheets(tmp_path):
    held = {"score": "coding", "label_issues": 3, "classes": [HOSTILE], "environment": {"a": "b"}}
    held["estimates"] = [{"method": HOSTILE, "wrong": 2, "share": 0.25}]
    held["truth"] = {"wrong": 3, "by_given_label": [{"wrong": 3, "auroc": 0.75}]}
    (tmp_path / "audit.json").write_text(json.dumps(held))
    for name in ("suggestions", "sheet-1", "sheet-2", "sheet-10"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    Image.fromarray(noise).save(tmp_path / "sheet-3.png")
    assert main(["report", str(tmp_path)]) == 0
    parts = Parts((tmp_path / "report.html").read_text())
    sheets = [a["alt"] for a in parts.all("img")]
    assert [alt.partition(":")[0] for alt in sheets[1:]] == [
        f"Contact sheet {n}" for n in (1, 2, 10)
    ]
    assert "sheet-3.png is left out" in parts.text
    assert all(text in parts.text for text in ("0.2500", "0.7500", "truth.wrong"))
    assert len(parts.all("script")) == 1


def hostile(out):
    """The page of a study whose data set, methods, classes and files have hostile names."""
    held = read_study(out)

    def rename(run):
        record = run.record
        data = {**record.data, "name": HOSTILE, "classes": [HOSTILE] * 10, HOSTILE: HOSTILE}
        spec = {**record.spec, "method": HOSTILE, "options": [[HOSTILE, 1]]}
        noise = {**record.noise, "kind": HOSTILE}
        return replace(
            run, record=replace(record, data=data, spec=spec, noise=noise, reason=HOSTILE)
        )

    results = replace(held.results, dataset=HOSTILE, runs=list(map(rename, held.results.runs)))
    rows = ((HOSTILE, HOSTILE, HOSTILE, "0.5"), ("ce", "last", "head", "0.25±0.1"))
    table = Table(HOSTILE, ("method", "selection", "readout", HOSTILE), rows, notes=(HOSTILE,))
    facts = {**held.facts, "study": HOSTILE, "command": HOSTILE, "conclusion": [HOSTILE]}
    facts["environment"] = {HOSTILE: HOSTILE}
    study = replace(
        held, results=results, facts=facts, tables={"accuracy": table}, notes=(HOSTILE,)
    )
    study = replace(study, folder=Path(HOSTILE))
    return render([study], [{"a": Drawing(b"x", "image/png", HOSTILE)}])


def test_hostile_names_are_text(out):
    page = hostile(out)
    parts = Parts(page)
    assert len(parts.all("script")) == 1
    assert not any(a.get("src") == "x" for a in parts.all("img"))
    assert not any(name.startswith("on") for _, a in parts.elements for name in a)
    assert "49" not in re.findall(r"amp;|\{\{ 7 \* 7 \}\}|49(?=&amp;)", page)
    assert HOSTILE in parts.text
    assert all(
        json.loads(a["data-filters"])["method"] for a in parts.all("tr") if "data-filters" in a
    )


# --- in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the path")

#: A page around the page: the product's own policy would refuse a script of the test's.
AROUND = """<!doctype html><meta charset="utf-8"><pre id="found">nothing</pre>
<iframe id="inner" style="width:1280px;height:900px" srcdoc="{page}"></iframe>
<script>
const inner = document.getElementById("inner");
const wait = async () => {{
  // A timer is always due: with none, virtual time would jump to its end before a frame is drawn.
  let drawn = false;
  requestAnimationFrame(() => {{ drawn = true; }});
  while (!drawn) await new Promise((done) => setTimeout(done, 1));
  await new Promise((done) => setTimeout(done, 50));
}};
inner.onload = async () => {{
  const found = {{ errors: [] }};
  inner.contentWindow.addEventListener("error", (e) => found.errors.push(String(e.message)));
  inner.contentDocument.addEventListener("securitypolicyviolation",
    (e) => found.errors.push(e.blockedURI));
  try {{
    await (async (page, window) => {{ {script} }})(inner.contentDocument, inner.contentWindow);
    found.loaded = inner.contentWindow.performance.getEntriesByType("resource")
      .map((e) => e.name).filter((name) => !name.startsWith("data:"));
  }} catch (error) {{ found.errors.push(String(error)); }}
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


def look(page, tmp_path, script):
    """Open a page within another in Chromium; return what a script found, and its console."""
    around = tmp_path / "around.html"
    around.write_text(AROUND.format(page=html.escape(page), script=script), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=1000000"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [CHROMIUM, *options, around.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1]
    assert found != "nothing", done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found)), console


def mean(text):
    """The number in front of an entry's half-width."""
    return float(text.partition("±")[0])


@browser
def test_in_a_browser_tables_sort_and_filter_and_nothing_is_loaded(out, tmp_path):
    script = """
      const table = page.querySelector("#table-0-accuracy");
      const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "0.5");
      const values = () => [...table.tBodies[0].rows].map((r) => r.cells[column].textContent);
      const head = table.tHead.rows[0].cells[column];
      head.querySelector("button").click();
      found.ascending = values(); found.first = head.getAttribute("aria-sort");
      head.querySelector("button").click();
      found.descending = values(); found.second = head.getAttribute("aria-sort");
      const form = page.querySelector("form.filters");
      const select = form.querySelector("select[data-key=method]");
      select.value = "mcr2"; select.dispatchEvent(new window.Event("change", {bubbles: true}));
      const shown = (id) => [...page.querySelectorAll(id + " tbody tr")].filter((r) => !r.hidden)
        .map((r) => r.cells[0].textContent);
      found.accuracy = shown("#table-0-accuracy");
      found.differences = shown("#table-0-differences");
      found.told = form.querySelector("output").textContent;
      form.reset(); await wait();
      found.all = shown("#table-0-accuracy");
      const fits = () => page.documentElement.scrollWidth <= page.documentElement.clientWidth;
      const boxes = [...page.querySelectorAll(".scroll")].filter((box) => box.clientWidth);
      const stops = () => boxes.every((b) => (b.tabIndex === 0) === b.scrollWidth > b.clientWidth);
      found.wide = [fits(), stops()];
      inner.style.width = "390px"; await wait();
      found.narrow = [fits(), stops(), boxes.some((box) => box.tabIndex === 0)];
      const box = table.parentElement, place = (e) => e.getBoundingClientRect();
      box.scrollLeft = 100;
      found.first_column = place(table.tBodies[0].rows[0].cells[0]).left - place(box).left;
      found.caption = place(table.caption.firstChild).right <= place(box).right;
      found.scrolled = box.scrollLeft;
      const firsts = [head.parentElement.cells[0], table.tBodies[0].rows[1].cells[0]];
      found.covers = firsts.map((cell) => window.getComputedStyle(cell).backgroundColor);
    """
    found, console = look((out / "report.html").read_text(encoding="utf-8"), tmp_path, script)
    assert (found["errors"], found["loaded"], console) == ([], [], [])
    rows = read_study(out, runs=False).tables["accuracy"].rows
    numbers = [mean(text) for text in found["ascending"]]
    assert numbers == sorted(mean(row[4]) for row in rows)
    assert [mean(text) for text in found["descending"]] == numbers[::-1]
    assert (found["first"], found["second"]) == ("ascending", "descending")
    assert set(found["accuracy"]) == {"mcr2"}
    assert set(found["differences"]) == {"mcr2 - ce"}
    assert re.fullmatch(r"\d+ of \d+ rows shown", found["told"])
    assert len(found["all"]) == len(rows)
    assert found["wide"] == [True, True]
    assert found["narrow"] == [True, True, True]
    assert (found["scrolled"], found["first_column"], found["caption"]) == (100, 0, True)
    assert all(re.fullmatch(r"rgb\(.*\)", colour) for colour in found["covers"])


@browser
def test_in_a_browser_hostile_names_are_text(out, tmp_path):
    script = """
      found.scripts = page.scripts.length;
      found.title = page.title;
      found.first = page.querySelector("#table-0-accuracy tbody th").textContent;
      const select = page.querySelector("form.filters select[data-key=method]");
      select.selectedIndex = 1; select.dispatchEvent(new window.Event("change", {bubbles: true}));
      const rows = [...page.querySelectorAll("#table-0-accuracy tbody tr")];
      found.shown = rows.filter((r) => !r.hidden).length;
      for (const part of page.querySelectorAll("details")) part.open = true;
      inner.style.width = "390px"; await wait();
      found.narrow = page.documentElement.scrollWidth <= page.documentElement.clientWidth;
    """
    found, console = look(hostile(out), tmp_path, script)
    # The drawing of that page is no image; that is all a browser may say of it.
    assert (found["errors"], found["loaded"]) == ([], [])
    assert [line for line in console if "alert" in line] == []
    assert (found["scripts"], found["first"], found["shown"]) == (1, HOSTILE, 1)
    assert found["narrow"]


@browser
def test_a_browser_draws_both_schemes(out, tmp_path):
    shots = {}
    for scheme in ("light", "dark"):
        shot = tmp_path / f"{scheme}.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844"]
        dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        options += [f"--user-data-dir={tmp_path / scheme}", f"--screenshot={shot}", *dark]
        page = (out / "report.html").as_uri()
        subprocess.run([CHROMIUM, *options, page], capture_output=True, timeout=120, check=True)
        with Image.open(shot) as image:
            shots[scheme] = image.convert("L").getpixel((2, 2))
    assert shots["light"] > 200 > 80 > shots["dark"]
