// The page of `gatelens explore`. One value, `state`, says where every control stands; it is what the server is
// asked for, and what the address keeps. Controls change it by `set`, and are drawn from it by `paint`.
"use strict";

const $ = (id) => document.getElementById(id);
const all = (query, within = document) => [...within.querySelectorAll(query)];
const PAGE = crypto.randomUUID();
const PATIENCE = 500; // ms after which a newer request no longer waits for the one that is running
const QUERIES = { text: "text", gate: "gate", image: "image", answer: "answer" };
const KEYS = { image: "image", gate: "gate", region: "region", outside: "outside", text: "text" };
const SAID = { text: "text after the gate", gate: "the gate", image: "image tokens", answer: "the positions that write the answer", region: "image tokens in the region", outside: "image tokens outside the region" };
const HOW = { mask: "mask: −∞ before the softmax; the row’s other weights grow", zero: "zero: 0 after the softmax; the row’s other weights stay the same" };
const SILENT = "the server does not answer: is gatelens explore still running?";

let setup, defaults, state; // what the server said of the model; the state of a new page; the present one
let result = null; // the last reply that was shown
let sent = 0, shown = 0, running = 0, waiting = false, started = 0; // numbers of requests
let typing = null; // a timer while text is typed
let notice = null; // what is said until a control is moved
let pictures = []; // {id, label, size} of the samples, then of uploads

// --- elements

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const percent = (p) => (p === null ? "–" : p >= 0.9995 ? "100\u00a0%" : p > 0 && p < 0.0005 ? "<0.1\u00a0%" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)}\u00a0%`);
const word = (text) => (text.trim() === "" ? JSON.stringify(text) : text.replace(/^[▁Ġ]/, ""));

// --- the state, and the address that keeps it

function set(change, delay = 0) {
  state = { ...state, ...change };
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(state))
    if (JSON.stringify(value) !== JSON.stringify(defaults[name])) kept.set(name, JSON.stringify(value));
  notice = null;
  delete document.body.dataset.rest;
  history.replaceState(null, "", "#" + kept);
  paint();
  clearTimeout(typing);
  typing = delay ? setTimeout(ask, delay) : null;
  if (!delay) ask();
}

// What a control can hold. Anybody may have written a link, perhaps for another model.
const text = (value) => typeof value === "string";
const below = (n) => (value) => Number.isInteger(value) && value >= 0 && value < n;
const orNull = (fits) => (value) => value === null || fits(value);
const listOf = (fits, n = null) => (value) => Array.isArray(value) && value.every(fits) && (n === null || value.length === n);
const among = (...values) => (value) => values.includes(value);

function fitting() {
  const layer = below(setup.layers), head = below(setup.heads);
  const ends = (value) => listOf(layer, 2)(value) && value[0] <= value[1];
  return {
    picture: text, second: orNull(text), prompt: text, chat: (value) => value === false || (value === true && setup.chat),
    region: orNull(listOf(Number.isFinite, 4)), cut: listOf((cell) => listOf(text, 2)(cell) && Object.hasOwn(QUERIES, cell[0]) && Object.hasOwn(KEYS, cell[1])),
    cut_layers: ends, cut_heads: orNull((value) => listOf(head)(value) && value.length > 0), how: among("mask", "zero"),
    patch: among("off", "gate", "region"), patch_layers: ends, steer: Number.isFinite, toward: text, steer_at: text, steer_layer: layer,
    look_at: orNull(below(2 ** 31)), look_layer: layer, look_head: orNull(head),
  };
}

function fromAddress() {
  const found = { ...defaults }, fits = fitting();
  for (const [name, written] of new URLSearchParams(location.hash.slice(1))) {
    if (!Object.hasOwn(defaults, name)) continue;
    let value;
    try { value = JSON.parse(written); } catch { continue; } // a link that was cut: the control stays as it is
    if (fits[name](value)) found[name] = value;
  }
  return found;
}

// --- requests: one runs at a time, and the newest waits; a slow one is overtaken

function ask() {
  typing = null;
  if (running && performance.now() - started < PATIENCE) {
    waiting = true;
    clearTimeout(ask.timer);
    ask.timer = setTimeout(() => waiting && send(), PATIENCE);
  } else send();
}

async function send() {
  waiting = false;
  clearTimeout(ask.timer);
  const number = ++sent;
  running += 1;
  started = performance.now();
  const begun = started, asked = state;
  $("results").classList.add("waiting");
  let reply;
  try {
    const body = JSON.stringify({ page: PAGE, number, state: asked });
    const response = await fetch("/run", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    reply = await response.json();
  } catch {
    reply = { error: { control: "page", message: SILENT } };
  }
  running -= 1;
  if (reply.server && reply.server !== setup.server) return void location.reload(); // restarted, perhaps with another model
  if (number > shown && !reply.outdated) {
    shown = number;
    sayError(reply.error ?? notice);
    if (reply.error) $("verdict").textContent = "This is the last result: a control has an error.";
    if (reply.result) {
      result = { ...reply.result, state: asked };
      paintResult();
      $("status").textContent = `answered in ${Math.round(performance.now() - begun)} ms`;
    }
    if (number === sent && !waiting && !typing) {
      $("results").classList.toggle("waiting", Boolean(reply.error));
      document.body.dataset.rest = ""; // for tests and scripts that wait until everything is shown
    }
  }
  if (waiting && !running) send();
}

function sayError(error) {
  for (const line of all("[data-error]")) line.hidden = true;
  if (!error) return;
  const line = document.querySelector(`[data-error~="${CSS.escape(error.control)}"]`) ?? document.querySelector('[data-error="page"]');
  line.textContent = error.message;
  line.hidden = false;
}

async function upload(file, control) {
  const failed = (message) => {
    sayError({ control: control === "second" ? "upload-second" : "upload", message });
    document.body.dataset.rest = "";
  };
  delete document.body.dataset.rest;
  if (file.size > setup.largest_upload)
    return failed(`${file.name} is larger than ${setup.largest_upload / 2 ** 20} MiB: give a smaller one`);
  let reply;
  try {
    reply = await (await fetch(`/pictures?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();
  } catch {
    return failed(SILENT);
  }
  if (reply.error) return failed(reply.error.message);
  addPicture({ ...reply, label: file.name });
  set(control === "second" ? { second: reply.id } : newPicture(reply.id));
}

