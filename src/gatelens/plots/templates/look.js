// The picture with the attention of one word of the description. Words are buttons: point at one, tap it, or
// move with the arrow keys.
"use strict";
(function () {
  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function show(root) {
    const holder = root.querySelector("script[type='application/json']");
    if (!holder) return;
    const data = JSON.parse(holder.textContent);
    const canvas = root.querySelector("canvas"), image = root.querySelector("img.whole");
    const said = root.querySelector(".said"), slider = root.querySelector("input[type=range]");
    const shown = root.querySelector(".band"), words = [...root.querySelectorAll("button.word")];
    const columns = data.grid[0], rows = data.grid[1], n = columns * rows;
    const values = data.words.map((word) => bytes(word.values));
    let chosen = data.first, band = data.band;

    function draw(index) {
      const w = canvas.width, h = canvas.height, pen = canvas.getContext("2d");
      const word = data.words[index], mine = values[index].subarray(band * n, band * n + n);
      // cells meet at whole pixels, so that no seams show between them
      const x = (c) => Math.round((c * w) / columns), y = (r) => Math.round((r * h) / rows);
      let best = 0;
      pen.clearRect(0, 0, w, h);
      pen.drawImage(image, 0, 0, w, h);
      for (let i = 0; i < n; i++) {
        if (mine[i] > mine[best]) best = i;
        const c = i % columns, r = Math.floor(i / columns);
        pen.fillStyle = "rgba(14,17,22," + (0.7 * (1 - Math.pow(mine[i] / 255, 0.7))).toFixed(3) + ")";
        pen.fillRect(x(c), y(r), x(c + 1) - x(c), y(r + 1) - y(r));
      }
      const mark = word.object ? data.marks[word.object] : null;
      if (mark) {
        pen.strokeStyle = "#ffffff";
        pen.lineWidth = 2;
        pen.setLineDash([7, 5]);
        pen.strokeRect(mark[0] * w, mark[1] * h, (mark[2] - mark[0]) * w, (mark[3] - mark[1]) * h);
        pen.setLineDash([]);
      }
      const c = best % columns, r = Math.floor(best / columns);
      pen.strokeStyle = "#ff8a2b";
      pen.lineWidth = 4;
      pen.strokeRect(x(c) + 2, y(r) + 2, x(c + 1) - x(c) - 4, y(r + 1) - y(r) - 4);
      said.textContent = "“" + word.text + "”, " + data.bands[band] + ": " + Math.round(100 * word.mass[band]) +
        " % of the attention goes to the image" + (mark ? "; dashed: where the " + word.object + " is." : ".");
    }

    function choose(index) {
      chosen = index;
      words.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
      draw(index);
    }

    words.forEach(function (button, i) {
      button.addEventListener("click", () => choose(i));
      button.addEventListener("focus", () => choose(i));
      button.addEventListener("pointerenter", (e) => { if (e.pointerType !== "touch") draw(i); });
      button.addEventListener("pointerleave", (e) => { if (e.pointerType !== "touch") draw(chosen); });
      button.addEventListener("keydown", function (e) {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
        if (step && words[i + step]) { words[i + step].focus(); e.preventDefault(); }
      });
    });
    if (slider) slider.addEventListener("input", function () {
      band = Number(slider.value);
      shown.textContent = data.bands[band];
      slider.setAttribute("aria-valuetext", data.bands[band]);
      draw(chosen);
    });
    function begin() { root.classList.add("live"); choose(chosen); }
    if (image.complete) begin(); else image.addEventListener("load", begin);
  }

  document.querySelectorAll(".looking").forEach(show);
})();
