// How a scene of the shapes laboratory is drawn, byte for byte as in mmcl_core/data/drawing.py:
// integers, and operations that are exact. A scene is {objects, ground, slope, noise}; an object
// has the number of each attribute, and radius, shift, tint and phase.
"use strict";
var mmcl = globalThis.mmcl || (globalThis.mmcl = {});

(() => {
  const VALUES = {
    shape: ["circle", "square", "triangle", "star", "cross", "ring"],
    colour: ["red", "orange", "yellow", "green", "blue", "purple"],
    size: ["small", "large"],
    texture: ["solid", "striped", "dotted"],
    position: ["top left", "top right", "bottom left", "bottom right"],
  };
  const RGB = [
    [214, 40, 40], [245, 130, 32], [245, 215, 50], [50, 165, 75], [40, 95, 220], [140, 60, 180],
  ];
  const RADII = [0.25, 0.28, 0.31, 0.38, 0.41, 0.44];
  const CORNERS = [
    [0.0, -1.08], [0.27, -0.371], [1.027, -0.334], [0.436, 0.142], [0.635, 0.874], [0.0, 0.459],
    [-0.635, 0.874], [-0.436, 0.142], [-1.027, -0.334], [-0.27, -0.371],
  ];

  function inside(shape, x, y) {
    const [across, down] = [Math.abs(x), Math.abs(y)];
    const squared = x * x + y * y;
    switch (VALUES.shape[shape]) {
      case "circle":
        return squared <= 1.0;
      case "ring":
        return squared <= 1.0 && squared >= 0.3;
      case "square":
        return Math.max(across, down) <= 0.86;
      case "cross":
        return Math.min(across, down) <= 0.32 && Math.max(across, down) <= 1.0;
      case "triangle":
        return y <= 0.8 && 1.8 * across <= y + 1.0;
    }
    let odd = false;
    CORNERS.forEach(([x0, y0], i) => {
      const [x1, y1] = CORNERS[(i + 1) % CORNERS.length];
      if (y0 === y1 || y0 > y === y1 > y) return;
      if (x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) odd = !odd;
    });
    return odd;
  }

  // Coverage 0 to 128 of a shape at a radius, before its shift.
  const stencils = new Map();
  function stencil(shape, radius, half) {
    const key = `${shape} ${radius} ${half}`;
    if (!stencils.has(key)) {
      const fine = 4;
      const reach = RADII[radius] * half;
      const at = (i) => ((i + 0.5) / fine - half / 2) / reach;
      const cover = new Int16Array(half * half);
      for (let y = 0; y < half * fine; y++) {
        for (let x = 0; x < half * fine; x++) {
          if (inside(shape, at(x), at(y))) {
            cover[Math.floor(y / fine) * half + Math.floor(x / fine)] += 128 / fine ** 2;
          }
        }
      }
      stencils.set(key, cover);
    }
    return stencils.get(key);
  }

  const clip = (v) => Math.min(Math.max(v, 0), 255);
  const modulo = (a, b) => ((a % b) + b) % b;

  // Coverage [half, half] of an object within its quarter.
  function coverage({ shape, radius, shift }, half) {
    const from = stencil(shape, radius, half);
    const cover = new Int16Array(half * half);
    for (let y = 0; y < half; y++) {
      const row = modulo(y - shift[0], half) * half;
      for (let x = 0; x < half; x++) cover[y * half + x] = from[row + modulo(x - shift[1], half)];
    }
    return cover;
  }

  function inked(texture, down, right, period) {
    if (texture === 1) return (down + right) % period < period / 2;
    return texture === 2 && down % period < period / 2 && right % period < period / 2;
  }

  // Uint8Array [3, size, size].
  function render({ objects, ground, slope, noise }, size) {
    const half = size / 2;
    const period = Math.max(Math.floor(size / 12), 4);
    const canvas = new Int16Array(3 * size * size);
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const ramps = slope[0] * (2 * y - size + 1) + slope[1] * (2 * x - size + 1);
        const light = noise[y * size + x] + Math.floor(ramps / size);
        for (let c = 0; c < 3; c++) canvas[(c * size + y) * size + x] = clip(ground[c] + light);
      }
    }
    for (const one of objects) {
      const cover = coverage(one, half);
      const top = half * (one.position >> 1);
      const left = half * (one.position & 1);
      const colour = RGB[one.colour].map((v, c) => clip(v + one.tint[c]));
      for (let y = 0; y < half; y++) {
        for (let x = 0; x < half; x++) {
          const ink = inked(one.texture, one.phase[0] + y, one.phase[1] + x, period);
          for (let c = 0; c < 3; c++) {
            const at = (c * size + top + y) * size + left + x;
            const paint = ink ? Math.floor(colour[c] / 3) : colour[c];
            canvas[at] += ((paint - canvas[at]) * cover[y * half + x]) >> 7;
          }
        }
      }
    }
    return Uint8Array.from(canvas);
  }

  // How far an object of this radius may be shifted in its quarter.
  function room(radius, size) {
    return Math.max(Math.floor(size / 4) - Math.ceil(1.1 * RADII[radius] * (size / 2)) - 1, 0);
  }

  // Random numbers in [0, 1) from a seed: mulberry32. The page's own scenes need no more.
  function randomly(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = state;
      t = Math.imul(t ^ (t >>> 15), t | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  // The details of an object that its attributes leave open, as `place` draws them.
  function placed(attributes, random, size) {
    const radius = 3 * attributes.size + Math.floor(3 * random());
    const far = room(radius, size);
    const any = (n) => Math.floor(n * random());
    return {
      ...attributes,
      radius,
      shift: [any(2 * far + 1) - far, any(2 * far + 1) - far],
      tint: [any(33) - 16, any(33) - 16, any(33) - 16],
      phase: [any(64), any(64)],
    };
  }

  // A scene of `least` to `most` objects.
  function scene(random, size, least, most) {
    const any = (n) => Math.floor(n * random());
    const quarters = [0, 1, 2, 3].map((q) => [random(), q]).sort((a, b) => a[0] - b[0]);
    const count = least + any(most - least + 1);
    const objects = quarters.slice(0, count).map(([, position]) =>
      placed({ shape: any(6), colour: any(6), size: any(2), texture: any(3), position }, random, size),
    );
    const light = 60 + any(140);
    return {
      objects,
      ground: [any(31) + light, any(31) + light, any(31) + light],
      slope: [any(81) - 40, any(81) - 40],
      noise: Int8Array.from({ length: size * size }, () => any(16) - 8),
    };
  }

  const NAMED = [[], ["shape"], ["colour", "shape"], ["size", "texture", "colour", "shape"]];

  // The plain sentence of objects, at a level of detail 1 to 4.
  function say(objects, detail) {
    return objects
      .map((one) => {
        const words = NAMED[Math.min(detail, 3)].map((name) => VALUES[name][one[name]]);
        const article = "aeiou".includes(words[0][0]) ? "an" : "a";
        const place = detail > 3 ? ` at ${VALUES.position[one.position]}` : "";
        return `${article} ${words.join(" ")}${place}`;
      })
      .join(" and ");
  }

  Object.assign(mmcl, { VALUES, RGB, RADII, render, room, randomly, placed, scene, say });
})();
