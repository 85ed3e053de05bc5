// The page: a photo and a category -> the items of the gallery that are most like the thing meant.

import { embed, openGraph } from "./graph.js";
import { pixelsOf } from "./pixels.js";

const SHOWN = 12;
const part = (name) => document.getElementById(name);

const gallery = await (await fetch("gallery.json")).json(); // {model, image_size, dim, categories, items, samples}
const rows = new Float32Array(await (await fetch("gallery.bin")).arrayBuffer()); // (items, dim), unit rows
const graph = await openGraph("query.onnx");
let photo = null;
let asked = 0; // counts questions: an answer that comes after a newer question is dropped

/** The items nearest to an embedding: [{item, score}], the best first. */
function nearest(query) {
  const { dim, items } = gallery;
  const found = items.map((item, number) => {
    let score = 0;
    for (let i = 0; i < dim; i++) score += query[i] * rows[number * dim + i];
    return { item, score };
  });
  return found.sort((one, other) => other.score - one.score).slice(0, SHOWN);
}

async function ask() {
  const category = document.querySelector("#categories input:checked");
  if (photo === null || category === null) return;
  const number = ++asked;
  try {
    const start = performance.now();
    const pixels = await pixelsOf(photo, gallery.image_size);
    const prepared = performance.now();
    const query = await embed(graph, pixels, gallery.image_size, Number(category.value));
    const ended = performance.now();
    if (number !== asked) return;
    show(nearest(query));
    part("results").dataset.category = gallery.categories[category.value];
    const [first, second] = [prepared - start, ended - prepared].map((time) => time.toFixed(0));
    say(`${gallery.items.length} items; pixels in ${first} ms, embedding in ${second} ms, on this machine.`);
  } catch (error) {
    if (number === asked) refuse(error);
  }
}

function show(found) {
  part("results").replaceChildren(
    ...found.map(({ item, score }) => {
      const figure = document.createElement("figure");
      const image = Object.assign(new Image(), { src: item.picture, alt: item.title, title: item.title });
      const caption = document.createElement("figcaption");
      caption.textContent = score.toFixed(3); // text, not HTML: titles are anybody's
      figure.dataset.id = item.id;
      figure.append(image, caption);
      return figure;
    }),
  );
}

function say(text) {
  part("status").textContent = text;
}

function refuse(error) {
  part("results").replaceChildren();
  say(error.name === "InvalidStateError" ? "This file is no picture that the browser can read." : error.message);
}

/** Takes a picture, shows it, and asks. */
function take(blob) {
  photo = blob;
  URL.revokeObjectURL(part("photo").src);
  part("photo").src = URL.createObjectURL(blob);
  ask();
}

function addSamples() {
  for (const address of gallery.samples) {
    const button = document.createElement("button");
    button.append(Object.assign(new Image(), { src: address, alt: "sample" }));
    button.addEventListener("click", async () => take(await (await fetch(address)).blob()));
    part("samples").append(button);
  }
}

function addCategories() {
  gallery.categories.forEach((name, index) => {
    const label = document.createElement("label");
    const choice = Object.assign(document.createElement("input"), { type: "radio", name: "category", value: index });
    choice.addEventListener("change", ask);
    label.append(choice, name);
    part("categories").append(label);
  });
}

addSamples();
addCategories();
part("file").addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
say(`${gallery.model} is loaded. Choose a photo, and what is meant in it.`);
document.body.dataset.ready = "true";
