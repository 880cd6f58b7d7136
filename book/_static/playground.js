// A network with two inputs, attacked where the reader puts the point. No library: the formulas of the course, in the page.
(() => {
  const norms = {
    Linf: {
      length: (d) => Math.max(Math.abs(d[0]), Math.abs(d[1])),
      steepest: (g) => g.map(Math.sign),
      project: (d, eps) => d.map((v) => Math.min(Math.max(v, -eps), eps)),
    },
    L2: {
      length: (d) => Math.hypot(...d),
      steepest: (g) => { const n = Math.hypot(...g); return g.map((v) => (n ? v / n : 0)); },
      project: (d, eps) => { const n = Math.hypot(...d); return n > eps ? d.map((v) => (v * eps) / n) : d; },
    },
  };
  const clip = (v) => Math.min(Math.max(v, 0), 1);

  // The layers' activations for a point; the last are the logits.
  function forward(layers, x) {
    const seen = [x];
    layers.forEach(({ weight, bias }, k) => {
      const sums = weight.map((row, i) => row.reduce((sum, w, j) => sum + w * seen[k][j], bias[i]));
      seen.push(k < layers.length - 1 ? sums.map(Math.tanh) : sums);
    });
    return seen;
  }
  const answer = (layers, x) => { const z = forward(layers, x).at(-1); return z.indexOf(Math.max(...z)); };

  // The gradient of the cross-entropy with respect to the point: softmax minus one-hot, back through the layers.
  function gradient(layers, x, y) {
    const seen = forward(layers, x);
    const z = seen.at(-1), top = Math.max(...z), e = z.map((v) => Math.exp(v - top)), all = e.reduce((a, b) => a + b);
    let g = e.map((v, i) => v / all - (i === y ? 1 : 0));
    for (let k = layers.length - 1; k >= 0; k--) {
      const back = seen[k].map((_, j) => layers[k].weight.reduce((sum, row, i) => sum + row[j] * g[i], 0));
      g = k ? back.map((v, j) => v * (1 - seen[k][j] ** 2)) : back;
    }
    return g;
  }

  // Projected steepest ascent from x0: all iterates. One step of eps is FGSM.
  function ascend(layers, x0, y, norm, eps, steps, stepSize) {
    const path = [x0];
    for (let k = 0; k < steps; k++) {
      const x = path.at(-1), step = norms[norm].steepest(gradient(layers, x, y));
      const delta = norms[norm].project(x.map((v, i) => v + stepSize * step[i] - x0[i]), eps);
      path.push(x0.map((v, i) => clip(v + delta[i])));
    }
    return path;
  }

  // g(theta): how far to the first other answer along a direction; a walk, then a bisection. Infinity beyond the square.
  function distance(layers, x0, y, theta, stride = 0.01) {
    const at = (r) => [x0[0] + r * Math.cos(theta), x0[1] + r * Math.sin(theta)];
    const inside = (x) => x.every((v) => v >= 0 && v <= 1);
    let low = 0, high = stride;
    while (inside(at(high)) && answer(layers, at(high)) === y) { low = high; high += stride; }
    if (!inside(at(high))) return Infinity;
    for (let k = 0; k < 12; k++) {
      const middle = (low + high) / 2;
      if (answer(layers, at(middle)) === y) low = middle; else high = middle;
    }
    return high;
  }

  const tints = ["#cfe3f2", "#fbe3c0", "#cfe9df"], inks = ["#1b5e8c", "#9a5b00", "#1f7a5c"], names = ["blue", "orange", "green"];
  const colors = { FGSM: "#b06f00", PGD: "#D55E00", g: "#222222" };

  function show(root) {
    const { layers, points, labels } = window.playgroundNetwork;
    const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d"), size = canvas.width;
    const control = (name) => root.querySelector(`[name=${name}]`);
    const px = (x) => [x[0] * size, (1 - x[1]) * size];

    const map = new OffscreenCanvas(size / 4, size / 4), cells = map.width, ink = map.getContext("2d");
    for (let i = 0; i < cells; i++) for (let j = 0; j < cells; j++) {
      ink.fillStyle = tints[answer(layers, [(i + 0.5) / cells, 1 - (j + 0.5) / cells])];
      ink.fillRect(i, j, 1, 1);
    }
    const line = (path, color, width) => {
      pen.beginPath();
      path.forEach((x) => pen.lineTo(...px(x)));
      Object.assign(pen, { strokeStyle: color, lineWidth: width });
      pen.stroke();
    };
    const dot = (x, color, radius, edge = "white") => {
      pen.beginPath();
      pen.arc(...px(x), radius, 0, 2 * Math.PI);
      Object.assign(pen, { fillStyle: color, strokeStyle: edge, lineWidth: 2 });
      pen.fill();
      pen.stroke();
    };
    const cross = (x, color, name, rise) => {
      const [a, b] = px(x), left = a > size / 2;
      Object.assign(pen, { font: "600 22px sans-serif", textAlign: left ? "right" : "left", textBaseline: "middle" });
      Object.assign(pen, { strokeStyle: "white", lineWidth: 5, fillStyle: color, lineJoin: "round" });
      for (const draw of ["strokeText", "fillText"]) pen[draw](name, a + (left ? -16 : 16), b + rise);
      Object.assign(pen, { strokeStyle: color, lineWidth: 4 });
      pen.beginPath();
      for (const s of [-1, 1]) { pen.moveTo(a - 8, b - 8 * s); pen.lineTo(a + 8, b + 8 * s); }
      pen.stroke();
    };

    function draw() {
      const x0 = [Number(control("x").value), Number(control("y").value)], norm = control("norm").value;
      const eps = Number(control("eps").value), steps = Number(control("steps").value), y = answer(layers, x0);
      const fgsm = ascend(layers, x0, y, norm, eps, 1, eps).at(-1);
      const path = ascend(layers, x0, y, norm, eps, steps, (2.5 * eps) / steps), pgd = path.at(-1);
      const angles = Array.from({ length: 360 }, (_, k) => (k * Math.PI) / 180);
      const reach = angles.map((theta) => distance(layers, x0, y, theta));
      const nearest = Math.min(...reach), way = angles[reach.indexOf(nearest)];

      pen.imageSmoothingEnabled = false;
      pen.drawImage(map, 0, 0, size, size);
      points.forEach((x, k) => dot(x, inks[labels[k]], 3, tints[labels[k]]));
      const corners = norm === "Linf"
        ? [[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]
        : angles.concat(0).map((a) => [Math.cos(a), Math.sin(a)]);
      pen.setLineDash([8, 6]);
      line(corners.map((c) => x0.map((v, i) => v + eps * c[i])), "#222222", 2);
      pen.setLineDash([]);
      if (control("boundary").checked) angles.forEach((a, k) => {
        if (reach[k] < Infinity) dot([x0[0] + reach[k] * Math.cos(a), x0[1] + reach[k] * Math.sin(a)], colors.g, 1.5, colors.g);
      });
      if (nearest < Infinity) line([x0, [x0[0] + nearest * Math.cos(way), x0[1] + nearest * Math.sin(way)]], colors.g, 2);
      line([x0, fgsm], colors.FGSM, 3);
      line(path, colors.PGD, 3);
      path.slice(1).forEach((x) => dot(x, colors.PGD, 3.5));
      const rise = fgsm[1] > pgd[1] ? -14 : 14; // the names keep apart where the ends meet
      cross(fgsm, colors.FGSM, "FGSM", rise);
      cross(pgd, colors.PGD, "PGD", -rise);
      dot(x0, inks[y], 9);

      const told = (x) => (answer(layers, x) === y ? "not fooled" : `fooled: ${names[answer(layers, x)]}`);
      const where = nearest < Infinity ? `at distance ${nearest.toFixed(3)}` : "not inside the square";
      root.querySelector("output").textContent =
        `The network says ${names[y]}. FGSM: ${told(fgsm)}. PGD, ${steps} steps: ${told(pgd)}. Nearest boundary (L2): ${where}.`;
      root.dataset.state = JSON.stringify({ x0, y, fgsm, pgd, nearest });
      for (const input of root.querySelectorAll("input[type=range]")) input.nextElementSibling.textContent = input.value;
    }

    const move = (event) => {
      const box = canvas.getBoundingClientRect();
      control("x").value = clip((event.clientX - box.left) / box.width);
      control("y").value = clip(1 - (event.clientY - box.top) / box.height);
      draw();
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); move(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) move(event); });
    root.addEventListener("input", draw);
    root.hidden = false;
    draw();
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".playground").forEach(show));
})();
