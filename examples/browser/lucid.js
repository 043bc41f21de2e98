// An artifact of lucid-deploy in the browser: its graphs in onnxruntime-web, its cache handed from step to step.

import { Tokenizer } from "@huggingface/tokenizers";

let ort; // onnxruntime-web, in the build for the device
const ARRAYS = { float32: Float32Array, float16: globalThis.Float16Array ?? Uint16Array, int8: Int8Array };
const PAST = "past_key_values.", PRESENT = "present.";

export class Model {
  // Load an artifact from a folder's URL. `device` is "webgpu", "wasm", or null for WebGPU where the browser has it;
  // `progress` is called with what is being loaded.
  static async load(folder, device = null, progress = () => {}) {
    const manifest = await fetched(new URL("lucid.json", folder), "json");
    check(manifest, folder);
    device ??= await deviceFor([manifest.dtype, manifest.cache_dtype]);
    ort = await (device === "webgpu" ? import("onnxruntime-web/webgpu") : import("onnxruntime-web"));
    ort.env.wasm.numThreads = 1; // more need headers of the server that isolate the page
    ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
    const tokenizer = new Tokenizer(
      await fetched(new URL("tokenizer.json", folder), "json"),
      // An artifact may have no tokenizer_config.json; the manifest lists the files that exist.
      "tokenizer_config.json" in manifest.files ? await fetched(new URL("tokenizer_config.json", folder), "json") : {},
    );
    progress("Loading weights…");
    const data = new Uint8Array(await fetched(new URL("weights.bin", folder), "arrayBuffer"));
    const sessions = {};
    for (const stage of ["prefill", "decode"]) {
      progress(`Loading the ${stage} graph…`);
      const graph = new Uint8Array(await fetched(new URL(manifest.graphs[stage].file, folder), "arrayBuffer"));
      const options = { executionProviders: [device], externalData: [{ path: "weights.bin", data }] };
      if (device === "webgpu") { // the cache stays on the GPU
        const present = manifest.graphs[stage].outputs.filter(({ name }) => name.startsWith(PRESENT));
        options.preferredOutputLocation = Object.fromEntries(present.map(({ name }) => [name, "gpu-buffer"]));
      }
      sessions[stage] = await ort.InferenceSession.create(graph, options);
    }
    return new Model(manifest, tokenizer, sessions, device);
  }

  constructor(manifest, tokenizer, sessions, device) {
    this.device = { webgpu: "WebGPU", wasm: "WASM" }[device];
    this.config = manifest.config;
    this.tokenizer = tokenizer;
    this.sessions = sessions;
    this.cache = manifest.graphs.prefill.inputs.filter((input) => input.name.startsWith(PAST));
    this.summary = `${manifest.config.num_hidden_layers} layers, ${manifest.dtype}, ${this.device}`;
  }

  // Yield the answer's text so far after each new token, the most probable one each time.
  async *generate(prompt, most) {
    let ids = this.tokenizer.encode(prompt).ids;
    const room = this.config.max_position_embeddings - ids.length;
    if (ids.length === 0) throw new Error("The prompt has no tokens.");
    if (room < 1) throw new Error(`The prompt has ${ids.length} tokens; the model takes ${ids.length + room - 1}.`);
    const answer = [];
    let past = Object.fromEntries(this.cache.map((input) => [input.name, empty(input)]));
    for (let seen = 0; answer.length < Math.min(most, room); ) {
      const stage = seen === 0 ? "prefill" : "decode";
      const found = await this.sessions[stage].run({ ...inputs(ids, seen), ...past });
      seen += ids.length;
      for (const tensor of Object.values(past)) tensor.dispose();
      past = Object.fromEntries(this.cache.map(({ name }) => [name, found[name.replace(PAST, PRESENT)]]));
      const token = best(found.logits, this.config.vocab_size);
      if (this.config.eos_token_ids.includes(token)) break;
      answer.push(token);
      ids = [token];
      yield this.tokenizer.decode(answer, { skip_special_tokens: true });
    }
    for (const tensor of Object.values(past)) tensor.dispose();
  }
}

function check(manifest, folder) {
  if (manifest.format !== "lucid-deploy") throw new Error(`${folder} is no artifact of lucid-deploy.`);
  if (manifest.cache !== "growing") throw new Error("The artifact has a static cache. Export with --cache growing.");
  for (const type of [manifest.dtype, manifest.cache_dtype]) {
    if (!(type in ARRAYS)) throw new Error(`onnxruntime-web has no ${type}. Export with --dtype float32.`);
  }
}

// WebGPU has no int8 tensors, and float16 only where the GPU supports it.
async function deviceFor(types) {
  const adapter = await navigator.gpu?.requestAdapter();
  const has = (type) => type === "float32" || (type === "float16" && adapter.features.has("shader-f16"));
  return adapter && types.every(has) ? "webgpu" : "wasm";
}

async function fetched(url, form) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be loaded: ${response.status} ${response.statusText}.`);
  return response[form]();
}

// The inputs of a step whose tokens stand behind `seen` others, in one batch row without padding.
function inputs(ids, seen) {
  const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  return {
    input_ids: int64(ids),
    attention_mask: int64(Array(seen + ids.length).fill(1)),
    position_ids: int64(ids.map((_, index) => seen + index)),
  };
}

// An empty cache tensor: axes of tokens have the size 0.
function empty({ dtype, shape }) {
  const dims = shape.map((axis) => (typeof axis === "number" ? axis : axis === "batch" ? 1 : 0));
  return new ort.Tensor(dtype, new ARRAYS[dtype](dims.reduce((size, axis) => size * axis, 1)), dims);
}

// The most probable token after the last one.
function best(logits, vocabulary) {
  const last = logits.data.subarray(logits.data.length - vocabulary);
  return last.reduce((top, value, token) => (value > last[top] ? token : top), 0);
}
