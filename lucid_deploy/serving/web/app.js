"use strict";
// The page of `lucid-deploy serve`. It talks to the server that it came from, and to nobody else. What the server sends
// goes into the page as text only, never as markup.

const ALTERNATIVES = 4;
const STRONGEST = 8;
const LEAST_FOR_RATE = 5; // tokens; fewer may all come at once
const find = (id) => document.getElementById(id);

let apiKey = ""; // in memory only
let model = "";
let messages = [];
let running = null; // what aborts the answer that runs
let lastText = "";

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  return apiKey ? { ...more, Authorization: `Bearer ${apiKey}` } : more;
}

async function request(path, body, signal) {
  const options = { headers: headers(), signal };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = headers({ "Content-Type": "application/json" });
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  if (answer.ok) return answer;
  let message = `The server answered with status ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // not one of its own errors, such as a proxy's page
  }
  throw new ServerError(message, answer.status);
}

function showError(error) {
  find("error").textContent = error.message;
  find("error").hidden = false;
  if (error.status === 401) find("key-form").hidden = false;
}

function clearError() {
  find("error").hidden = true;
  find("error").textContent = "";
}

function setState(state, text = "") {
  document.body.dataset.state = state;
  find("status").textContent = text;
  find("send").disabled = state !== "ready";
  find("stop").disabled = state !== "busy";
}

// ---- the start

async function start() {
  clearError();
  setState("loading");
  try {
    const found = (await (await request("/v1/models")).json()).data[0];
    model = found.id;
    find("model").textContent = `${model}, context of ${found.max_model_len} tokens`;
    find("key-form").hidden = true;
    if (found.has_chat_template === null) { // the server has just started
      setTimeout(start, 500);
      return;
    }
    setMode(found.has_chat_template ? "chat" : "completion", found.has_chat_template);
    setState("ready");
  } catch (error) {
    setState("failed");
    find("model").textContent = "";
    showError(error);
    return;
  }
  await loadLayers();
}

function setMode(mode, canChat) {
  find("mode-chat").disabled = canChat === false;
  find("no-chat").hidden = canChat !== false;
  find(`mode-${mode}`).checked = true;
  document.body.dataset.mode = mode;
  find("prompt-label").textContent = mode === "chat" ? "Your message" : "Text to continue";
  clearConversation();
}

function clearConversation() {
  messages = [];
  find("conversation").replaceChildren();
  find("rate").textContent = "";
}

// ---- asking and answering

function number(id) {
  const text = find(id).value.trim();
  return text === "" ? undefined : Number(text);
}

function sampling() {
  const stop = find("stop-text").value;
  return {
    model,
    temperature: number("temperature"),
    top_p: number("top-p"),
    top_k: number("top-k"),
    seed: number("seed"),
    stop: stop || undefined,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function chatBody(text) {
  const system = find("system").value.trim();
  const opening = system ? [{ role: "system", content: system }] : [];
  const wanted = find("logprobs").checked ? { logprobs: true, top_logprobs: ALTERNATIVES } : {};
  const all = [...opening, ...messages, { role: "user", content: text }];
  return { ...sampling(), messages: all, max_completion_tokens: number("max-tokens"), ...wanted };
}

function completionBody(text) {
  const wanted = find("logprobs").checked ? { logprobs: ALTERNATIVES } : {};
  return { ...sampling(), prompt: text, max_tokens: number("max-tokens"), ...wanted };
}

function piecesOf(choice) {
  // What a chunk says: its text, and its tokens with their probabilities.
  if (choice.delta !== undefined) {
    const items = choice.logprobs?.content ?? [];
    const tokens = items.map((item) => ({
      token: item.token,
      logprob: item.logprob,
      top: item.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
    return { text: choice.delta.content ?? "", tokens };
  }
  const found = choice.logprobs;
  const tokens = (found?.tokens ?? []).map((token, i) => ({
    token,
    logprob: found.token_logprobs[i],
    top: Object.entries(found.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
  return { text: choice.text ?? "", tokens };
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError("The connection ended in the middle of the answer.", 0);
    held += value;
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
      const data = held.slice(0, end).replace(/^data: /, "");
      held = held.slice(end + 2);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message, 200);
      yield event;
    }
  }
}

function addTurn(who, text) {
  const turn = document.createElement("div");
  turn.className = "turn";
  const name = document.createElement("span");
  name.className = "who";
  name.textContent = who;
  const body = document.createElement("span");
  body.className = "text";
  body.textContent = text;
  turn.append(name, body);
  find("conversation").append(turn);
  return body;
}

function addPiece(body, text, tokens) {
  const joined = tokens.map((each) => each.token).join("");
  if (tokens.length > 1 && joined === text) {
    for (const each of tokens) body.append(span(each.token, [each]));
  } else body.append(tokens.length ? span(text, tokens) : text);
  const log = find("conversation");
  log.scrollTop = log.scrollHeight;
}

function span(text, tokens) {
  const made = document.createElement("span");
  const least = Math.exp(Math.min(...tokens.map((each) => each.logprob)));
  made.className = `token${least < 0.1 ? " p2" : least < 0.5 ? " p1" : ""}`;
  made.textContent = text;
  made.tokens = tokens;
  return made;
}

async function ask(text) {
  const chat = document.body.dataset.mode === "chat";
  clearError();
  setState("busy", "The model answers.");
  running = new AbortController();
  const clock = { sent: performance.now(), first: null, last: null, count: 0 };
  const said = { text: "" };
  const turns = find("conversation").childElementCount;
  try {
    const path = chat ? "/v1/chat/completions" : "/v1/completions";
    const answer = await request(path, chat ? chatBody(text) : completionBody(text), running.signal);
    if (!chat) clearConversation();
    addTurn(chat ? "You" : "Text", text);
    find("prompt").value = chat ? "" : text;
    await take(answer, addTurn("Model", ""), clock, said);
    setState("ready", "The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") setState("ready", "Stopped.");
    else {
      setState("ready");
      showError(error);
      if (!said.text && chat) {
        while (find("conversation").childElementCount > turns) find("conversation").lastChild.remove();
        find("prompt").value = text;
      }
    }
  }
  running = null;
  if (chat && said.text) messages.push({ role: "user", content: text }, { role: "assistant", content: said.text });
  lastText = chat ? `${text} ${said.text}` : `${text}${said.text}`;
  find("prompt").focus();
}

async function take(answer, body, clock, said) {
  for await (const event of events(answer)) {
    if (event.usage) clock.count = event.usage.completion_tokens;
    const choice = event.choices[0];
    if (choice === undefined) continue;
    const { text, tokens } = piecesOf(choice);
    if (text || tokens.length) {
      clock.last = performance.now();
      clock.first ??= clock.last;
      clock.count += tokens.length || 1;
      said.text += text;
      addPiece(body, text, tokens);
    }
    showRate(clock);
  }
  showRate(clock);
}

function showRate(clock) {
  if (clock.first === null) return;
  const seconds = (clock.last - clock.first) / 1000;
  const rate = clock.count >= LEAST_FOR_RATE && seconds > 0 ? `, ${((clock.count - 1) / seconds).toFixed(1)} tokens/s` : "";
  find("rate").textContent = `${clock.count} tokens, first after ${(clock.first - clock.sent).toFixed(0)} ms${rate}`;
}

// ---- probabilities of tokens

function quoted(text) {
  return `“${text.replaceAll("\n", "⏎")}”`;
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return `${share >= 99.95 ? "100" : share < 0.1 ? "below 0.1" : share.toFixed(1)} %`;
}

function select(token) {
  for (const other of document.querySelectorAll(".token.selected")) other.classList.remove("selected");
  token.classList.add("selected");
  const said = token.tokens.map((each) => {
    const others = each.top.filter(([text]) => text !== each.token);
    const rest = others.length ? `; instead ${others.map(([text, p]) => `${quoted(text)} ${percent(p)}`).join(", ")}` : "";
    return `${quoted(each.token)} ${percent(each.logprob)}${rest}`;
  });
  find("token-info").textContent = said.join(" · ");
}

function step(by) {
  const all = [...document.querySelectorAll("#conversation .token")];
  if (!all.length) return;
  const at = all.findIndex((each) => each.classList.contains("selected"));
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + by));
  select(all[next]);
  all[next].scrollIntoView({ block: "nearest" });
}

// ---- the picture of the solve

const solve = { layers: [], found: null, cell: 0, left: 0, at: null };

async function loadLayers() {
  try {
    const found = await (await request("/v1/lucid/solve")).json();
    solve.layers = found.data;
    find("solve-status").textContent = found.data.length ? `At most ${found.max_tokens} tokens.` : "";
  } catch (error) {
    solve.layers = [];
    find("no-solve").textContent = error.message;
    find("no-solve").hidden = false;
    find("solve-form").hidden = true;
    return;
  }
  const some = solve.layers.length > 0;
  find("solve-form").hidden = !some;
  find("no-solve").hidden = some;
  find("no-solve").textContent =
    "No layer of this model solves a system: layers of standard attention and layers over a window cache V itself.";
  const names = solve.layers.map(({ layer }) => new Option(String(layer), String(layer)));
  find("layer").replaceChildren(...names);
  listHeads();
}

function listHeads() {
  const chosen = solve.layers.find(({ layer }) => String(layer) === find("layer").value);
  const heads = Array.from({ length: chosen?.heads ?? 0 }, (_, head) => new Option(String(head), String(head)));
  find("head").replaceChildren(...heads);
  find("draw").disabled = false;
}

async function drawSolve() {
  clearError();
  find("draw").disabled = true;
  find("solve-status").textContent = "Computing …";
  try {
    const body = { model, prompt: find("solve-text").value, layer: number("layer"), head: number("head") };
    solve.found = await (await request("/v1/lucid/solve", body)).json();
    solve.at = null;
    const { ids, layer, head, diagonal } = solve.found;
    const divided = diagonal.some((value) => value !== 1) ? " Row i is divided by its diagonal, as in training." : "";
    find("solve-status").textContent = `${ids.length} tokens, layer ${layer}, head ${head}.${divided}`;
    showPicture();
  } catch (error) {
    find("solve-status").textContent = error.message;
    if (error.status === 401) showError(error);
  }
  find("draw").disabled = false;
}

function weight(i, j) {
  return solve.found[find("what").value][i][j];
}

function pairs() {
  // All pairs of a token and an earlier one, the strongest first.
  const all = [];
  for (let i = 0; i < solve.found.ids.length; i++) for (let j = 0; j < i; j++) all.push([i, j, weight(i, j)]);
  return all.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
}

function colours() {
  const style = getComputedStyle(document.body);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return {
    ink: style.getPropertyValue("--ink"),
    line: style.getPropertyValue("--line"),
    panel: style.getPropertyValue("--panel"),
    positive: dark ? "120, 180, 255" : "8, 70, 150",
    negative: dark ? "255, 150, 110" : "176, 50, 10",
  };
}

function fill(value, most, colour) {
  const share = most > 0 ? Math.min(1, Math.abs(value) / most) : 0;
  return `rgba(${value < 0 ? colour.negative : colour.positive}, ${share.toFixed(4)})`;
}

function showPicture() {
  const strongest = pairs();
  const most = strongest.length ? Math.abs(strongest[0][2]) : 0;
  find("figure").hidden = false;
  paint(most);
  paintLegend(most);
  listStrongest(strongest.slice(0, STRONGEST));
  describeCell();
}

function paint(most) {
  const n = solve.found.ids.length;
  const canvas = find("picture");
  const room = Math.min(900, find("solve-section").clientWidth);
  const names = solve.found.tokens.map((text) => text.replaceAll("\n", "⏎").slice(0, 12));
  solve.left = room / n >= 14 ? 88 : 0;
  solve.cell = Math.max(3, Math.min(26, Math.floor((room - solve.left - 2) / n)));
  const width = solve.left + n * solve.cell + 2;
  const height = n * solve.cell + 2 + solve.left;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const colour = colours();
  paintCells(pen, n, most, colour);
  if (solve.left) paintNames(pen, names, n, colour);
  if (solve.at) {
    pen.strokeStyle = colour.ink;
    pen.lineWidth = 2;
    pen.strokeRect(solve.left + solve.at[1] * solve.cell, solve.at[0] * solve.cell, solve.cell, solve.cell);
  }
}

function paintCells(pen, n, most, colour) {
  const { cell, left } = solve;
  const gap = cell > 6 ? 1 : 0;
  for (let i = 0; i < n; i++) {
    pen.fillStyle = colour.panel;
    pen.fillRect(left, i * cell, i * cell, cell - gap);
    for (let j = 0; j < i; j++) {
      pen.fillStyle = fill(weight(i, j), most, colour);
      pen.fillRect(left + j * cell, i * cell, cell - gap, cell - gap);
    }
    pen.fillStyle = colour.line;
    pen.fillRect(left + i * cell, i * cell, cell - gap, cell - gap);
  }
}

function paintNames(pen, names, n, colour) {
  const { cell, left } = solve;
  pen.fillStyle = colour.ink;
  pen.font = `${Math.min(13, cell - 2)}px system-ui, sans-serif`;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  names.forEach((name, i) => pen.fillText(name, left - 6, (i + 0.5) * cell, left - 8));
  names.forEach((name, j) => {
    pen.save();
    pen.translate(left + (j + 0.5) * cell, n * cell + 6);
    pen.rotate(-Math.PI / 2);
    pen.fillText(name, 0, 0, left - 8);
    pen.restore();
  });
}

function paintLegend(most) {
  const signed = find("what").value === "coefficients";
  find("low").textContent = signed ? digits(-most, 3) : "0";
  find("high").textContent = `${most.toFixed(3)} (the diagonal is grey)`;
  const pen = find("scale").getContext("2d");
  const colour = colours();
  pen.clearRect(0, 0, 160, 12);
  for (let x = 0; x < 160; x++) {
    pen.fillStyle = fill(signed ? (x / 159) * 2 - 1 : x / 159, 1, colour);
    pen.fillRect(x, 0, 1, 12);
  }
}

function digits(value, count) {
  return value.toFixed(count).replace("-", "\u2212");
}

function sentence(i, j, value) {
  const [row, column] = [i, j].map((k) => `${quoted(solve.found.tokens[k])} (token ${k})`);
  return find("what").value === "subtracted"
    ? `${row} subtracts ${digits(value, 4)} of Y of ${column}.`
    : `Y of ${row} holds ${digits(value, 4)} of V of ${column}.`;
}

function describeCell() {
  const canvas = find("picture");
  const n = solve.found.ids.length;
  canvas.setAttribute("aria-label", `${find("what").selectedOptions[0].textContent}; ${n} rows and columns`);
  if (!solve.at) {
    find("cell-info").textContent = "Point at a cell, or move with the arrow keys, to read it.";
    return;
  }
  const [i, j] = solve.at;
  find("cell-info").textContent =
    i === j ? `${quoted(solve.found.tokens[i])} (token ${i}): the diagonal.` : sentence(i, j, weight(i, j));
}

function moveTo(i, j) {
  const n = solve.found.ids.length;
  if (!(i >= 0 && j >= 0 && i < n && j <= i)) return;
  solve.at = [i, j];
  const strongest = pairs();
  paint(strongest.length ? Math.abs(strongest[0][2]) : 0);
  describeCell();
}

function listStrongest(strongest) {
  const title = document.createElement("h3");
  title.textContent = "The strongest";
  const list = document.createElement("ol");
  for (const [i, j, value] of strongest) {
    const item = document.createElement("li");
    item.textContent = sentence(i, j, value);
    list.append(item);
  }
  find("strongest").replaceChildren(...(strongest.length ? [title, list] : []));
}

// ---- what the user does

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("prompt").value;
  if (document.body.dataset.state === "ready" && text.trim()) ask(text);
});
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
find("stop").addEventListener("click", () => running?.abort());
find("clear").addEventListener("click", () => {
  running?.abort();
  clearConversation();
  find("prompt").focus();
});
find("modes").addEventListener("change", (event) => {
  running?.abort();
  setMode(event.target.value);
});
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = find("key").value.trim();
  find("key").value = "";
  start();
});
find("conversation").addEventListener("mouseover", (event) => {
  if (event.target.tokens) select(event.target);
});
find("conversation").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  step(by);
});
find("layer").addEventListener("change", listHeads);
find("take-text").addEventListener("click", () => {
  find("solve-text").value = lastText || find("prompt").value;
});
find("solve-form").addEventListener("submit", (event) => {
  event.preventDefault();
  drawSolve();
});
find("what").addEventListener("change", () => solve.found && showPicture());
find("picture").addEventListener("mousemove", (event) => {
  moveTo(Math.floor(event.offsetY / solve.cell), Math.floor((event.offsetX - solve.left) / solve.cell));
});
find("picture").addEventListener("keydown", (event) => {
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
  if (down === undefined) return;
  event.preventDefault();
  const [i, j] = solve.at ?? [solve.found.ids.length - 1, 0];
  moveTo(i + down, Math.min(j + right, i + down));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => solve.found && showPicture());
window.addEventListener("resize", () => solve.found && showPicture());

start();