// --- controls that are drawn once the model is known

const isSample = (prompt) => setup.samples.some((one) => one.prompt === prompt);

function newPicture(id) {
  const sample = setup.samples.find((one) => one.id === id);
  const asked = sample && isSample(state.prompt) ? { prompt: sample.prompt } : {}; // the user's own text stays
  return { picture: id, region: null, look_at: null, ...asked };
}

const address = (id) => `/pictures/${encodeURIComponent(id)}`;
const size = () => pictures.find((one) => one.id === state.picture)?.size ?? [1, 1];

function addPicture(added) {
  pictures = [...pictures.filter((one) => one.id !== added.id), added];
  drawPictures();
}

// A link may name pictures that were uploaded before. They are here as long as the server runs; else samples stand in.
async function withUploads(found) {
  const gone = [];
  for (const control of ["picture", "second"]) {
    const id = found[control];
    if (id === null || pictures.some((one) => one.id === id)) continue;
    let about;
    try { about = await (await fetch(`${address(id)}/about`)).json(); } catch { about = { error: { message: SILENT } }; }
    if (!about.error) addPicture({ id, ...about });
    else {
      gone.push({ control, message: about.error.message });
      found = { ...found, [control]: defaults[control], region: null, look_at: null };
    }
  }
  return [found, gone[0]];
}

