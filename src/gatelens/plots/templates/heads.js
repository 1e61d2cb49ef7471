// Attention of a word or a patch over the pictures, for all heads. All are chosen by pointer, or Tab and arrow keys.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (what) => document.querySelector(what), all = (what) => [...document.querySelectorAll(what)];
  const n = {layer: data.layers.length, head: data.heads.length, query: data.n_queries};
  const THUMB = 104, MEAN = -1;
  const LEAST = 0.01, NOISE = 0.0001;  // nats: the scale of a cut reaches so far at least; smaller changes may be rounding
  const ALL = -1;  // layers
  const state = {query: data.first, layer: n.layer > 1 ? ALL : 0, head: MEAN, panel: 0, shared: false, cell: -1};
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text) made.textContent = text;
    return made;
  };

  function block(packed, within) {
    const values = overlay.bytes(packed.values), peak = overlay.numbers(packed.peak, Float32Array);
    const share = overlay.numbers(packed.share, Float32Array);
    const cells = values.length / (n.layer * n.head * n.query);
    const bits = within && overlay.bytes(within), wide = Math.ceil(cells / 8);
    // the rows that an average is over
    function rows(head, query) {
      const layers = state.layer === ALL ? [...Array(n.layer).keys()] : [state.layer];
      const heads = head === MEAN ? [...Array(n.head).keys()] : [head];
      return layers.flatMap((l) => heads.map((h) => (l * n.head + h) * n.query + query));
    }
    const mean = (some, of) => some.reduce((sum, i) => sum + of(i), 0) / some.length;
    return {
      row(head, query) {
        const out = new Float64Array(cells), some = rows(head, query);
        for (const i of some) {
          const step = peak[i] / 255 / some.length;
          for (let c = 0; c < cells; c++) out[c] += values[i * cells + c] * step;
        }
        return out;
      },
      // the cells within the line; means stand after what they are of
      lined(head, query) {
        const layer = state.layer === ALL ? n.layer : state.layer, found = [];
        const of = n.head === 1 ? 0 : head === MEAN ? n.head : head, across = n.head === 1 ? 1 : n.head + 1;
        const from = ((layer * across + of) * n.query + query) * wide;
        for (let c = 0; c < cells; c++) if (bits[from + (c >> 3)] & (1 << (c & 7))) found.push(c);
        return found;
      },
      share: (head, query) => mean(rows(head, query), (i) => share[i]),
      step: (head, query) => mean(rows(head, query), (i) => peak[i] / 255),
    };
  }

  const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);
  const percent = (share) => (100 * share).toFixed(1) + " %";
  // a value to the decimals that its step leaves certain
  function exact(value, step) {
    const places = step > 0 ? Math.min(8, Math.max(0, Math.ceil(-Math.log10(step / 2)))) : 0;
    return value.toFixed(places) + " ± " + Number((step / 2).toPrecision(1));
  }

  const words = block(data.words);
  const panels = data.panels.map(function (p, number) {
    const figure = make("figure"), button = make("button"), canvas = make("canvas");
    canvas.width = p.width;
    canvas.height = p.height;
    button.type = "button";
    button.className = "panel";
    button.setAttribute("aria-label", p.name + ": attention; the arrow keys move from patch to patch");
    button.append(canvas);
    const top = make("b");
    const scale = make("p", "scale"), ramp = make("i");
    scale.append("0", ramp, top);
    figure.append(make("figcaption", "", p.name + ", attention"), button, scale);
    const e = overlay.edges(overlay.numbers(p.boxes, Float32Array), 1, 1);
    const small = THUMB / Math.max(p.width, p.height);
    return {number, figure, button, canvas, top, e, name: p.name, tiled: p.tiled, ratio: p.height / p.width,
      thumb: [Math.max(1, Math.round(p.width * small)), Math.max(1, Math.round(p.height * small))],
      small: overlay.edges(overlay.numbers(p.boxes, Float32Array), small, small),
      places: overlay.numbers(p.places, Int16Array), attention: block(p.attention, p.lined),
      queries: p.queries && {...p.queries, e: overlay.edges(overlay.numbers(p.queries.boxes, Float32Array), 1, 1),
        places: overlay.numbers(p.queries.places, Int16Array)}, picture: p.picture};
  });
  if (data.lens) data.lens.panels.forEach(function (lens, i) {
    panels[i].lens = overlay.numbers(lens.ids, Int32Array);
    panels[i].chance = overlay.numbers(lens.probability, Float32Array);
    panels[i].ends = lens.ends;
  });
  const cuts = (data.cuts || []).map(function (c) {
    const of = data.panels.findIndex((p) => p.image === c.image), p = data.panels[of];
    const figure = make("figure"), canvas = make("canvas"), scale = make("p", "scale"), top = make("b"), low = make("span");
    [canvas.width, canvas.height] = [p.width, p.height];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "what cutting each block of the picture does to the chosen word");
    const ramp = make("i", "signed");
    scale.append(low, ramp, top);
    figure.append(make("figcaption", "", "change of log-probability, block hidden"), canvas, scale);
    const cut = {figure, canvas, top, low, of, image: c.image, n: c.n, values: overlay.numbers(c.values, Float32Array),
      e: overlay.edges(overlay.numbers(c.boxes, Float32Array), 1, 1)};
    canvas.addEventListener("pointermove", function (e) {
      const box = canvas.getBoundingClientRect();
      state.block = [cut, overlay.at(cut.e, ((e.clientX - box.left) * canvas.width) / box.width,
        ((e.clientY - box.top) * canvas.height) / box.height)];
      paint();
    });
    canvas.addEventListener("pointerleave", () => { state.block = null; paint(); });
    return cut;
  });
  const chips = all("button.word"), text = chips.map((chip) => chip.firstChild.textContent.trim());
  chips.sort((a, b) => a.dataset.query - b.dataset.query);
  const thumbs = [MEAN, ...data.heads.keys()].map(function (head) {
    const button = make("button", "head"), canvas = make("canvas"), name = make("span", "name");
    button.type = "button";
    name.append(make("span", "", head === MEAN ? "mean" : "H" + data.heads[head]), make("span", "share"));
    button.append(canvas, name);
    return {head, button, canvas, share: name.lastChild};
  });

  const layerName = () => (state.layer === ALL ? "mean of " + n.layer + " layers" : "layer " + data.layers[state.layer]);
  const headName = () => (data.averaged ? "mean of " + data.averaged + " heads" : state.head === MEAN ? "mean of " + n.head + " heads" : "head " + data.heads[state.head]);
  function place(of, cell) {
    const [tile, row, column] = of.places.subarray(3 * cell, 3 * cell + 3);
    return (of.tiled ? "tile " + tile + ", " : "") + "row " + row + ", column " + column;
  }
  // the panel whose patch a query is, and the number of the patch; nothing where it is a word
  function patchOf(query) {
    const panel = panels.filter((p) => p.queries && p.queries.first <= query).pop();
    return panel && {panel, cell: query - panel.queries.first};
  }
  function wordOf(query) {
    const patch = patchOf(query);
    if (!patch) return "“" + chips[query].firstChild.textContent.trim() + "”";
    const side = patch.panel.queries.pool;
    return "the patch at " + (panels.length > 1 ? patch.panel.name + ", " : "") + place(patch.panel.queries, patch.cell) +
      (side > 1 ? " (" + side + " × " + side + " tokens)" : "");
  }

  // what the image tokens of a cell say, at the layer shown or at the last
  function lensOf(panel, cell) {
    if (!panel.lens) return "";
    const at = state.layer === ALL ? -1 : data.lens.layers.indexOf(data.layers[state.layer]);
    const layer = at < 0 ? data.lens.layers.length - 1 : at, top = data.lens.top, ends = panel.ends;
    const from = cell ? ends[cell - 1] : 0, tokens = ends[cell] - from, start = (layer * ends[ends.length - 1] + from) * top;
    const said = {};  // by word: how many tokens say it first, and their probabilities; for one token its few most likely
    for (let i = start; i < start + tokens * top; i++) {
      const word = said[data.lens.words[panel.lens[i]]] ||= {n: 0, sum: 0};
      word.n += 1;
      word.sum += panel.chance[i];
    }
    const list = Object.entries(said).sort(([, a], [, b]) => b.n - a.n || b.sum - a.sum);
    const named = list.slice(0, 6).map(([word, {n, sum}]) => "“" + word + "” " + (n > 1 ? n + " times, mean " : "") + percent(sum / n));
    return " Its lens at layer " + data.lens.layers[layer] + (tokens > 1 ? ", most likely of " + tokens + " tokens: " : ": ") +
      named.join(tokens > 1 ? "; " : ", ") + (list.length > 6 ? "; …" : "") + ".";
  }

  // what cutting blocks of the picture does to the word; said of the block under the patch that is pointed at
  function paintCuts(query, under) {
    let said = "";
    for (const cut of cuts) {
      const values = cut.values.subarray(query * cut.n.length, (query + 1) * cut.n.length);
      overlay.paint(cut.canvas, cut.grey, cut.e, values, cutTop(query), {signed: true});
      cut.top.textContent = "+" + cutTop(query).toPrecision(2) + " nats";
      cut.low.textContent = "−" + cutTop(query).toPrecision(2);
      let block = state.block && state.block[0] === cut ? state.block[1] : -1;
      if (under && state.cell >= 0 && data.panels[state.panel].image === cut.image) {
        const e = under.e, c = state.cell;
        block = overlay.at(cut.e, (e[4 * c] + e[4 * c + 2]) / 2, (e[4 * c + 1] + e[4 * c + 3]) / 2);
      }
      if (block < 0) continue;
      overlay.mark(cut.canvas, cut.e, block);
      const value = values[block], size = Math.abs(value);
      said += " Cutting its block (" + cut.n[block] + " image token" + (cut.n[block] > 1 ? "s" : "") + ") changes the log-probability of " + wordOf(query) + " by " +
        (size < NOISE ? "less than " + NOISE : (value < 0 ? "−" : "+") + Number(size.toPrecision(3))) + " nats.";
    }
    return said;
  }
  // what is no change to speak of is not drawn as one
  const cutTop = (query) => Math.max(LEAST, largest(cuts.map((cut) => largest(cut.values.subarray(query * cut.n.length, (query + 1) * cut.n.length).map(Math.abs)))));

  function paintStage(query) {
    const rows = panels.map((panel) => panel.attention.row(state.head, query)), top = largest(rows.map(largest));
    const asking = patchOf(query);
    panels.forEach(function (panel, i) {
      overlay.paint(panel.canvas, panel.grey, panel.e, rows[i], top, {lined: panel.attention.lined(state.head, query)});
      if (asking && asking.panel === panel) overlay.mark(panel.canvas, panel.queries.e, asking.cell, true);
      if (i === state.panel && state.cell >= 0) overlay.mark(panel.canvas, panel.e, state.cell);
      panel.top.textContent = top.toPrecision(2);
      panel.figure.dataset.chosen = String(panels.length > 1 && i === state.panel);
    });
    const panel = panels[state.panel];
    const share = panels.map((p) => percent(p.attention.share(state.head, query)) + " on " + p.name).join(", ");
    let said = "Attention of " + wordOf(query) + ", " + layerName() + ", " + headName() + ": " + (share || "no place on a picture is known") + ".";
    if (panel && state.cell >= 0)
      said += " Patch at " + place(panel, state.cell) + ": " +
        exact(rows[state.panel][state.cell], panel.attention.step(state.head, query)) + "." + lensOf(panel, state.cell);
    find(".said").textContent = said + paintCuts(query, panel);
  }

  function paintWords(query) {
    const values = words.row(state.head, query), top = largest(values);
    for (const chip of all(".chip[data-key]"))
      chip.querySelector(".bar").style.transform = "scaleX(" + (top > 0 ? values[chip.dataset.key] / top : 0) + ")";
    for (const chip of all(".chip.picture")) {
      const mine = chip.dataset.panels.split(" ").filter(Boolean).map((i) => panels[i]);
      const share = mine.reduce((sum, p) => sum + p.attention.share(state.head, query), 0);
      chip.querySelector("b").textContent = percent(share);
      chip.querySelector(".bar").style.transform = "scaleX(" + Math.min(1, share) + ")";
    }
  }

  function paintThumbs(query) {
    const panel = panels[state.panel];
    if (!panel) return;
    const rows = thumbs.map((thumb) => panel.attention.row(thumb.head, query));
    // a head's scale is the same here and in large, where it is that of all panels
    const tops = thumbs.map((thumb) => largest(panels.map((p) => largest(p.attention.row(thumb.head, query)))));
    thumbs.forEach(function (thumb, i) {
      [thumb.canvas.width, thumb.canvas.height] = panel.thumb;
      overlay.paint(thumb.canvas, panel.smallGrey, panel.small, rows[i], state.shared ? largest(tops) : tops[i],
        {lined: panel.attention.lined(thumb.head, query)});
      thumb.share.textContent = percent(panel.attention.share(thumb.head, query));
      thumb.button.setAttribute("aria-pressed", String(thumb.head === state.head));
    });
    find(".heads-title").textContent = "Heads, " + layerName() + ", " + panel.name + " (share of the attention of " + wordOf(query) + ")";
  }

  let waiting = 0, ready = false;  // the pictures are there
  function paint(query = state.query) {
    if (!ready) return;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(function () {
      paintStage(query);
      paintWords(query);
      paintThumbs(query);
      document.body.dataset.query = query;
    });
  }

  function choose(query) {
    state.query = query;
    const stop = query < chips.length ? query : chips.length - 1;  // where Tab enters the words
    chips.forEach(function (chip, i) {
      chip.setAttribute("aria-pressed", String(i === query));
      chip.tabIndex = i === stop ? 0 : -1;
    });
    paint();
  }

  chips.forEach(function (chip, i) {
    chip.addEventListener("click", () => choose(i));
    chip.addEventListener("focus", () => choose(i));
    chip.addEventListener("pointerenter", (e) => { if (e.pointerType !== "touch") paint(i); });
    chip.addEventListener("pointerleave", (e) => { if (e.pointerType !== "touch") paint(); });
    chip.addEventListener("keydown", function (e) {
      const to = {ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: chips.length - 1}[e.key];
      if (to !== undefined && chips[to]) { chips[to].focus(); e.preventDefault(); }
    });
  });
  all(".chip.picture").forEach((chip) => chip.addEventListener("click", function () {
    if (chip.dataset.panels) { state.panel = Number(chip.dataset.panels.split(" ")[0]); state.cell = -1; paint(); }
  }));
  panels.forEach(function (panel) {
    const moved = (cell) => { state.panel = panel.number; state.cell = cell; paint(); };
    const under = function (e, edges) {
      const box = panel.canvas.getBoundingClientRect();
      return overlay.at(edges, ((e.clientX - box.left) * panel.canvas.width) / box.width,
        ((e.clientY - box.top) * panel.canvas.height) / box.height);
    };
    panel.button.addEventListener("pointermove", (e) => moved(under(e, panel.e)));
    panel.button.addEventListener("click", function (e) {
      const asks = panel.queries, at = panel.e, c = state.cell;
      if (!asks || state.panel !== panel.number || (!e.detail && c < 0)) return;
      const cell = e.detail ? under(e, asks.e)  // by key: the patch that the arrow keys came to
        : overlay.at(asks.e, (at[4 * c] + at[4 * c + 2]) / 2, (at[4 * c + 1] + at[4 * c + 3]) / 2);
      if (cell >= 0) choose(asks.first + cell);
    });
    panel.button.addEventListener("pointerleave", () => moved(-1));
    panel.button.addEventListener("keydown", function (e) {
      const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[e.key];
      if (e.key === "Escape") moved(-1);
      if (!way) return;
      moved(state.panel === panel.number && state.cell >= 0 ? overlay.beside(panel.e, state.cell, ...way) : 0);
      e.preventDefault();
    });
  });
  thumbs.forEach(function (thumb) {
    find(".heads").append(thumb.button);
    thumb.button.addEventListener("click", () => { state.head = thumb.head; paint(); });
  });
  const slider = find("input.layer");
  function named() {
    if (!slider) return;
    find(".layer-name").textContent = state.layer === ALL ? "all" : String(data.layers[state.layer]);
    slider.setAttribute("aria-valuetext", layerName());
  }
  if (slider) slider.addEventListener("input", () => { state.layer = Number(slider.value); named(); paint(); });
  const shared = find("input.shared");
  if (shared) shared.addEventListener("change", (e) => { state.shared = e.target.checked; paint(); });
  const circuits = find(".circuits");
  if (circuits) circuits.addEventListener("toggle", function () {
    if (!circuits.open || circuits.querySelector("iframe")) return;
    const frame = make("iframe");
    frame.title = "circuitsvis";
    frame.srcdoc = new TextDecoder().decode(overlay.bytes(circuits.querySelector("script").textContent));
    circuits.append(frame);
  });

  const groups = {};  // a picture with its panels
  Promise.all(data.panels.map(function (p, i) {
    const image = make("img");
    image.alt = p.name.split(",")[0];
    image.src = p.picture;
    return image.decode().then(function () {
      panels[i].grey = overlay.greyed(image, p.width, p.height);
      panels[i].smallGrey = overlay.greyed(image, ...panels[i].thumb);
      return image;
    });
  })).then(function (images) {
    images.forEach(function (image, i) {
      const of = data.panels[i].image;
      if (!groups[of]) {
        const figure = make("figure", "original");
        figure.append(make("figcaption", "", image.alt), image);
        groups[of] = make("div", "group");
        if (data.given) groups[of].append(figure);
        find(".stage").append(groups[of]);
      }
      groups[of].append(panels[i].figure);
    });
    for (const cut of cuts) {
      cut.grey = panels[cut.of].grey;
      groups[cut.image].append(cut.figure);
    }
    if (n.head === 1) { find(".heads").hidden = true; find(".heads-title").hidden = true; }
    named();
    ready = true;
    choose(state.query);
    const chosen = chips[state.query];
    if (chosen) find(".prompt").scrollTop = chosen.offsetTop + chosen.offsetHeight - find(".prompt").clientHeight;
  });
})();
