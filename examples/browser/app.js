// The page: loads the artifact that ?artifact=… names (artifact/ if it names none) and streams answers.
// ?device=wasm or webgpu chooses the device.

import { Model } from "./lucid.js";

const at = (id) => document.getElementById(id);
const say = (state, text) => {
  document.body.dataset.state = state;
  at("status").textContent = text;
};

async function start() {
  const query = new URLSearchParams(location.search);
  const folder = new URL((query.get("artifact") ?? "artifact/").replace(/\/*$/, "/"), location.href);
  const model = await Model.load(folder, query.get("device"), (text) => say("loading", text));
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    answer(model).catch(failed);
  });
  at("go").disabled = false;
  say("ready", `Ready: ${model.summary}.`);
}

async function answer(model) {
  at("go").disabled = true;
  at("answer").textContent = "";
  say("running", "Reading the prompt…");
  const begun = performance.now();
  let tokens = 0, first = begun, last = begun;
  for await (const text of model.generate(at("prompt").value, at("count").valueAsNumber || 32)) {
    last = performance.now();
    if (tokens++ === 0) first = last;
    at("answer").textContent = text;
    await new Promise((painted) => setTimeout(painted)); // lets the page show it
  }
  const rate = tokens > 1 ? `, ${((tokens - 1) / ((last - first) / 1000)).toFixed(1)} tokens per second` : "";
  say("done", `${tokens} tokens${rate}; the first after ${(first - begun).toFixed(0)} ms; ${model.device}.`);
  at("go").disabled = false;
}

function failed(error) {
  say("failed", error.message);
  at("go").disabled = false;
}

start().catch(failed);
