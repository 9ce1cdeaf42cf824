// The page: one photo, the maps of its classes, and how they are shown. All state is here; drawing is in heatmap.js.

import { COLORMAPS } from "./colormaps.js";
import { decodeMap, draw } from "./heatmap.js";
import * as service from "./service.js";

const byId = (id) => document.getElementById(id);
const LONGEST = 1600; // of a canvas; larger photos are drawn smaller
const TOPK = 5;
const UNITS = ["A", "B"];

const state = {
  model: "",
  loading: Promise.resolve(), // until what is known of the model is here
  classes: 0, // how many the model has
  explains: "any", // which of them: "any"; "fixed", as a package was made; or "target", one that is named
  file: null, // as it is sent
  photo: null, // as it is drawn
  maps: new Map(), // by class: what the service answered
  best: [],
  shown: [null, null], // the classes of the two panels
  request: 0, // answers to older requests are dropped
};

// ---- talking to the service

async function start() {
  const models = await service.listModels();
  byId("model").replaceChildren(...models.map((name) => new Option(name)));
  await chooseModel(models[0]);
}

async function chooseModel(name) {
  state.model = name;
  state.loading = loadModel(name);
  await state.loading;
  await explainPhoto();
}

async function loadModel(name) {
  const [facts, layers, classes] = await Promise.all([
    service.describe(name),
    service.listLayers(name),
    service.listClasses(name),
  ]);
  byId("model-facts").textContent = `${facts.title}, input ${facts.input.join("x")}`;
  byId("method").replaceChildren(...facts.methods.map((method) => new Option(method)));
  byId("layer").replaceChildren(
    ...layers.map((layer) => {
      const grid = layer.grid.length ? `, ${layer.grid.join("x")}` : "";
      const option = new Option(`${layer.name}${grid}${layer.default ? " (found)" : ""}`, layer.default ? "" : layer.name);
      option.selected = layer.default;
      return option;
    })
  );
  byId("class-names").replaceChildren(...classes.map((label) => new Option(label)));
  state.classes = classes.length;
  state.explains = facts.explains;
  byId("other-form").hidden = state.explains === "fixed";
}

function choices() {
  return { method: byId("method").value, layer: byId("layer").value };
}

// Explains the most probable classes of the photo, and the other classes that are shown.
async function explainPhoto() {
  if (!state.file) return;
  await state.loading;
  const kept = state.shown.filter((number) => number !== null);
  const answer = await ask(await firstQuestion());
  if (!answer) return;
  state.maps.clear();
  state.best = answer.prediction.classes;
  keep(answer.explanation);
  for (const number of kept) {
    if (state.maps.has(number)) continue;
    const other = await ask({ target: number });
    if (!other) return;
    keep(other.explanation);
  }
  if (!state.maps.has(state.shown[0])) state.shown[0] = answer.explanation.maps[0].class;
  show();
  say(`Most probable: ${state.best[0].name}, ${confidence(state.best[0])}`);
}

// What is asked of a photo that has just come: the most probable classes, as many as the model explains at once.
async function firstQuestion() {
  if (state.explains === "any") return { topk: Math.min(TOPK, state.classes) };
  if (state.explains === "fixed") return {};
  return { target: (await service.predict(state.model, state.file)).classes[0].class };
}

function keep(explanation) {
  for (const map of explanation.maps) {
    state.maps.set(map.class, { ...map, ...explanation, map: decodeMap(map.map) });
  }
}

// One request; null if a newer one was made meanwhile.
async function ask(question) {
  const request = ++state.request;
  say("Explaining ...");
  const answer = await service.explain(state.model, state.file, { ...choices(), ...question });
  return request === state.request ? answer : null;
}

async function explainOther(text) {
  const answer = await ask({ target: text });
  if (!answer) return;
  keep(answer.explanation);
  const { class: number, name } = answer.explanation.maps[0];
  choose(number);
  say(`Explained ${name}`);
}

// ---- the photo

async function open(file) {
  state.photo = await readPhoto(file);
  state.file = file;
  state.shown = [null, null];
  state.maps.clear();
  byId("compare").checked = false;
  await explainPhoto();
}

