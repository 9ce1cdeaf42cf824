// The service that this page came from; never another one.

let key = "";

export class KeyNeeded extends Error {}

export function useKey(given) {
  key = given;
}

async function call(path, options = {}) {
  const headers = { Accept: "application/json", ...(key && { Authorization: `Bearer ${key}` }), ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer.");
  }
  const content = await response.json().catch(() => ({}));
  if (response.status === 401) throw new KeyNeeded(content.error);
  if (!response.ok) throw new Error(content.error || `The service answered with status ${response.status}.`);
  return content;
}

const modelPath = (model) => `/v1/models/${encodeURIComponent(model)}`;

export const listModels = async () => (await call("/v1/models")).models;
export const describe = (model) => call(modelPath(model));
export const listLayers = async (model) => (await call(`${modelPath(model)}/layers`)).layers;
export const listClasses = async (model) => (await call(`${modelPath(model)}/classes`)).classes;

const send = (address, photo) =>
  call(address, { method: "POST", body: photo, headers: { "Content-Type": "application/octet-stream" } });

// The most probable classes of a photo.
export async function predict(model, photo) {
  return (await send(`${modelPath(model)}:predict`, photo)).predictions[0];
}

// The prediction and the maps of a photo. choices: topk or target, method, layer.
export async function explain(model, photo, choices) {
  const address = new URLSearchParams(Object.entries(choices).filter(([, value]) => value !== ""));
  const { predictions, explanations } = await send(`${modelPath(model)}:explain?${address}`, photo);
  return { prediction: predictions[0], explanation: explanations[0] };
}
