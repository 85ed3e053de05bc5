// A picture's bytes -> the model's pixels, as `pad_and_resize` makes them with Pillow: centred on a white square, resized
// bilinearly, nothing cropped. The canvas only decodes. Its own resizing has another filter in each browser, and none is
// Pillow's; the resizing below has the same rounding as Pillow's, and gives the same bytes.

const MAX_SIDE = 8192; // pixels: the padded square is 200 MB then
const BITS = 22; // of a weight behind the point: 8 bits of colour and the sign take the rest of 32

/** A decoded picture as (size, size, 3) Uint8Array. It is seen upright and on white, as the browser shows it. */
export async function pixelsOf(blob, size) {
  // Colours as they are stored: Pillow knows nothing of a screen's profile.
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  if (Math.max(width, height) > MAX_SIDE) {
    throw new Error(`The picture has ${width} x ${height} pixels; ${MAX_SIDE} a side are the most.`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return resized(padded(context.getImageData(0, 0, width, height)), Math.max(width, height), size);
}

/** (side, side, 3): RGBA pixels without their A in the middle of a white square. */
export function padded({ data, width, height }) {
  const side = Math.max(width, height);
  const square = new Uint8Array(3 * side * side).fill(255);
  const left = Math.floor((side - width) / 2);
  const top = Math.floor((side - height) / 2);
  for (let y = 0; y < height; y++) {
    let to = 3 * ((top + y) * side + left);
    for (let from = 4 * y * width; from < 4 * (y + 1) * width; from += 4) {
      square[to++] = data[from];
      square[to++] = data[from + 1];
      square[to++] = data[from + 2];
    }
  }
  return square;
}

/** (side, side, 3) -> (size, size, 3), both Uint8Array: first along rows, then along columns, rounded in between. */
export function resized(square, side, size) {
  if (side === size) return square;
  const weights = weightsOf(side, size);
  const rows = new Uint8Array(3 * side * size); // (side, size, 3)
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < size; x++) weigh(weights[x], square, 3 * y * side, 3, rows, 3 * (y * size + x));
  }
  const all = new Uint8Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) weigh(weights[y], rows, 3 * x, 3 * size, all, 3 * (y * size + x));
  }
  return all;
}

/** The three colours of one pixel: of those that begin at `start` and lie `step` apart, weighed. */
function weigh({ first, values }, from, start, step, to, place) {
  for (let colour = 0; colour < 3; colour++) {
    let sum = 1 << (BITS - 1); // rounds to the nearest
    let at = start + first * step + colour;
    for (const weight of values) {
      sum += weight * from[at];
      at += step;
    }
    to[place + colour] = sum >> BITS; // weights add up to 1, so that no clipping is needed; Uint8Array would wrap
  }
}

/** For each of `to` places, where its triangle begins among `from` pixels, and its weights as whole numbers. */
function weightsOf(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1); // a smaller picture averages all pixels, a larger one lies between two
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), from);
    const triangle = Array.from({ length: last - first }, (_, i) =>
      Math.max(1 - Math.abs((first + i - centre + 0.5) * (1 / support)), 0),
    );
    const share = 1 / triangle.reduce((sum, weight) => sum + weight, 0);
    return { first, values: triangle.map((weight) => Math.floor(0.5 + weight * share * (1 << BITS))) };
  });
}
