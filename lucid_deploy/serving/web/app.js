"use strict";
// The web page of `lucid-deploy serve`. It sends requests only to the server it was loaded from, and inserts what it
// receives as text, never as markup.

const ALTERNATIVES = 4;
const LEAST_FOR_RATE = 5; // tokens; fewer may all arrive at once
const find = (id) => document.getElementById(id);

let apiKey = ""; // kept in memory, never stored
let model = "";
let messages = [];
let running = null; // the AbortController of the answer that is being generated

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const options = { headers: apiKey ? { Authorization: `Bearer ${apiKey}` } : {}, signal };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
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
    // the body is not this server's error JSON, but for example the page of a proxy
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

// ---- startup

async function start() {
  clearError();
  setState("loading");
  try {
    const found = (await (await request("/v1/models")).json()).data[0];
    model = found.id;
    find("model").textContent = `${model}, context of ${found.max_model_len} tokens`;
    find("key-form").hidden = true;
    if (found.has_chat_template === null) { // unknown until a process that reads requests has started
      setTimeout(start, 500);
      return;
    }
    setMode(found.has_chat_template ? "chat" : "completion", found.has_chat_template);
    setState("ready");
  } catch (error) {
    setState("failed");
    find("model").textContent = "";
    showError(error);
  }
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

// ---- requests and answers

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
  // Return the text of a chunk, and its tokens with their log-probabilities.
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
  setState("busy", "Generating …");
  running = new AbortController();
  const clock = { sent: performance.now(), first: null, last: null, count: 0 };
  const said = { text: "" };
  const conversation = messages; // `messages` is replaced if the user clears the page meanwhile
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
    setState("ready", error.name === "AbortError" ? "Stopped." : "");
    if (error.name !== "AbortError") {
      showError(error);
      if (!said.text && chat) {
        while (find("conversation").childElementCount > turns) find("conversation").lastChild.remove();
        find("prompt").value = text;
      }
    }
  }
  running = null;
  if (chat && said.text) conversation.push({ role: "user", content: text }, { role: "assistant", content: said.text });
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
    const rest = others.length ? `; alternatives: ${others.map(([text, p]) => `${quoted(text)} ${percent(p)}`).join(", ")}` : "";
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

// ---- event handlers

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

start();