function drawPictures() {
  for (const [box, control] of [["pictures", "picture"], ["seconds", "second"]]) {
    const choose = (id) => (control === "picture" ? set(newPicture(id)) : set({ second: state.second === id ? null : id }));
    const buttons = pictures.map(({ id, label }) =>
      make("button", { type: "button", "data-id": id, title: label, onclick: () => choose(id) },
        make("img", { src: address(id), alt: label || id })));
    const input = make("input", { type: "file", accept: "image/*", "aria-label": `Upload a ${control === "second" ? "second " : ""}picture`,
      onchange: (event) => { if (event.target.files[0]) upload(event.target.files[0], control); event.target.value = ""; } });
    $(box).replaceChildren(...buttons, make("span", { class: "upload", title: "Upload a picture" }, "+", input));
  }
}

function drawControls() {
  document.title = `${setup.model} · gatelens explorer`;
  $("model").textContent = `${setup.model} · ${setup.family}, ${setup.layers} layers, ${setup.heads} heads`;
  const layers = [...Array(setup.layers).keys()];
  for (const id of ["look_layer", "steer_layer"]) {
    $(id).replaceChildren(...layers.map((n) => make("option", { value: n }, n)));
    $(id).addEventListener("change", () => set({ [id]: Number($(id).value) }));
  }
  const heads = [...Array(setup.heads).keys()];
  $("look_head").replaceChildren(make("option", { value: "" }, "mean"), ...heads.map((n) => make("option", { value: n }, n)));
  $("look_head").addEventListener("change", () => set({ look_head: $("look_head").value === "" ? null : Number($("look_head").value) }));
  $("tiles").addEventListener("change", paintResult);
  drawMatrix();
  for (const box of all("[data-range]")) drawRange(box);
  for (const box of all("[data-choice]")) box.addEventListener("change", (event) => set({ [box.dataset.choice]: event.target.value }));
  $("cut_heads").replaceChildren(make("span", {}, "Heads"), make("button", { type: "button", "data-head": "all", onclick: () => set({ cut_heads: null }) }, "all"),
    ...heads.map((n) => make("button", { type: "button", "data-head": n, onclick: () => toggleHead(n) }, n)));
  $("toward").replaceChildren(make("option", { value: "second" }, "second picture"), ...setup.labels.map((one) => make("option", { value: `class:${one}` }, `class ${one}`)));
  $("toward").addEventListener("change", () => set({ toward: $("toward").value }));
  $("steer").addEventListener("input", () => set({ steer: Number($("steer").value) }));
  $("undose").addEventListener("click", () => set({ steer: 0 }));
  $("steer_at").addEventListener("input", () => set({ steer_at: $("steer_at").value || "gate" }, 250));
  $("prompt").addEventListener("input", () => set({ prompt: $("prompt").value, look_at: null }, 250));
  const asked = [...new Set(setup.samples.map((one) => one.prompt))].map((text) => make("option", { value: text }, text));
  $("prompts").replaceChildren(make("option", { value: "", hidden: true }, ""), ...asked);
  $("prompts").addEventListener("change", () => { set({ prompt: $("prompts").value, look_at: null }); $("prompts").value = ""; });
  $("chat-label").hidden = !setup.chat;
  $("chat").addEventListener("change", () => set({ chat: $("chat").checked, look_at: null }));
  $("reset").addEventListener("click", () => set({ cut: [], patch: "off", steer: 0 }));
  $("copy").addEventListener("click", copyPython);
  $("clear").addEventListener("click", () => set({ region: null }));
  for (const input of all("[data-edge]")) input.addEventListener("change", typedRegion);
}

function drawMatrix() {
  const [head, body] = [$("matrix").tHead, $("matrix").tBodies[0]];
  head.replaceChildren(make("tr", {}, make("td", { class: "note" }, "from ↓ to →"), ...Object.entries(KEYS).map(([key, name]) => make("th", { scope: "col", title: SAID[key] }, name))));
  body.replaceChildren(...Object.entries(QUERIES).map(([query, name]) => make("tr", {}, make("th", { scope: "row", title: SAID[query] }, name),
    ...Object.keys(KEYS).map((key) => make("td", {}, make("button", { type: "button", "data-cell": `${query}-${key}`, "aria-label": `${query} to ${KEYS[key]}`, onclick: () => toggleCell(query, key) }))))));
}

