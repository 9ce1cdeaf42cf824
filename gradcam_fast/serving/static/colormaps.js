// Colormaps as tables of 256 colours, each three bytes of red, green and blue.

// Colours at equal distances; those between are interpolated. viridis, inferno and cividis are matplotlib's (CC0).
const STOPS = {
  jet: ["00007f", "0000ff", "007fff", "00ffff", "7fff7f", "ffff00", "ff7f00", "ff0000", "7f0000"],
  viridis: [
    "440154", "481a6c", "472f7d", "414487", "39568c", "31688e", "2a788e", "23888e",
    "1f988b", "22a884", "35b779", "54c568", "7ad151", "a5db36", "d2e21b", "fde725",
  ],
  inferno: [
    "000004", "0c0826", "240c4f", "420a68", "5d126e", "781c6d", "932667", "ae305c",
    "c73e4c", "dd513a", "ed6925", "f8850f", "fca50a", "fac62d", "f2e661", "fcffa4",
  ],
  cividis: [
    "00224e", "002e6c", "1e3a6f", "35456c", "47516c", "575d6d", "666970", "757575",
    "848279", "948e77", "a59c74", "b7a96e", "c8b866", "dbc75a", "eed649", "fee838",
  ],
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
