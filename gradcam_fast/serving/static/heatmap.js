// Heatmaps drawn from the small maps that the service sends.

// The map of an answer: its bytes as numbers in [0,1], and its shape.
export function decodeMap({ b64, shape: [height, width] }) {
  const bytes = Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0));
  return { height, width, values: Float32Array.from(bytes, (level) => level / 255) };
}

// Where each pixel of an enlarged side lies between two cells, with half-pixel centres, as the service itself resizes.
function places(cells, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const at = Math.min(Math.max(((pixel + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
    const low = Math.min(Math.floor(at), cells - 1);
    return { low, high: Math.min(low + 1, cells - 1), part: at - low };
  });
}

// A map resized bilinearly to width x height and scaled to [0,1]; zeros if it is flat.
export function upsample(map, width, height) {
  const columns = places(map.width, width);
  const full = new Float32Array(width * height);
  let [low, high] = [Infinity, -Infinity];
  places(map.height, height).forEach((row, y) => {
    const [above, below] = [row.low * map.width, row.high * map.width];
    for (let x = 0; x < width; x++) {
      const { low: left, high: right, part } = columns[x];
      const top = map.values[above + left] * (1 - part) + map.values[above + right] * part;
      const bottom = map.values[below + left] * (1 - part) + map.values[below + right] * part;
      const value = top * (1 - row.part) + bottom * row.part;
      full[y * width + x] = value;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  });
  return high > low ? full.map((value) => (value - low) / (high - low)) : full.fill(0);
}

// The last enlargement of each map, so that opacity and colours change without computing it again.
const enlarged = new WeakMap();

function enlargedTo(map, width, height) {
  const last = enlarged.get(map);
  if (last?.width === width && last?.height === height) return last.heatmap;
  const heatmap = upsample(map, width, height);
  enlarged.set(map, { width, height, heatmap });
  return heatmap;
}

// The colours as whole pixels, of which one write each is needed. Browsers run on little-endian machines only.
function palette(colours, opacity) {
  const alpha = Math.round(opacity * 255) << 24;
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const [red, green, blue] = colours.subarray(3 * level, 3 * level + 3);
    return alpha | (blue << 16) | (green << 8) | red;
  });
}

// Draws a photo, and a heatmap in the box of it that the network saw. The box is in pixels of the photo.
export function draw(canvas, photo, { map, box, photoSize, colours, opacity }) {
  canvas.width = photo.width;
  canvas.height = photo.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, 0, 0);
  const scale = photo.width / photoSize[0];
  const [left, top, right, bottom] = box.map((edge) => Math.round(edge * scale));
  const [width, height] = [Math.max(1, right - left), Math.max(1, bottom - top)];
  const heatmap = enlargedTo(map, width, height);
  const layer = new ImageData(width, height);
  const [pixels, colourOf] = [new Uint32Array(layer.data.buffer), palette(colours, opacity)];
  for (let pixel = 0; pixel < heatmap.length; pixel++) pixels[pixel] = colourOf[Math.floor(heatmap[pixel] * 255)];
  const overlay = new OffscreenCanvas(width, height);
  overlay.getContext("2d").putImageData(layer, 0, 0);
  context.drawImage(overlay, left, top);
}