function toggleCell(query, key) {
  const others = state.cut.filter(([q, k]) => q !== query || k !== key);
  set({ cut: others.length < state.cut.length ? others : [...state.cut, [query, key]] });
}

function toggleHead(n) {
  const chosen = new Set(state.cut_heads ?? []);
  if (!chosen.delete(n)) chosen.add(n);
  set({ cut_heads: chosen.size ? [...chosen].sort((a, b) => a - b) : null });
}

function drawRange(box) {
  const field = box.dataset.range, what = field === "cut_layers" ? "knocked out" : "patched";
  const ends = ["First", "Last"].map((end, i) => make("input", { type: "range", min: 0, max: setup.layers - 1, step: 1, "aria-label": `${end} layer that is ${what}`,
    oninput: (event) => {
      const pair = [...state[field]];
      pair[i] = Number(event.target.value);
      pair[1 - i] = i ? Math.min(pair[0], pair[1]) : Math.max(pair[0], pair[1]); // one end pushes the other
      set({ [field]: pair });
    } }));
  box.replaceChildren(make("output", {}), make("div", {}, ...ends));
}

// --- drawing the state

function paint() {
  for (const id of ["look_layer", "steer_layer", "toward"]) $(id).value = String(state[id]);
  $("look_head").value = state.look_head === null ? "" : String(state.look_head);
  for (const id of ["prompt", "steer_at"]) if (document.activeElement !== $(id)) $(id).value = state[id];
  $("chat").checked = state.chat;
  $("steer").value = state.steer;
  $("dose").textContent = Number(state.steer).toFixed(1).replace("-", "−");
  for (const box of all("[data-choice]")) for (const input of all("input", box)) input.checked = input.value === state[box.dataset.choice];
  for (const box of all("[data-range]")) paintRange(box, state[box.dataset.range]);
  for (const button of all("[data-cell]")) paintCell(button);
  $("how-note").textContent = HOW[state.how];
  for (const button of all("[data-head]")) {
    const n = button.dataset.head;
    button.setAttribute("aria-pressed", n === "all" ? state.cut_heads === null : Boolean(state.cut_heads?.includes(Number(n))));
  }
  for (const [box, chosen] of [["pictures", state.picture], ["seconds", state.second]])
    for (const button of all("[data-id]", $(box))) button.setAttribute("aria-pressed", button.dataset.id === chosen);
  if ($("picture").getAttribute("src") !== address(state.picture)) $("picture").src = address(state.picture);
  $("stage").style.setProperty("--ratio", size()[0] / size()[1]);
  $("overlay").setAttribute("viewBox", `0 0 ${size().join(" ")}`);
  if (result && !ofThisPicture()) { // what is shown is of another picture
    $("overlay").replaceChildren();
    $("hovered").hidden = true;
  }
  $("card-cut").classList.toggle("on", state.cut.length > 0);
  $("card-patch").classList.toggle("on", state.patch !== "off");
  $("card-steer").classList.toggle("on", state.steer !== 0);
  paintRegion(state.region);
}

// A cell with nothing to cut cannot be switched on; one that is on can always be switched off.
function paintCell(button) {
  const [query, key] = button.dataset.cell.split("-");
  const on = state.cut.some((cell) => cell.join("-") === button.dataset.cell);
  const empty = result?.nothing_to_cut.includes(button.dataset.cell);
  button.setAttribute("aria-pressed", on);
  button.textContent = on ? "✕" : "";
  button.disabled = empty && !on;
  button.title = empty ? `Nothing to cut: ${SAID[query]} cannot attend to ${SAID[key]} in this prompt` : `Stop ${SAID[query]} from attending to ${SAID[key]}`;
}

function paintRange(box, [first, last]) {
  const [low, high] = all("input", box), top = Math.max(1, setup.layers - 1);
  low.value = first;
  high.value = last;
  low.style.zIndex = first > top / 2 ? 1 : 0; // at the right end the left thumb lies on top, so that it can be moved
  box.style.setProperty("--from", `${(100 * first) / top}%`);
  box.style.setProperty("--to", `${(100 * last) / top}%`);
  box.firstChild.textContent = first === last ? `Layer ${first}` : `Layers ${first}–${last}`;
}

