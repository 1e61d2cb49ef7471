// The most likely token of each image token at a layer, written on the picture; the list of a patch at all layers.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (what) => document.querySelector(what), all = (what) => [...document.querySelectorAll(what)];
  const [nLayers, nRows, nWords] = data.n;
  const ids = overlay.numbers(data.ids, Int32Array), chance = overlay.numbers(data.probability, Float32Array);
  const rank = overlay.numbers(data.rank, Int32Array);
  const tops = data.kinds.map((kind, k) => (kind === "top" ? k : -1)).filter((k) => k >= 0);
  const targets = data.kinds.map((kind, k) => (kind === "target" ? k : -1)).filter((k) => k >= 0);
  const state = {layer: nLayers - 1, panel: 0, cell: 0, row: -1, pointed: null, word: ""};
  const index = (layer, row, k) => (layer * nRows + row) * nWords + k;
  const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) : p >= 1e-5 ? String(Number((100 * p).toPrecision(2))) : "< 0.001") + " %";
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const select = find("select.show"), slider = find("input.layer"), search = find("input.find");
  const shownWord = () => (select && select.value !== "" ? targets[Number(select.value)] : tops.length ? tops[0] : targets[0]);
  const isTarget = () => data.kinds[shownWord()] === "target";
  const layerName = () => "layer " + data.layers[state.layer];

  const panels = data.panels.map(function (p, number) {
    const figure = make("figure"), button = make("button", "panel"), canvas = make("canvas"), scroll = make("div", "scroll");
    [canvas.width, canvas.height] = [p.width, p.height];
    canvas.style.width = "max(min(100%, " + p.width + "px), " + Math.min(p.least, p.width) + "px)";
    button.type = "button";
    button.setAttribute("aria-label", p.name + ": tokens read at each patch; the arrow keys move from patch to patch");
    button.append(canvas);
    scroll.append(button);
    figure.append(make("figcaption", "", p.name), scroll);
    find(".stage").append(figure);
    return {...p, number, canvas, button, e: overlay.edges(overlay.numbers(p.boxes, Float32Array), 1, 1),
      places: overlay.numbers(p.places, Int16Array)};
  });
  function place(panel, cell) {
    const [tile, row, column] = panel.places.subarray(3 * cell, 3 * cell + 3);
    return panel.name + (panel.tiled ? ", tile " + tile : "") + ", row " + row + ", column " + column;
  }

  function has(row, word) {
    return tops.some((k) => data.words[ids[index(state.layer, row, k)]].toLowerCase().includes(word));
  }

  function paintPanels() {
    const k = shownWord(), word = state.word.trim().toLowerCase();
    let top = 1, found = 0;
    if (isTarget()) {
      top = 0;  // of all layers, so that a layer can be compared with the next
      for (const p of panels) for (const row of p.rows)
        for (let layer = 0; layer < nLayers; layer++) top = Math.max(top, chance[index(layer, row, k)]);
    }
    for (const panel of panels) {
      const values = panel.rows.map((row) => chance[index(state.layer, row, k)]);
      const lined = word ? [...panel.rows.keys()].filter((i) => has(panel.rows[i], word)) : [];
      found += lined.length;
      overlay.paint(panel.canvas, panel.grey, panel.e, values, top, {lined});
      panel.rows.forEach(function (row, i) {
        const at = index(state.layer, row, k);
        overlay.write(panel.canvas, panel.e, i, isTarget() ? "#" + (rank[at] + 1) : data.words[ids[at]]);
      });
      const [chosen, cell] = state.pointed || [state.panel, state.cell];
      if (state.row < 0 && chosen === panel.number) overlay.mark(panel.canvas, panel.e, cell);
    }
    if (search) find(".found").textContent = word ? found + " of " + panels.reduce((n, p) => n + p.rows.length, 0) : "";
  }

  function cellOf(words, layer, row, k) {
    const at = index(layer, row, k), td = make("td", "", words ? data.words[ids[at]] : "#" + (rank[at] + 1));
    td.append(" ", make("small", "", percent(chance[at])));
    return td;
  }

  function paintList() {
    const [number, cell] = state.pointed || [state.panel, state.cell], panel = panels[number];
    const row = state.row >= 0 && !state.pointed ? state.row : panel.rows[cell], k = shownWord();
    const where = state.row >= 0 && !state.pointed ? find('.chip[data-row="' + row + '"]').textContent : place(panel, cell);
    const at = index(state.layer, row, k);
    find(".said").textContent = where + ", " + layerName() + ": “" +
      (isTarget() ? data.targets[k] + "” is token number " + (rank[at] + 1) : data.words[ids[at]] + "”") + ", " + percent(chance[at]) + ".";
    const head = make("tr");
    head.append(make("th", "", "layer"), ...tops.map((_, i) => make("th", "", i ? String(i + 1) : "most likely")),
      ...targets.map((t) => make("th", "", "rank of " + data.targets[t])));
    head.querySelectorAll("th").forEach((th) => th.setAttribute("scope", "col"));
    find(".list thead").replaceChildren(head);
    find(".list tbody").replaceChildren(...[...Array(nLayers).keys()].map(function (layer) {
      const line = make("tr"), name = make("th", "", String(data.layers[layer]));
      name.setAttribute("scope", "row");
      line.append(name, ...tops.map((t) => cellOf(true, layer, row, t)), ...targets.map((t) => cellOf(false, layer, row, t)));
      line.setAttribute("aria-current", String(layer === state.layer));
      return line;
    }));
    document.body.dataset.row = row;
    document.body.dataset.layer = data.layers[state.layer];
  }

  let waiting = 0, ready = false;  // the pictures are there
  function paint() {
    if (!ready) return;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(function () { paintPanels(); paintList(); });
  }

  function choose(panel, cell) {
    Object.assign(state, {panel, cell, row: -1, pointed: null});
    paint();
  }

  for (const panel of panels) {
    const under = function (e) {
      const box = panel.canvas.getBoundingClientRect();
      return overlay.at(panel.e, ((e.clientX - box.left) * panel.canvas.width) / box.width,
        ((e.clientY - box.top) * panel.canvas.height) / box.height);
    };
    panel.button.addEventListener("pointermove", function (e) {
      const cell = under(e), before = state.pointed;
      state.pointed = cell < 0 ? null : [panel.number, cell];
      if (String(before) !== String(state.pointed)) paint();
    });
    panel.button.addEventListener("pointerleave", () => { state.pointed = null; paint(); });
    panel.button.addEventListener("click", (e) => { if (e.detail && under(e) >= 0) choose(panel.number, under(e)); });
    panel.button.addEventListener("focus", () => { if (state.panel !== panel.number || state.row >= 0) choose(panel.number, 0); });
    panel.button.addEventListener("keydown", function (e) {
      const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[e.key];
      if (!way) return;
      choose(panel.number, overlay.beside(panel.e, state.cell, ...way));
      e.preventDefault();
    });
  }
  for (const chip of all(".chip[data-row]"))
    for (const event of ["click", "focus"])
      chip.addEventListener(event, () => { state.row = Number(chip.dataset.row); paint(); });
  function named() {
    find(".layer-name").textContent = String(data.layers[state.layer]);
    slider.setAttribute("aria-valuetext", layerName());
  }
  slider.addEventListener("input", () => { state.layer = Number(slider.value); named(); paint(); });
  if (select) select.addEventListener("change", paint);
  if (search) search.addEventListener("input", () => { state.word = search.value; paint(); });

  Promise.all(panels.map(function (panel) {
    const image = make("img");
    image.src = panel.picture;
    return image.decode().then(() => { panel.grey = overlay.greyed(image, panel.width, panel.height); });
  })).then(function () { ready = true; named(); paint(); });
})();
