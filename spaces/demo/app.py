"""A catalog as a page: drop a photo, tick what is meant or say it, and see what the catalog has of it.

    python spaces/demo/app.py CATALOG [--model FOLDER] [--examples FOLDER] [--port 7860]

Without CATALOG it takes the folders `catalog`, `model` and `examples` beside this file, as in a Space.
"""

from __future__ import annotations

import argparse
import base64
import html
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from PIL import Image

HERE = Path(__file__).resolve().parent
for folder in (HERE, *HERE.parents[1:2]):  # a Space has the library beside this file, a checkout above it
    if (folder / "lrvsf").is_dir():
        sys.path.insert(0, str(folder))
        break

from lrvsf import command
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import MAX_IMAGE_BYTES, BadImage
from lrvsf.embedding.rollout import attention_maps, draw_heat
from lrvsf.search.catalog import Catalog
from lrvsf.search.filters import FilterError
from lrvsf.search.hits import Hit
from processing_condvit import pad_and_resize

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
TITLES = ("title", "name")  # columns that head a hit, where a catalog has one; else its id
STANDING = "Of photos whose thing is not in the catalog, {:.0%} find nothing as near."
HEAT = 256  # pixels of an attention picture
LETTERS = 200  # of what is said in words, as the service takes them
ABOUT = """# Search a catalog by a photo and what is meant

Drop a photo of somebody or pick an example, and tick what you mean{}. The catalog was indexed once, without conditions:
each tick asks the same photo another question.
"""
OR_SAY = ", or say it in words"
STYLE = """
.answer h3 { margin: 1.1rem 0 .4rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.answer h3 small { font-weight: normal; opacity: .65; margin-left: .4rem; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.2rem, 1fr)); gap: .6rem; }
.hit { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem; font-size: .8rem;
       overflow-wrap: anywhere; display: flex; flex-direction: column; gap: .15rem; max-height: 24rem; overflow-y: auto;
       background: var(--background-fill-primary); }
.hit img { width: 100%; height: 128px; flex-shrink: 0; object-fit: contain; background: #fff; border-radius: 4px; }
.hit .score { opacity: .65; }
.hit.faint { opacity: .5; }
.hit button { margin-top: auto; border: 1px solid var(--border-color-primary); border-radius: 4px; cursor: pointer;
              padding: .15rem .3rem; background: var(--button-secondary-background-fill); color: inherit;
              font-size: .75rem; }
.notice { padding: .6rem .8rem; border-left: 3px solid #e08a00; background: var(--background-fill-secondary); }
"""
# In a narrow window the columns stand one above the other. Examples then are a strip under the photo, so that results
# follow the button: the first column gives up its box, and what is in it can be put into another order.
LAYOUT = """
@media (max-width: 700px) {
  #page > .column:first-of-type { display: contents; }
  #page > .column, #page > .column:first-of-type > * { order: 1; width: 100%; }
  #page > .column:first-of-type > :is(#photo, #examples) { order: 0; }
  #examples .gallery { flex-wrap: nowrap; overflow-x: auto; }
  #examples .gallery-item { flex-shrink: 0; }
}
"""
# A click on a hit's button is told to the server as a `select` with the row that the button names.
CLICKS = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-row]');
  if (button) trigger('select', {row: Number(button.dataset.row)});
});
"""


def notice(text: str) -> str:
    return f'<p class="notice" role="alert">{html.escape(text)}</p>'


def card(hit: Hit, faint: bool) -> str:
    """A hit. Its metadata are anybody's text, so all of it is escaped, and only web addresses become links."""
    known = {name: value for name, value in hit.metadata.items() if value is not None and name != "product_id"}
    head = next((str(known.pop(name)) for name in TITLES if name in known), hit.id)
    address = str(known.pop("url", ""))
    if address.lower().startswith(("http://", "https://")):  # as parsing fails on what is no address
        head = f'<a href="{html.escape(address)}" target="_blank" rel="noopener noreferrer">{html.escape(head)}</a>'
    else:
        head = html.escape(head)
    facts = "".join(f"<span>{html.escape(name)}: {html.escape(str(value))}</span>" for name, value in known.items())
    picture = base64.b64encode(hit.thumbnail).decode()
    more = f", and {hit.more} more of it" if hit.more else ""
    pale = " faint" * (faint or hit.close is False)
    told = "" if hit.standing is None else f' title="{STANDING.format(hit.standing)}"'
    return (
        f'<article class="hit{pale}" data-id="{html.escape(hit.id)}">'
        f'<img src="data:image/jpeg;base64,{picture}" alt="{html.escape(hit.id)}"><b>{head}</b>'
        f'<span class="score"{told}>{hit.rank}. score {hit.score:.3f}{more}</span>{facts}'
        f'<button data-row="{hit.row}">more like this</button></article>'
    )