function lay(mark, [x0, y0, x1, y1]) {
  const [width, height] = size();
  Object.assign(mark.style, { left: `${(100 * x0) / width}%`, top: `${(100 * y0) / height}%`, width: `${(100 * (x1 - x0)) / width}%`, height: `${(100 * (y1 - y0)) / height}%` });
}

function paintRegion(region) {
  $("region").hidden = !region;
  if (region) lay($("region"), region);
  all("[data-edge]").forEach((input, i) => { if (document.activeElement !== input) input.value = region ? region[i] : ""; });
  $("clear").disabled = !region;
}

// --- drawing a reply

function paintResult() {
  if (!result) return;
  const { answer, changed } = result;
  $("before").textContent = answer.before || "(nothing)";
  $("after").textContent = answer.after || "(nothing)";
  $("after").classList.toggle("same", answer.after === answer.before);
  $("after").classList.toggle("idle", !changed);
  $("after").classList.toggle("long", answer.after.length > 40);
  $("verdict").textContent = verdict();
  $("second-says").textContent = answer.second === null ? "" : `answer: ${answer.second || "(nothing)"}`;
  for (const button of all("[data-cell]")) paintCell(button);
  const gate = result.tokens.find((token) => token.gate);
  $("gate-note").textContent = gate ? `gate: ‘${word(gate.word)}’ · answer: the positions that write the answer` : "";
  paintTop(changed);
  paintLens();
  paintTokens();
  paintAttention();
  paintMap();
  $("python").textContent = result.python;
}

function verdict() {
  if (!result.changed) return "No intervention is on.";
  const first = result.top.reduce((one, other) => ((other.before ?? 0) > (one.before ?? 0) ? other : one));
  const same = result.answer.after === result.answer.before;
  const said = `first token ‘${word(first.token)}’ ${percent(first.before)} → ${percent(first.after)}`;
  if (same) return `Same answer; ${said}.`;
  return percent(first.before) === percent(first.after) ? "The answer changed after its first token." : `The answer changed; ${said}.`;
}