async function readPhoto(file) {
  let photo;
  try {
    photo = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error("This browser cannot show that file; choose a JPEG, PNG, WebP, AVIF or GIF.");
  }
  const scale = Math.min(1, LONGEST / Math.max(photo.width, photo.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(photo.width * scale)), Math.max(1, Math.round(photo.height * scale)));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // transparency is laid over white, as the service does it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// ---- showing

function confidence({ probability, score }) {
  return probability === null ? `score ${score.toPrecision(3)}` : `${(100 * probability).toFixed(1)} %`;
}

function choose(number) {
  if (!state.maps.has(number)) return attempt(() => explainOther(number));
  state.shown[byId("compare").checked ? 1 : 0] = number;
  show();
}

function show() {
  byId("panels").hidden = byId("controls").hidden = false;
  showClasses();
  drawPanels();
}

function showClasses() {
  const others = [...state.maps.values()].filter((map) => !state.best.some((best) => best.class === map.class));
  const focused = document.activeElement?.dataset?.class;
  byId("classes").replaceChildren(
    ...[...state.best, ...others].map((entry) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.class = entry.class;
      button.disabled = state.explains === "fixed" && !state.maps.has(entry.class);
      button.setAttribute("aria-pressed", state.shown.includes(entry.class));
      button.style.setProperty("--share", `${100 * (entry.probability ?? 0)}%`);
      const [name, share] = [document.createElement("span"), document.createElement("span")];
      name.textContent = entry.name;
      share.textContent = confidence(entry);
      button.append(name, share);
      button.addEventListener("click", () => choose(entry.class));
      const item = document.createElement("li");
      item.append(button);
      return item;
    })
  );
  if (focused) byId("classes").querySelector(`[data-class="${focused}"]`)?.focus();
}

function drawPanels() {
  const colours = COLORMAPS[byId("colormap").value];
  const opacity = byId("opacity").value / 100;
  state.shown.forEach((number, index) => {
    const panel = byId(`panel-${UNITS[index].toLowerCase()}`);
    const entry = state.maps.get(number);
    panel.hidden = !entry;
    if (!entry) return;
    const canvas = panel.querySelector("canvas");
    draw(canvas, state.photo, { map: entry.map, box: entry.box, photoSize: entry.size, colours, opacity });
    const caption = `${entry.name}, ${confidence(entry)}${entry.valid ? "" : " (empty map: nothing in favour of this class)"}`;
    panel.querySelector("figcaption").textContent = caption;
    canvas.setAttribute("aria-label", `Photo with the heatmap of ${caption}; ${hottest(entry.map)}`);
  });
  drawScale(colours);
}

// Where a map is hottest, in words, for those who do not see it.
function hottest({ width, height, values }) {
  const at = values.indexOf(Math.max(...values));
  const third = (place, size, names) => names[Math.min(2, Math.floor((3 * (place + 0.5)) / size))];
  const row = third(Math.floor(at / width), height, ["upper", "middle", "lower"]);
  return `hottest in the ${row} ${third(at % width, width, ["left", "centre", "right"])}`;
}

function drawScale(colours) {
  const row = new ImageData(256, 1);
  for (let level = 0; level < 256; level++) {
    row.data.set(colours.subarray(3 * level, 3 * level + 3), 4 * level);
    row.data[4 * level + 3] = 255;
  }
  byId("scale").getContext("2d").putImageData(row, 0, 0);
}

function download(index) {
  const entry = state.maps.get(state.shown[index]);
  const canvas = byId(`panel-${UNITS[index].toLowerCase()}`).querySelector("canvas");
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${(state.file.name || "photo").replace(/\.[^.]*$/, "")}-gradcam-${entry.class}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}

function say(text) {
  byId("status").textContent = text;
}

// ---- events

// Runs what an event asks for, and shows what goes wrong.
async function attempt(action) {
  byId("error").textContent = "";
  try {
    await action();
  } catch (error) {
    if (error instanceof service.KeyNeeded) byId("key-form").hidden = false;
    byId("error").textContent = error.message;
    say("");
  }
}

const imageIn = (files) => [...files].find((file) => file.type.startsWith("image/")) ?? files[0];

byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) attempt(() => open(file));
  event.target.value = ""; // the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  const file = imageIn(event.clipboardData?.files ?? []);
  if (file) attempt(() => open(file));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const file = imageIn(event.dataTransfer.files);
  if (file) attempt(() => open(file));
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  service.useKey(byId("key").value);
  byId("key-form").hidden = true;
  attempt(start);
});
byId("other-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("other").value.trim();
  if (text) attempt(() => explainOther(text));
});
byId("compare").addEventListener("change", (event) => {
  byId("compare-hint").hidden = !event.target.checked;
  if (!event.target.checked) state.shown[1] = null;
  show();
});
byId("model").addEventListener("change", (event) => {
  state.shown = [null, null];
  attempt(() => chooseModel(event.target.value));
});
for (const id of ["method", "layer"]) byId(id).addEventListener("change", () => attempt(explainPhoto));
byId("opacity").addEventListener("input", (event) => {
  byId("opacity-value").textContent = `${event.target.value} %`;
  drawPanels();
});
byId("colormap").replaceChildren(...Object.keys(COLORMAPS).map((name) => new Option(name)));
byId("colormap").addEventListener("change", drawPanels);
UNITS.forEach((unit, index) =>
  byId(`panel-${unit.toLowerCase()}`).querySelector(".download").addEventListener("click", () => download(index))
);

attempt(start);
