// The picture with the attention of one word of the description. Words are buttons: point at one, tap it, or
// move with the arrow keys.
"use strict";
(function () {
  function show(root) {
    const holder = root.querySelector("script[type='application/json']");
    if (!holder) return;
    const data = JSON.parse(holder.textContent);
    const canvas = root.querySelector("canvas"), image = root.querySelector("img.whole");
    const said = root.querySelector(".said"), slider = root.querySelector("input[type=range]");
    const shown = root.querySelector(".band"), words = [...root.querySelectorAll("button.word")];
    const columns = data.grid[0], rows = data.grid[1], n = columns * rows;
    const values = data.words.map((word) => overlay.bytes(word.values));
    let chosen = data.first, band = data.band, grey = null;
    const cells = [...Array(n).keys()].flatMap(function (i) {
      const column = i % columns, row = Math.floor(i / columns);
      return [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows];
    });
    const edges = overlay.edges(cells, canvas.width, canvas.height);

    function draw(index) {
      if (!grey) return;  // the picture is not there yet
      const w = canvas.width, h = canvas.height, pen = canvas.getContext("2d");
      const word = data.words[index], mine = values[index].subarray(band * n, band * n + n);
      overlay.paint(canvas, grey, edges, mine, 255);
      const mark = word.object ? data.marks[word.object] : null;
      if (mark) {
        pen.setLineDash([7, 5]);
        for (const [width, color] of [[4, "#14141c"], [2, "#ffffff"]]) {
          pen.lineWidth = width;
          pen.strokeStyle = color;
          pen.strokeRect(mark[0] * w, mark[1] * h, (mark[2] - mark[0]) * w, (mark[3] - mark[1]) * h);
        }
        pen.setLineDash([]);
      }
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
    function begin() {
      grey = overlay.greyed(image, canvas.width, canvas.height);
      root.classList.add("live"); choose(chosen);
    }
    if (image.complete) begin(); else image.addEventListener("load", begin);
  }

  document.querySelectorAll(".looking").forEach(show);
})();