function paintTop(changed) {
  const row = ({ token, before, after }) => {
    const bars = make("svg", { class: "bars", viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" },
      make("rect", { class: "rail", x: 0, y: 3, width: 100, height: 10 }),
      make("rect", { class: "before", x: 0, y: 3, width: 100 * (before ?? 0), height: changed ? 4 : 10 }),
      ...(changed ? [make("rect", { class: "after", x: 0, y: 7, width: 100 * (after ?? 0), height: 6 })] : []));
    return make("tr", {}, make("td", { title: token }, word(token)), make("td", {}, bars), make("td", {}, percent(before)), make("td", {}, changed ? percent(after) : ""));
  };
  $("top").tBodies[0].replaceChildren(...result.top.map(row));
}

function paintLens() {
  const cell = ([text, p], moved) => make("td", { title: text }, make("span", { class: moved ? "moved" : "" }, word(text)), " ", make("span", { class: "p" }, percent(p)));
  const last = result.lens.length - 1;
  $("lens").tBodies[0].replaceChildren(...result.lens.map(({ layer, before, after }) =>
    make("tr", {}, make("td", {}, layer === last ? "out" : layer), cell(before, false), result.changed ? cell(after, before[0] !== after[0]) : make("td", {}))));
}

function chip(text, row, position, more) {
  const weight = result.attention.values[position] ?? null;
  const said = weight === null ? "" : `; attention to it ${percent(weight)}`;
  const button = make("button", { type: "button", "aria-pressed": String(row === result.attention.position), ...more,
    title: more.title + said, onclick: () => set({ look_at: row }) }, word(text));
  button.style.setProperty("--weight", `${(30 * (weight ?? 0)).toFixed(1)}%`);
  return button;
}

function paintTokens() {
  const chips = [], { values, position: looked, note } = result.attention;
  let images = [];
  const flush = () => {
    const share = images.reduce((sum, position) => sum + (values[position] ?? 0), 0);
    if (images.length) chips.push(make("span", { title: "share of the attention on them" }, `${images.length} image tokens ${percent(share)}`));
    images = [];
  };
  result.tokens.forEach(({ word: text, role, gate }, position) => {
    if (role === "image" || role === "row_break") return void images.push(position);
    flush();
    chips.push(chip(text, position, position, { class: gate ? "gate" : "", title: `position ${position}, ${role}${gate ? " (the gate)" : ""}` }));
  });
  flush();
  $("tokens").replaceChildren(...chips);
  $("written").replaceChildren(...result.written.map(({ word: text, position, row }) =>
    chip(text, row, position, { "data-row": row, title: `Where did the model look when it wrote ‘${word(text)}’? Position ${row} writes it` })));
  const one = result.written.find(({ row }) => row === looked);
  for (const writes of all(".writes")) writes.textContent = one ? `writes ‘${word(one.word)}’` : "";
  $("look-note").textContent = note;
  $("look-note").hidden = !note;
}

const ofThisPicture = () => result.state.picture === state.picture;

const imageTokens = () => {
  const found = result.tokens.map((token, position) => ({ ...token, position })).filter((token) => token.box);
  const tiled = found.some((token) => token.tile > 0), whole = found.some((token) => token.tile === 0);
  $("tiles-label").hidden = !(tiled && whole);
  return tiled && whole ? found.filter((token) => (token.tile > 0) === ($("tiles").value === "tiles")) : found;
};

function paintAttention() {
  const { values, position } = result.attention;
  const tokens = imageTokens(), most = Math.max(1e-9, ...tokens.map((token) => values[token.position] ?? 0));
  const cells = tokens.map((token) => {
    const [x, y, right, bottom] = token.box, opacity = (0.72 * (values[token.position] ?? 0)) / most;
    return make("rect", { x, y, width: right - x, height: bottom - y, "fill-opacity": opacity.toFixed(3), "data-position": token.position });
  });
  if (ofThisPicture()) $("overlay").replaceChildren(...cells);
  const { word: said, role } = result.tokens[position] ?? result.written[position - result.tokens.length];
  const text = role === "image" ? `image token ${position}` : word(said);
  for (const looked of all(".looked")) looked.textContent = text;
}

function paintMap() {
  const { shares } = result.attention, columns = setup.heads;
  $("map").setAttribute("viewBox", `-1 -1 ${columns * 10 + 1} ${shares.length * 10 + 1}`);
  const cell = (layer, head, more) => make("rect", { x: head * 10, y: layer * 10, width: 9, height: 9, ...more });
  const cells = shares.flatMap((row, layer) => row.flatMap((share, head) => [cell(layer, head, { class: "ground" }),
    make("rect", { x: head * 10, y: layer * 10, width: 9, height: 9, "fill-opacity": share ?? 0, "data-layer": layer, "data-head": head, onclick: () => set({ look_layer: layer, look_head: head }) })]));
  const chosen = state.look_head === null ? { x: 0, width: columns * 10 - 1 } : { x: state.look_head * 10, width: 9 };
  $("map").replaceChildren(...cells, make("rect", { class: "chosen", y: state.look_layer * 10, height: 9, "pointer-events": "none", ...chosen }));
  const row = shares[state.look_layer] ?? [], mean = row.reduce((sum, share) => sum + (share ?? 0), 0) / Math.max(1, row.length);
  const here = state.look_head === null ? "mean of its heads" : `head ${state.look_head}`;
  $("map-note").textContent = `Layers downwards, heads across. Layer ${state.look_layer}, ${here}: ${percent(state.look_head === null ? mean : row[state.look_head] ?? null)}.`;
}

// --- the picture: hover, click and drag

function pixel(event) {
  const box = $("overlay").getBoundingClientRect(), [width, height] = size();
  const inside = (share) => Math.min(1, Math.max(0, share));
  return [inside((event.clientX - box.left) / box.width) * width, inside((event.clientY - box.top) / box.height) * height];
}

function tokenAt([x, y]) {
  return result && ofThisPicture() && imageTokens().find(({ box: [x0, y0, x1, y1] }) => x0 <= x && x < x1 && y0 <= y && y < y1);
}

const tidy = (value) => Math.round(value * 10) / 10;

function dragRegion() {
  let from = null, drawn = null;
  $("overlay").addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = pixel(event);
    drawn = null;
    $("overlay").setPointerCapture(event.pointerId);
  });
  $("overlay").addEventListener("pointermove", (event) => {
    const at = pixel(event);
    if (!from) return hover(at);
    const [x, y] = [0, 1].map((i) => [from[i], at[i]].map(tidy).sort((a, b) => a - b));
    const far = Math.max((x[1] - x[0]) / size()[0], (y[1] - y[0]) / size()[1]) > 0.015; // else it is a click
    drawn = far && x[0] < x[1] && y[0] < y[1] ? [x[0], y[0], x[1], y[1]] : null;
    if (drawn) paintRegion(drawn);
  });
  $("overlay").addEventListener("pointerup", (event) => {
    if (!from) return;
    const clicked = drawn ? null : tokenAt(pixel(event));
    from = null;
    if (drawn) set({ region: drawn });
    else if (clicked) set({ look_at: clicked.position });
  });
  $("overlay").addEventListener("pointercancel", () => { from = null; paintRegion(state.region); });
  $("overlay").addEventListener("pointerleave", () => { if (!from) $("hovered").hidden = true; });
}