def answer(name: str, hits: Sequence[Hit], remark: str = "", faint: bool = False) -> str:
    """A row of the page: what was asked, and what was found. Hits that are no close match are pale."""
    if hits and hits[0].close is False:
        remark = remark or "no close match"
    cards = "".join(card(hit, faint) for hit in hits) or "<p>nothing found</p>"
    small = f"<small>{html.escape(remark)}</small>" if remark else ""
    return (
        f'<section class="answer" data-condition="{html.escape(name)}"><h3>{html.escape(name)}{small}</h3>'
        f'<div class="hits">{cards}</div></section>'
    )


class Photo(gr.Image):
    """An upload as it came: gradio would decode it, and a bomb or what is no image would end in an unclear error."""

    is_template = True  # in the browser it is its parent

    def preprocess(self, payload) -> str | None:
        return None if payload is None else payload.path


class Page:
    """What the page's events call. One question at a time is answered: the model and its attention are shared."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._answering = threading.Lock()

    def search(
        self, photo: str | None, ticked: list[str], said: str | None, everything: bool, where: str, k: float
    ) -> str:
        """The results as HTML: what was said in words first, then what is ticked, or everything.

        A box that is not on the page says None.
        """
        if photo is None:
            return notice("Drop a photo first, or pick one of the examples.")
        if len(said := (said or "").strip()) > LETTERS:
            return notice(f"This is {len(said):,} letters long. Say it in at most {LETTERS}.")
        try:
            data, how = read(photo), (int(k), where.strip() or None)
            with self._answering:
                rows = [answer(said, self.catalog.search(data, None, *how, text=said))] if said else []
                if everything:
                    answers = self.catalog.search_all(data, *how)
                    rows += [self._told(name, found) for name, found in answers.items()]
                elif ticked or not said:
                    found = self.catalog.search(data, list(ticked) or [None], *how)
                    names = ticked or ["the picture as a whole"]
                    rows += [answer(name, hits) for name, hits in zip(names, found, strict=True)]
            return "".join(rows)
        except BadImage as error:
            return notice(f"This is no picture that can be read: {error}.")
        except FilterError as error:
            return notice(f"{str(error)[0].upper()}{str(error)[1:]}")

    def _told(self, name: str, found) -> str:
        """A row of "everything in it": what does not seem to be in the photo is pale."""
        if found.present is False:
            return answer(name, found.hits[:3], "does not seem to be in the photo", faint=True)
        return answer(name, found.hits)

    def like(self, k: float, where: str, event: gr.EventData) -> str:
        """Items like the one whose button was clicked."""
        row = int(event.row)
        if not 0 <= row < self.catalog.generation.total:
            return notice("This item is not in the catalog.")
        try:
            with self._answering:
                hits = self.catalog.like(row, int(k), where.strip() or None)
        except FilterError as error:
            return notice(str(error))
        return answer("more like this", hits)

    def attention(self, photo: str | None, ticked: list[str], said: str | None) -> list[tuple[Image.Image, str]]:
        """What the query looks at under what is said and each condition that is ticked, or under all, with captions."""
        if photo is None:
            raise gr.Error("Drop a photo first, or pick one of the examples.")
        try:
            scene = decode_shown(read(photo))
        except BadImage as error:
            raise gr.Error(f"This is no picture that can be read: {error}.") from error
        names, said = self.catalog.conditions, (said or "").strip()[:LETTERS]
        encoder, asked = self.catalog.encoder, names
        if said:  # a category is the text of its name to a model that reads texts, so all can be asked at once
            template = encoder.model.config.text_template
            encoder, asked = self.catalog.reader, [*map(template.format, names), said]
        with self._answering:
            maps = attention_maps(encoder, scene, asked)  # (C, 3, side, side), with one more of what is said
        tile = pad_and_resize(scene, HEAT)
        shown = [name for name in names if name in ticked] or ([] if said else names)
        # The second map: what a condition adds to the average over all of them.
        heat = [(draw_heat(tile, maps[names.index(name)][1]), name) for name in shown]
        return [(draw_heat(tile, maps[-1][1]), said), *heat] if said else heat


def read(photo: str) -> bytes:
    with open(photo, "rb") as file:
        return file.read(MAX_IMAGE_BYTES + 1)  # more than that is refused by the decoder


def build(catalog: Catalog, examples: Sequence[Path]) -> gr.Blocks:
    """The page of a catalog."""
    page, conditions = Page(catalog), catalog.conditions
    for name in conditions:  # now, as in a large catalog it takes seconds
        catalog.scale(name)
    if catalog.reads_texts:
        _ = catalog.reader
    with gr.Blocks(title="Search by photo and condition") as blocks:
        gr.Markdown(ABOUT.format(OR_SAY if catalog.reads_texts else ""))
        # By the name under which the catalog was made: a Space calls every model's folder "model".
        gr.Markdown(f"{len(catalog):,} items, model `{Path(catalog.generation.manifest['model']['name']).name}`.")
        with gr.Row(elem_id="page"):
            with gr.Column(scale=1, min_width=300):
                photo = Photo(
                    type="filepath",
                    image_mode=None,
                    label="Photo",
                    height=300,
                    elem_id="photo",
                    sources=["upload", "clipboard"],
                )
                ticked = gr.CheckboxGroup(
                    conditions, label="What is meant", elem_id="conditions", visible=bool(conditions)
                )
                said = gr.Textbox(
                    label="Or say it in words",
                    placeholder="the red one",
                    elem_id="said",
                    max_length=LETTERS,
                    visible=catalog.reads_texts,
                )
                everything = gr.Checkbox(label="everything in it", elem_id="everything", visible=bool(conditions))
                where = gr.Textbox(label="Filter", placeholder=hint(catalog), elem_id="where", max_length=2000)
                k = gr.Slider(1, 50, 5, step=1, label="Hits of each", elem_id="k")
                go = gr.Button("Search", variant="primary", elem_id="go")
                if examples:
                    gr.Examples(
                        [[str(path)] for path in examples],
                        [photo],
                        examples_per_page=12,
                        label="Examples",
                        elem_id="examples",
                    )
            with gr.Column(scale=3, min_width=320):
                results = gr.HTML(css_template=STYLE, js_on_load=CLICKS, elem_id="results")
                if conditions:
                    with gr.Accordion("What does it look at?", open=False):
                        look = gr.Button("Draw attention", elem_id="look")
                        heat = gr.Gallery(
                            label="Attention under each condition", columns=5, height="auto", elem_id="heat"
                        )
                        look.click(page.attention, [photo, ticked, said], heat)
        asked = [photo, ticked, said, everything, where, k]
        # By default a tick that is made while an earlier one is being answered would be dropped.
        listened = [go.click, photo.change, ticked.input, said.submit, everything.input, where.submit, k.release]
        gr.on(listened, page.search, asked, results, trigger_mode="always_last")
        results.select(page.like, [k, where], results)
    return blocks


def hint(catalog: Catalog) -> str:
    """An example of a filter, of this catalog's own columns."""
    columns = [name for name in catalog.metadata.column_names if name not in ("id", "product_id", "url")]
    if "price" in columns:
        return "price < 50"
    if not columns:
        return "this catalog has no columns to filter by"
    quoted = columns[0].replace('"', '""')  # any name will do in double quotes
    return f'"{quoted}" is not null'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("catalog", nargs="?", type=Path, help="what search_catalog.py index made")
    parser.add_argument("--model", help="where the catalog's model is now, if it was moved")
    parser.add_argument("--examples", type=Path, help="a folder of photos to pick from")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on by default")
    args = parser.parse_args(arguments)
    beside = args.catalog is None
    model = args.model or (str(HERE / "model") if beside and (HERE / "model").is_dir() else None)
    folder = args.examples or (HERE / "examples" if beside and (HERE / "examples").is_dir() else None)
    catalog = Catalog.open(HERE / "catalog" if beside else args.catalog, model)
    examples = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES) if folder else []
    build(catalog, examples).queue(max_size=64).launch(
        css=LAYOUT,
        # A Space is reached from outside its container; a local page is this machine's alone.
        server_name="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",
        server_port=args.port,
        max_file_size=MAX_IMAGE_BYTES,
        allowed_paths=[str(folder.resolve())] if folder else None,
    )


if __name__ == "__main__":
    command.run(main, "app.py")
