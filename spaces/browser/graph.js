// query.onnx by onnxruntime-web, on this machine's CPU by WebAssembly. Everything comes from the page's own folder.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

/** Opens a graph, by its address. */
export function openGraph(address) {
  return ort.InferenceSession.create(address, { executionProviders: ["wasm"] });
}

/** The embedding, a Float32Array of length 1, of (size, size, 3) bytes under the category of an index. */
export async function embed(graph, pixels, size, category) {
  const planes = new Uint8Array(pixels.length); // (3, size, size), as the model reads them
  const area = size * size;
  for (let place = 0; place < area; place++) {
    for (let colour = 0; colour < 3; colour++) planes[colour * area + place] = pixels[3 * place + colour];
  }
  const { image_embeds: found } = await graph.run({
    pixels: new ort.Tensor("uint8", planes, [1, 3, size, size]),
    category_indices: new ort.Tensor("int64", BigInt64Array.of(BigInt(category)), [1]),
  });
  return found.data;
}
