// Colormaps as tables of 256 colours, each three bytes of red, green and blue.

// Colours at equal distances; those between are interpolated. viridis, inferno and cividis by matplotlib's authors (CC0).
const STOPS = {
  jet: ["00007f", "0000ff", "007fff", "00ffff", "7fff7f", "ffff00", "ff7f00", "ff0000", "7f0000"],
  viridis: ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"],
  inferno: ["000004", "210c4a", "57106e", "8a226a", "bc3754", "e45a31", "f98e09", "f9cb35", "fcffa4"],
  cividis: ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "fee838"],
  gray: ["000000", "ffffff"],
};

function table(stops) {
  const colours = stops.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const bytes = new Uint8Array(3 * 256);
  for (let level = 0; level < 256; level++) {
    const place = (level / 255) * (colours.length - 1);
    const before = Math.min(Math.floor(place), colours.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      const [low, high] = [colours[before][channel], colours[before + 1][channel]];
      bytes[3 * level + channel] = Math.round(low + (high - low) * (place - before));
    }
  }
  return bytes;
}

export const COLORMAPS = Object.fromEntries(Object.entries(STOPS).map(([name, stops]) => [name, table(stops)]));
