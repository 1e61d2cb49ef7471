// Values of image tokens over a picture in grey, as plots/overlay.py paints them: opacity grows with the value, and a
// line goes around the tokens that reach half of the largest.
"use strict";
const overlay = (function () {
  const HEAT = [226, 0, 116], STRONGEST = 0.6, GAMMA = 0.75, DARKEST = 64, OUTLINED = 0.499999;
  const LINES = [[2, "rgb(20,20,28)"], [1, "rgb(255,255,255)"]];
  const UP = "rgb(209,98,15)", DOWN = "rgb(47,111,181)", MARK = "rgb(0,120,200)";

  function canvasOf(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    return canvas;
  }

  // The picture in light shades of grey, as a canvas of this size.
  function greyed(image, width, height) {
    const canvas = canvasOf(width, height), pen = canvas.getContext("2d", {willReadFrequently: true});
    pen.drawImage(image, 0, 0, width, height);
    const pixels = pen.getImageData(0, 0, width, height), d = pixels.data;
    for (let i = 0; i < d.length; i += 4) {
      const light = (d[i] * 19595 + d[i + 1] * 38470 + d[i + 2] * 7471 + 0x8000) >> 16;
      d[i] = d[i + 1] = d[i + 2] = DARKEST + (light * (255 - DARKEST)) / 255;
    }
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  // Whole pixels of each box, so that neighbours meet: x0, y0, x1, y1 by turns.
  function edges(boxes, scaleX, scaleY) {
    const out = new Int32Array(boxes.length);
    for (let i = 0; i < boxes.length; i++) out[i] = Math.floor(boxes[i] * (i % 2 ? scaleY : scaleX) + 0.5);
    return out;
  }

  function rect(pen, e, i, more) {
    pen.fillRect(e[4 * i] - more, e[4 * i + 1] - more, e[4 * i + 2] - e[4 * i] + 2 * more,
      e[4 * i + 3] - e[4 * i + 1] + 2 * more);
  }

  function opacity(value, top) {
    return top > 0 ? STRONGEST * Math.pow(Math.min(1, Math.max(0, value / top)), GAMMA) : 0;
  }

  // A light line on a dark one around these boxes.
  function outline(pen, width, height, e, inside) {
    if (!inside.length) return;
    const layer = canvasOf(width, height), line = layer.getContext("2d");
    for (const [wide, color] of LINES) {
      line.fillStyle = color;
      for (const i of inside) rect(line, e, i, wide);
    }
    line.globalCompositeOperation = "destination-out";
    for (const i of inside) rect(line, e, i, 0);
    pen.drawImage(layer, 0, 0);
  }

  // values: one a box; top: the value of full strength. signed: orange above 0 and blue below. lined: the boxes within
  // the line, instead of those that reach half of the largest.
  function paint(canvas, grey, e, values, top, {signed = false, lined = null} = {}) {
    const pen = canvas.getContext("2d"), inside = lined || [];
    pen.globalAlpha = 1;
    pen.drawImage(grey, 0, 0, canvas.width, canvas.height);
    pen.fillStyle = "rgb(" + HEAT + ")";
    for (let i = 0; i < values.length; i++) {
      const size = signed ? Math.abs(values[i]) : values[i];
      if (signed) pen.fillStyle = values[i] > 0 ? UP : DOWN;
      pen.globalAlpha = opacity(size, top);
      if (pen.globalAlpha > 0) rect(pen, e, i, 0);
      if (!lined && top > 0 && size >= OUTLINED * top) inside.push(i);
    }
    pen.globalAlpha = 1;
    outline(pen, canvas.width, canvas.height, e, inside);
  }

  // A frame around one box; dashed around the one that asks.
  function mark(canvas, e, i, dashed = false) {
    const pen = canvas.getContext("2d");
    pen.setLineDash(dashed ? [5, 3] : []);
    pen.strokeStyle = MARK;
    pen.lineWidth = 3;
    pen.strokeRect(e[4 * i] + 1.5, e[4 * i + 1] + 1.5, e[4 * i + 2] - e[4 * i] - 3, e[4 * i + 3] - e[4 * i + 1] - 3);
  }

  // A word in a box, where there is room for it.
  function write(canvas, e, i, word) {
    const pen = canvas.getContext("2d"), width = e[4 * i + 2] - e[4 * i] - 3, height = e[4 * i + 3] - e[4 * i + 1];
    pen.font = "600 12px system-ui, sans-serif";
    const size = Math.min(15, Math.floor((12 * width) / Math.max(1, pen.measureText(word).width)), Math.floor(height - 2));
    if (size < 7) return;
    pen.font = "600 " + size + "px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineWidth = 2.5;
    pen.lineJoin = "round";
    pen.strokeStyle = "rgb(20,20,28)";
    pen.fillStyle = "rgb(255,255,255)";
    const x = (e[4 * i] + e[4 * i + 2]) / 2, y = (e[4 * i + 1] + e[4 * i + 3]) / 2;
    pen.strokeText(word, x, y);
    pen.fillText(word, x, y);
  }

  // The box under a point; -1 where there is none.
  function at(e, x, y) {
    for (let i = 0; i < e.length / 4; i++)
      if (x >= e[4 * i] && x < e[4 * i + 2] && y >= e[4 * i + 1] && y < e[4 * i + 3]) return i;
    return -1;
  }

  // The nearest box in a direction (dx, dy) from box i; i where there is none.
  function beside(e, i, dx, dy) {
    const x = (j) => (e[4 * j] + e[4 * j + 2]) / 2, y = (j) => (e[4 * j + 1] + e[4 * j + 3]) / 2;
    let best = i, least = Infinity;
    for (let j = 0; j < e.length / 4; j++) {
      const along = (x(j) - x(i)) * dx + (y(j) - y(i)) * dy;
      const across = Math.abs((x(j) - x(i)) * dy) + Math.abs((y(j) - y(i)) * dx);
      if (along > 0.5 && along + 3 * across < least) { best = j; least = along + 3 * across; }
    }
    return best;
  }

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  // Numbers of a type whose bytes were written as base64.
  const numbers = (text, type) => new type(bytes(text).buffer);

  return {greyed, edges, paint, mark, write, at, beside, bytes, numbers, opacity};
})();