function hover(at) {
  const token = tokenAt(at);
  $("hovered").hidden = !token;
  if (!token) return;
  lay($("hovered"), token.box);
  $("readout").textContent = `position ${token.position}: attention ${percent(result.attention.values[token.position])}`;
}

function typedRegion() {
  const edges = all("[data-edge]").map((input) => (input.value === "" ? null : Number(input.value)));
  if (edges.every((edge) => edge !== null)) set({ region: edges });
}

// --- the rest

async function copyPython() {
  try {
    if (result?.state !== state) $("copy").textContent = "No result yet"; // never the Python of another state
    else {
      await navigator.clipboard.writeText(result.python);
      $("copy").textContent = "Copied";
    }
  } catch { // not allowed: show it, selected
    $("python").closest("details").open = true;
    getSelection().selectAllChildren($("python"));
    $("copy").textContent = "Select and copy";
  }
  setTimeout(() => { $("copy").textContent = "Copy Python"; }, 1500);
}

function dropPictures() {
  for (const [box, control] of [[$("stage"), "picture"], [$("seconds"), "second"]]) {
    box.addEventListener("dragover", (event) => event.preventDefault());
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0], control);
    });
  }
}

async function start() {
  try {
    setup = await (await fetch("/setup")).json();
  } catch {
    return sayError({ control: "page", message: SILENT });
  }
  pictures = setup.samples;
  const last = setup.layers - 1, middle = Math.floor(setup.layers / 2), early = Math.min(last, Math.max(1, Math.floor(setup.layers / 4)));
  const [first, second] = [setup.samples[Math.min(1, setup.samples.length - 1)], setup.samples[Math.min(2, setup.samples.length - 1)]];
  defaults = {
    picture: first.id, second: second.id, prompt: first.prompt, chat: false, region: null,
    cut: [], cut_layers: [0, last], cut_heads: null, how: "zero", patch: "off", patch_layers: [early, early],
    steer: 0, toward: "second", steer_at: "gate", steer_layer: early, look_at: null, look_layer: middle, look_head: null,
  };
  drawControls();
  drawPictures();
  dragRegion();
  dropPictures();
  window.addEventListener("hashchange", restore);
  await restore();
}

async function restore() {
  delete document.body.dataset.rest;
  const [found, gone] = await withUploads(fromAddress());
  state = found;
  notice = gone;
  paint();
  ask();
}

start();
