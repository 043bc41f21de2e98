// Run an artifact's graphs with onnxruntime's JavaScript packages alone, as a client without this toolkit does.
//
//     node run_graphs.cjs PACKAGE ARTIFACT CASE.json
//
// PACKAGE is onnxruntime-node or onnxruntime-web (WASM). The case is that of run_graphs.py as JSON. Prints a JSON object:
// the version of the runtime and the largest relative error of a step.

const fs = require("fs");
const path = require("path");
const { createRequire } = require("module");

async function open(ort, directory, stage, web) {
  const file = path.join(directory, `${stage}.onnx`);
  if (!web) return ort.InferenceSession.create(file, { intraOpNumThreads: 1 });
  const weights = fs.readFileSync(path.join(directory, "weights.bin"));
  const externalData = [{ path: "weights.bin", data: new Uint8Array(weights) }];
  return ort.InferenceSession.create(new Uint8Array(fs.readFileSync(file)), { externalData, executionProviders: ["wasm"] });
}

function relativeError(found, wanted) {
  let difference = 0, size = 0;
  found.forEach((value, index) => {
    difference += (value - wanted[index]) ** 2;
    size += wanted[index] ** 2;
  });
  return Math.sqrt(difference / size);
}

async function main() {
  const [name, directory, caseFile] = process.argv.slice(2);
  const ort = createRequire(path.join(process.cwd(), "package.json"))(name);
  if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
  const { ids, mask, chunks, logits, cache } = JSON.parse(fs.readFileSync(caseFile, "utf8"));
  const batch = ids.length, length = ids[0].length;
  const stages = {};
  for (const stage of ["prefill", "decode"]) stages[stage] = await open(ort, directory, stage, name === "onnxruntime-web");
  const int64 = (rows) =>
    new ort.Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), [batch, rows[0].length]);
  let past = Object.fromEntries(
    Object.entries(cache).map(([key, shape]) =>
      [key, new ort.Tensor("float32", new Float32Array(shape.reduce((size, axis) => size * axis, 1)), shape)]));
  const prefilled = chunks.reduce((sum, count) => sum + count, 0);
  const steps = [...chunks.map((count) => ["prefill", count]), ...Array(length - prefilled).fill(["decode", 1])];
  let start = 0, worst = 0;
  for (const [number, [stage, count]] of steps.entries()) {
    const end = start + count;
    const positions = mask.map((row) => {
      let seen = -1;
      return row.slice(0, end).map((token) => Math.max((seen += token), 0)).slice(start);
    });
    const found = await stages[stage].run({
      input_ids: int64(ids.map((row) => row.slice(start, end))),
      attention_mask: int64(mask.map((row) => row.slice(0, end))),
      position_ids: int64(positions),
      ...past,
    });
    past = Object.fromEntries(
      Object.keys(past).map((key) => [key, found[key.replace("past_key_values", "present")]]));
    const data = found.logits.data, vocabulary = data.length / batch;
    for (let row = 0; row < batch; row++) {
      const error = relativeError(data.slice(row * vocabulary, (row + 1) * vocabulary), logits[row][number]);
      worst = error <= worst ? worst : error; // NaN stays
    }
    start = end;
  }
  const manifest = path.join(process.cwd(), "node_modules", name, "package.json");
  const version = JSON.parse(fs.readFileSync(manifest, "utf8")).version;
  process.stdout.write(JSON.stringify({ version, error: worst }));
}

main().catch((error) => {
  process.stderr.write(`${error}\n`);
  process.exit(1);
});
