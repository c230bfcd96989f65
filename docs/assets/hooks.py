"""What MkDocs does not know of this project.

Pages that lie beside docs/, notebooks as scripts, a gallery, and how docstrings are written here.
"""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import griffe
import jupytext
import nbformat
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

#: Pages that lie beside docs/, where a code host looks for them.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files, config):
    """Take in the pages that lie beside docs/, and make pages of notebooks and a gallery."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    files.append(File.generated(config, "gallery.md", content=gallery(docs)))
    for name, page in OUTSIDE.items():
        text = (root / name).read_text()
        for other in OUTSIDE:
            text = text.replace(f"]({other}", f"](docs/{OUTSIDE[other]}")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    for script in sorted(docs.glob("notebooks/*.py")):
        for name, content in read_notebook(script).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))


def gallery(docs):
    """Return a page of all figures that pages show, each by its page and what is said of it."""
    shown = []
    for page in sorted(docs.rglob("*.md")):
        place, text = page.relative_to(docs).as_posix(), page.read_text()
        title = text.partition("\n")[0].lstrip("# ")
        for told, figure in re.findall(r"!\[([^]]+)\]\((\S+\.png)\)", text):
            path = (page.parent / figure).resolve().relative_to(docs.resolve()).as_posix()
            told = " ".join(told.split()).replace("|", "\\|")
            shown.append(f"[{title}]({place})<br>![{told}]({path})<br>{told}")
    rows = [" | ".join(shown[i : i + 2]) for i in range(0, len(shown), 2)]
    return "# Gallery\n\n| | |\n|---|---|\n" + "\n".join(f"| {row} |" for row in rows)


def read_notebook(script):
    """Return a notebook, executed, as a page, its figures and a file for Jupyter."""
    notebook = jupytext.read(script)
    kernel = {"name": "python3", "display_name": "Python", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    if os.environ.get("DOCS_EXECUTE") != "false":
        with TemporaryDirectory() as work:
            where = {"metadata": {"path": work}}
            quiet = ["--log-level=ERROR"]
            NotebookClient(notebook, timeout=600, resources=where, extra_arguments=quiet).execute()
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = tidy(cell.outputs)
    page, made = MarkdownExporter().from_notebook_node(notebook, {"unique_key": script.stem})
    page = re.sub(r"\n([ \t]*\n){3,}", "\n\n", page)
    note = f"\n\nThis page as a notebook: [{script.stem}.ipynb]({script.stem}.ipynb).\n"
    title, _, body = page.lstrip().partition("\n")
    return {
        f"{script.stem}.md": title + note + body,
        f"{script.stem}.ipynb": nbformat.writes(notebook),
        **made.get("outputs", {}),
    }


def tidy(outputs):
    """Leave warnings out, which name places of this machine; what raises has ended the build."""
    kept = [each for each in outputs if each.get("name") != "stderr"]
    for each in kept:  # a line of rich is text, as it is on a terminal
        if each.get("data", {}).get("text/html", "").startswith("<pre"):
            del each["data"]["text/html"]
    return kept


def on_page_markdown(markdown, **_):
    """Lead links to pages beside docs/, and to notebooks, to where these are in the site."""
    for name, page in OUTSIDE.items():
        markdown = re.sub(rf"\]\(\.\./((?:\.\./)*){name}", rf"](\1{page}", markdown)
    return re.sub(r"(\]\([\w./]*notebooks/\w+)\.py", r"\1.md", markdown)


#: A role in a docstring: :class:`name`, or :class:`~long.name`.
ROLE = re.compile(r":\w+:`(~?)([\w.]+)`")


class Docstrings(griffe.Extension):
    """Write :class:`a.b.C` as a link, where it has a place on a page, and examples as code."""

    def on_object(self, *, obj, **_):
        """Rewrite the docstring of one object."""
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(ROLE, lambda found: link(obj, *found.groups()), text)

    def on_package(self, *, pkg, **_):
        """Rewrite the docstring of a package, which is no object of another."""
        self.on_object(obj=pkg)

    def on_attribute_instance(self, *, attr, **_):
        """Take the comment `#: …` above a name for its docstring."""
        above = attr.lines_collection[attr.filepath][: attr.lineno - 1]
        comment = []
        while above and above[-1].startswith("#:"):
            comment.insert(0, above.pop()[2:].strip())
        if comment and not attr.docstring:
            attr.docstring = griffe.Docstring("\n".join(comment), parent=attr)


def link(obj, short, name):
    """Return a link to what a name means in an object, or the name alone."""
    try:
        path = obj.resolve(name)
    except griffe.NameResolutionError:
        path = name
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
