// Pairs of points on a circle, and what a contrastive loss does to them: InfoNCE in both directions,
// or one half of it. Angles in radians; images are circles, sentences are squares.
"use strict";
var mmcl = globalThis.mmcl || (globalThis.mmcl = {});

(() => {
  const { h, button, labelled, paced, softmax, two } = mmcl;
  const KINDS = ["pull and push", "pull alone", "push alone"];
  const COLOURS = ["#f4a3a3", "#9cc4f0", "#a8d8a0", "#f2d56b", "#d3b3ee", "#f5b98a", "#9adbd6", "#d9d9d9"];
  const FASTEST = 0.12; // radians a step
  const RATE = 0.15;

  // {loss, gradient: [images, sentences]}: by each angle, of B pairs.
  function forces([images, sentences], temperature, kind) {
    const n = images.length;
    const logits = images.map((a) => sentences.map((b) => Math.cos(a - b) / temperature));
    const rows = logits.map(softmax);
    const columns = sentences.map((_, j) => softmax(logits.map((row) => row[j])));
    const pull = kind !== "push alone";
    const push = kind !== "pull alone";
    const gradient = [images.map(() => 0), sentences.map(() => 0)];
    let loss = 0;
    const above = (x) => Math.max(...x) + Math.log(x.reduce((s, v) => s + Math.exp(v - Math.max(...x)), 0));
    for (let i = 0; i < n; i++) {
      if (pull) loss -= logits[i][i] / n;
      if (push) loss += (above(logits[i]) + above(logits.map((row) => row[i]))) / (2 * n);
      for (let j = 0; j < n; j++) {
        let by = push ? (rows[i][j] + columns[j][i]) / (2 * n * temperature) : 0;
        if (pull && i === j) by -= 1 / (n * temperature);
        const turn = Math.sin(images[i] - sentences[j]) * by;
        gradient[0][i] -= turn;
        gradient[1][j] += turn;
      }
    }
    return { loss, gradient };
  }

  function step(angles, temperature, kind) {
    const { gradient } = forces(angles, temperature, kind);
    return angles.map((side, s) =>
      side.map((a, i) => a - Math.min(Math.max(RATE * gradient[s][i], -FASTEST), FASTEST)),
    );
  }

  const svg = (tag, properties = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const degrees = (a) => ((Math.round((a * 180) / Math.PI) % 360) + 360) % 360;

  function view(root, about) {
    const still = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches;
    let angles = about.angles;
    let timer = 0;
    let steps = 0;
    const letters = angles[0].map((_, i) => String.fromCharCode(65 + i));
    const lines = svg("g", { "aria-hidden": "true" });
    const end = 128 + 9 * (letters.length - 1);
    const drawing = svg("svg", { viewBox: `${-end} ${-end} ${2 * end} ${2 * end}` });
    const tip = svg("marker", {
      id: `${root.parentNode.id}-tip`, viewBox: "0 0 6 6", refX: 3, refY: 3, markerWidth: 5,
      markerHeight: 5, orient: "auto-start-reverse",
    }, svg("path", { d: "M0 0 6 3 0 6z", fill: "context-stroke" }));
    drawing.append(
      svg("defs", {}, tip),
      svg("circle", { r: 100, fill: "none", stroke: "currentColor", "stroke-opacity": 0.4 }),
      lines,
    );
    const points = angles.map((side, s) =>
      side.map((_, i) => {
        const name = `${s ? "sentence" : "image"} ${letters[i]}`;
        const look = { fill: COLOURS[i % COLOURS.length], stroke: "#111", "stroke-width": 1.2 };
        const form = s
          ? svg("rect", { x: -8, y: -8, width: 16, height: 16, ...look })
          : svg("circle", { r: 9, ...look });
        const point = svg("g", {
          tabindex: 0, role: "slider", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 359,
        }, form, svg("text", {}, letters[i]));
        listen(point, s, i);
        drawing.append(point);
        return point;
      }),
    );

    function set(s, i, angle) {
      stop();
      angles = angles.map((side, t) => side.map((a, k) => (t === s && k === i ? angle : a)));
      soon();
    }

    function listen(point, s, i) {
      point.style.touchAction = "none";
      point.onpointerdown = (event) => {
        point.setPointerCapture(event.pointerId);
        point.onpointermove = (move) => {
          const box = drawing.getBoundingClientRect();
          const x = move.clientX - box.left - box.width / 2;
          const y = move.clientY - box.top - box.height / 2;
          set(s, i, Math.atan2(-y, x));
        };
      };
      point.onpointerup = point.onpointercancel = () => {
        point.onpointermove = null;
      };
      point.onkeydown = (event) => {
        const turn = { ArrowLeft: 5, ArrowUp: 5, ArrowRight: -5, ArrowDown: -5 }[event.key];
        if (!turn) return;
        event.preventDefault();
        set(s, i, angles[s][i] + (turn * Math.PI) / 180);
      };
    }

    const temperatures = [0.05, 0.1, 0.2, 0.5, 1, 2];
    const temperature = h("select", {},
      ...temperatures.map((value) => h("option", { value, textContent: String(value) })));
    temperature.value = about.temperature;
    temperature.onchange = () => soon();
    const kind = h("select", {}, ...KINDS.map((value) => h("option", { value, textContent: value })));
    kind.onchange = () => soon();
    const onward = () => {
      angles = step(angles, Number(temperature.value), kind.value);
      steps += 1;
    };
    const run = button("run", () => {
      if (timer) return stop();
      if (still) {
        for (let k = 0; k < 100; k++) onward();
        return soon();
      }
      run.textContent = "stop";
      timer = setInterval(() => {
        onward();
        soon();
      }, 50);
    });
    function stop() {
      clearInterval(timer);
      timer = 0;
      run.textContent = "run";
    }
    const begin = (named) => () => {
      stop();
      steps = 0;
      angles = about[named];
      soon();
    };
    const said = h("p", { className: "mmcl-score" });
    const much = h("p", {});
    const status = h("p", { className: "mmcl-status", role: "status" });
    let line = "";

    function update() {
      const { loss, gradient } = forces(angles, Number(temperature.value), kind.value);
      // Lengths within one picture compare; the longest arrow has always the same length.
      const most = Math.max(...gradient.flat().map(Math.abs));
      const drawn = [];
      const at = (a, r) => [r * Math.cos(a), -r * Math.sin(a)].map((v) => v.toFixed(2));
      angles[0].forEach((a, i) => {
        const [[x1, y1], [x2, y2]] = [at(a, 112 + 9 * i), at(angles[1][i], 90 - 9 * i)];
        drawn.push(svg("line", { x1, y1, x2, y2, stroke: "currentColor", "stroke-opacity": 0.35 }));
      });
      angles.forEach((side, s) =>
        side.forEach((a, i) => {
          const radius = s ? 90 - 9 * i : 112 + 9 * i; // so that none hides another
          const [x, y] = at(a, radius);
          points[s][i].setAttribute("transform", `translate(${x} ${y})`);
          points[s][i].setAttribute("aria-valuenow", degrees(a));
          points[s][i].setAttribute("aria-valuetext", `${degrees(a)} degrees`);
          const turn = most > 1e-4 ? -0.6 * (gradient[s][i] / most) : 0;
          if (Math.abs(turn) < 0.05) return;
          const [x2, y2] = at(a + turn, radius);
          drawn.push(svg("path", {
            d: `M${x} ${y}A${radius} ${radius} 0 0 ${turn > 0 ? 0 : 1} ${x2} ${y2}`,
            fill: "none", stroke: "var(--fill)", "stroke-width": 3,
            "marker-end": `url(#${root.parentNode.id}-tip)`,
          }));
        }),
      );
      lines.replaceChildren(...drawn);
      const n = angles[0].length;
      const apart = angles[0].reduce((sum, a, i) => sum + 2 - 2 * Math.cos(a - angles[1][i]), 0) / n;
      root.dataset.loss = String(loss);
      said.textContent = `loss ${two(loss)} after ${steps} steps`;
      much.textContent = `alignment ${two(apart)} (0: partners meet), strongest force ${two(most)}`;
      line = `Loss ${two(loss)}, alignment ${two(apart)}, ${steps} steps.`;
    }

    const soon = paced(update, status, () => line);
    const controls = h("div", {},
      h("div", { className: "mmcl-row" }, labelled("loss", kind), labelled("temperature", temperature)),
      h("div", { className: "mmcl-row" },
        button("step", () => { stop(); onward(); soon(); }), run,
        button("begin again", begin("angles")), button("two cones", begin("cones"))),
      said, much,
      h("p", { className: "mmcl-hint" },
        "Circles are images, squares their sentences. Arrows: minus the gradient, the longest of a picture always equally long. Only the angle of a point counts: circles are drawn outside, squares inside, so that none hides another. Drag a point, or press the arrow keys on it."),
    );
    root.append(
      h("div", { className: "mmcl-two mmcl-circle" }, drawing, controls), status);
    update();
    status.textContent = line;
  }

  mmcl.views = { ...mmcl.views, circle: view };
  Object.assign(mmcl, { forces, step });
})();
