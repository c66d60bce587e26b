// What a reader sees and moves. A figure finds its place by an id; its data lies beside it as JSON.
// What is typed is only ever text: no line of this file writes markup.
"use strict";
var mmcl = globalThis.mmcl || (globalThis.mmcl = {});

(() => {
  const { VALUES } = mmcl;
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const two = (x) => (Math.abs(x) < 0.005 ? 0 : x).toFixed(2).replace("-", "\u2212");

  // An element with properties, and children that are elements or text.
  function h(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children);
    return element;
  }

  const button = (text, onclick, more = {}) =>
    h("button", { type: "button", textContent: text, onclick, ...more });

  let named = 0;
  function labelled(text, control) {
    control.id = `mmcl-control-${++named}`;
    return h("span", { className: "mmcl-field" }, h("label", { for: control.id }, text), control);
  }

  // A bar from 0 to 1, and its number.
  function bar(value, most = 1, number = two(value)) {
    const fill = h("span");
    fill.style.width = `${100 * Math.min(Math.max(value / most, 0), 1)}%`;
    return h("span", { className: "mmcl-bar" }, h("i", {}, fill), h("b", {}, number));
  }

  function paint(canvas, pixels, size) {
    canvas.width = canvas.height = size;
    const image = new ImageData(size, size);
    const n = size * size;
    for (let i = 0; i < n; i++) {
      image.data.set([pixels[i], pixels[n + i], pixels[2 * n + i], 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  const nameOf = (one) => `${VALUES.colour[one.colour]} ${VALUES.shape[one.shape]}`;
  const described = (objects) =>
    objects.map((one) => `${nameOf(one)} at ${VALUES.position[one.position]}`).join(", ");

  // The picture that a reader composes. `changed(what)` is called after each change; while an
  // object is dragged, `what` is "dragged", and "moved" at its end.
  class Composer {
    constructor(about, changed, ...below) {
      Object.assign(this, { size: about.size, most: about.most, changed, chosen: 0 });
      const { start } = about;
      const noise = new Int8Array(mmcl.bytes(start.noise).buffer);
      this.scene = { ...structuredClone(start), noise };
      this.random = mmcl.randomly(2026);
      this.canvas = h("canvas", { role: "img" });
      this.veil = h("canvas", { className: "mmcl-veil", "aria-hidden": "true" });
      this.mark = h("div", { className: "mmcl-mark" });
      this.objects = h("div", { className: "mmcl-row" });
      this.fields = h("div", { className: "mmcl-row" });
      this.selects = {};
      for (const [name, values] of Object.entries(VALUES)) {
        const options = values.map((text, value) => h("option", { value, textContent: text }));
        const select = h("select", {}, ...options);
        select.onchange = () => this.set(name, Number(select.value));
        this.selects[name] = select;
        this.fields.append(labelled(name, select));
      }
      this.more = button("add an object", () => this.add());
      this.less = button("remove it", () => this.remove());
      this.swap = button("swap the colours", () => this.swapColours());
      const another = button("another scene", () => this.another());
      const several = about.most > 1 ? [this.swap, this.more, this.less] : [];
      this.element = h(
        "div",
        { className: "mmcl-composer" },
        h("div", { className: "mmcl-picture" }, this.canvas, this.veil, this.mark),
        ...below,
        this.objects,
        this.fields,
        h("div", { className: "mmcl-row" }, ...several, another),
        h("p", { className: "mmcl-hint" }, "Drag an object, or choose it and press the arrow keys."),
      );
      this.listen();
      this.draw();
    }

    get pixels() {
      return mmcl.render(this.scene, this.size);
    }

    draw() {
      const { objects } = this.scene;
      this.chosen = Math.min(this.chosen, objects.length - 1);
      const chosen = objects[this.chosen];
      paint(this.canvas, this.pixels, this.size);
      this.canvas.setAttribute("aria-label", `The picture: ${described(objects)}`);
      for (const [name, select] of Object.entries(this.selects)) select.value = chosen[name];
      this.mark.style.left = `${50 * (chosen.position & 1)}%`;
      this.mark.style.top = `${50 * (chosen.position >> 1)}%`;
      this.mark.hidden = objects.length < 2;
      // The focus stays: only as many buttons are made or dropped as objects were.
      while (this.objects.children.length > objects.length) this.objects.lastChild.remove();
      while (this.objects.children.length < objects.length) {
        const i = this.objects.children.length;
        const one = button("", () => this.choose(i));
        one.onkeydown = (event) => this.press(event, i);
        this.objects.append(one);
      }
      objects.forEach((one, i) => {
        this.objects.children[i].textContent = nameOf(one);
        this.objects.children[i].setAttribute("aria-pressed", String(i === this.chosen));
      });
      this.more.disabled = objects.length >= this.most;
      this.less.disabled = objects.length < 2;
      this.swap.disabled = objects.length < 2;
    }

    choose(i) {
      this.chosen = i;
      this.draw();
    }

    done(what) {
      this.draw();
      this.changed(what);
    }

    set(name, value) {
      const one = this.scene.objects[this.chosen];
      const before = VALUES[name][one[name]];
      if (name === "position") this.place(one, value);
      else one[name] = value;
      if (name === "size") {
        one.radius = 3 * value + (one.radius % 3);
        this.shift(one, one.shift);
      }
      this.done(`${before} to ${VALUES[name][value]}`);
    }

    // Two objects that want one quarter change places.
    place(one, position) {
      const there = this.scene.objects.find((other) => other.position === position);
      if (there) there.position = one.position;
      one.position = position;
    }

    shift(one, [down, right]) {
      const far = mmcl.room(one.radius, this.size);
      const within = (v) => Math.min(Math.max(Math.round(v), -far), far);
      one.shift = [within(down), within(right)];
    }

    press(event, i) {
      const move = MOVES[event.key];
      if (!move) return;
      event.preventDefault();
      this.chosen = i;
      const one = this.scene.objects[i];
      const before = one.shift;
      this.shift(one, [before[0] + move[0], before[1] + move[1]]);
      if (before[0] === one.shift[0] && before[1] === one.shift[1]) {
        const row = (one.position >> 1) + move[0];
        const column = (one.position & 1) + move[1];
        if (row < 0 || row > 1 || column < 0 || column > 1) return;
        this.place(one, 2 * row + column);
        const far = mmcl.room(one.radius, this.size);
        this.shift(one, move.map((step, axis) => (step ? -step * far : before[axis])));
      }
      this.done("moved");
    }

    add() {
      const { objects } = this.scene;
      const any = (n) => Math.floor(n * this.random());
      const free = [0, 1, 2, 3].filter((q) => !objects.some((one) => one.position === q));
      const position = free[any(free.length)];
      const made = { shape: any(6), colour: any(6), size: any(2), texture: any(3), position };
      objects.push(mmcl.placed(made, this.random, this.size));
      this.chosen = objects.length - 1;
      this.done("added");
    }

    remove() {
      const [gone] = this.scene.objects.splice(this.chosen, 1);
      this.done(`without the ${nameOf(gone)}`);
    }

    swapColours() {
      const { objects } = this.scene;
      const colours = objects.map((one) => one.colour);
      objects.forEach((one, i) => {
        one.colour = colours[(i + 1) % colours.length];
      });
      this.done("colours swapped");
    }

    another() {
      this.scene = mmcl.scene(this.random, this.size, Math.min(2, this.most), Math.min(3, this.most));
      this.chosen = 0;
      this.done("another scene");
    }

    // Where a pointer is, in pixels of the picture; and the object there, or -1.
    at(event) {
      const box = this.canvas.getBoundingClientRect();
      const scale = this.size / box.width;
      return [(event.clientY - box.top) * scale, (event.clientX - box.left) * scale];
    }

    middle(one) {
      const half = this.size / 2;
      const quarter = [one.position >> 1, one.position & 1];
      return quarter.map((q, axis) => half * (q + 0.5) + one.shift[axis]);
    }

    hit(event) {
      const [y, x] = this.at(event);
      return this.scene.objects.findIndex((one) => {
        const [down, right] = this.middle(one);
        const reach = 1.2 * mmcl.RADII[one.radius] * (this.size / 2);
        return Math.max(Math.abs(y - down), Math.abs(x - right)) <= reach;
      });
    }

    listen() {
      const { canvas } = this;
      let held = null;
      // A finger that begins beside the objects scrolls the page.
      const hold = (event) => this.hit(event.touches[0]) >= 0 && event.preventDefault();
      canvas.addEventListener("touchstart", hold, { passive: false });
      canvas.onpointerdown = (event) => {
        const i = this.hit(event);
        if (i < 0) return;
        canvas.setPointerCapture(event.pointerId);
        this.choose(i);
        const one = this.scene.objects[i];
        const from = this.at(event);
        const middle = this.middle(one);
        held = { one, offset: [middle[0] - from[0], middle[1] - from[1]], moved: false };
      };
      canvas.onpointermove = (event) => {
        if (!held) {
          canvas.style.cursor = this.hit(event) < 0 ? "" : "grab";
          return;
        }
        const { one, offset } = held;
        const half = this.size / 2;
        const to = this.at(event).map((v, axis) => v + offset[axis]);
        const [row, column] = to.map((v) => (v < half ? 0 : 1));
        const before = [one.position, ...one.shift].join();
        if (one.position !== 2 * row + column) this.place(one, 2 * row + column);
        this.shift(one, to.map((v, axis) => v - half * ([row, column][axis] + 0.5)));
        if ([one.position, ...one.shift].join() === before) return;
        held.moved = true;
        this.done("dragged");
      };
      canvas.onpointerup = canvas.onpointercancel = () => {
        if (held?.moved) this.done("moved");
        held = null;
      };
    }

    // Darkens the patches that have little of something: [N] in [0, 1], or null for none.
    cover(shares) {
      this.veil.hidden = !shares;
      if (!shares) return;
      const grid = Math.sqrt(shares.length);
      this.veil.width = this.veil.height = grid;
      const image = new ImageData(grid, grid);
      shares.forEach((share, i) => {
        image.data[4 * i + 3] = Math.round(215 * (1 - share));
      });
      this.veil.getContext("2d").putImageData(image, 0, 0);
    }
  }

  // A sentence to write: its words below it, those that the model does not know struck through.
  class Sentence {
    // With `press`, words are buttons: it gets the number of one, or null for none.
    constructor(model, text, changed, press) {
      Object.assign(this, { model, changed, press, pressed: null });
      this.input = h("input", { type: "text", value: text, spellcheck: false, autocomplete: "off" });
      this.input.maxLength = 400;
      this.input.oninput = () => {
        this.pressed = null;
        this.done("another sentence");
      };
      this.words = h("p", { className: "mmcl-words" });
      this.offers = h("div", { className: "mmcl-row" });
      this.element = h(
        "div",
        {},
        labelled("your sentence", this.input),
        this.words,
        this.offers,
      );
      this.draw();
    }

    get text() {
      return this.input.value;
    }

    write(text, what) {
      this.input.value = text;
      this.pressed = null;
      this.done(what);
    }

    done(what) {
      this.draw();
      this.changed(what);
    }

    draw() {
      const words = this.model.words(this.text);
      const shown = words.map(([word, id], i) => {
        if (id === 3) return h("span", {}, h("s", {}, word), h("small", {}, " unknown"));
        if (!this.press) return h("span", {}, word);
        const one = button(word, () => {
          this.pressed = this.pressed === i ? null : i;
          for (const [k, other] of [...this.words.children].entries()) {
            if (other.type) other.setAttribute("aria-pressed", String(k === this.pressed));
          }
          this.press(this.pressed);
        });
        one.setAttribute("aria-pressed", String(i === this.pressed));
        return one;
      });
      this.words.replaceChildren(...shown.flatMap((one) => [one, " "]));
      const [last, id] = words.at(-1) ?? ["", 0];
      const known = this.model.spec.words.filter((word) => word.startsWith(last));
      const offers = id === 3 ? known.slice(0, 5) : [];
      this.offers.replaceChildren(
        ...offers.map((word) => {
          const cut = this.text.trimEnd();
          const whole = `${cut.slice(0, cut.length - last.length)}${word} `;
          return button(`${word}?`, () => {
            this.write(whole, "another sentence");
            this.input.focus();
          });
        }),
      );
    }

    // Tints the words: shares in [0, 1], one a word; or null for none.
    tint(shares) {
      [...this.words.children].forEach((word, i) => {
        word.style.setProperty("--share", shares ? shares[i] : 0);
        word.classList.toggle("mmcl-lit", Boolean(shares));
      });
    }
  }

  // A question to answer before anything is moved.
  function guess({ question, answers, now }) {
    const said = h("p", { className: "mmcl-now", hidden: true });
    const group = `mmcl-guess-${++named}`;
    const choices = answers.map((answer) => {
      const radio = h("input", { type: "radio", name: group });
      radio.onchange = () => {
        said.textContent = `Your guess: ${answer}. ${now}`;
        said.hidden = false;
      };
      return h("label", {}, radio, ` ${answer}`);
    });
    const legend = h("legend", {}, `Guess first: ${question}`);
    return h("fieldset", {}, legend, h("div", { className: "mmcl-row" }, ...choices), said);
  }

  // Calls `work` once a frame at most; and says a line for a screen reader when all is quiet.
  function paced(work, status, line) {
    let asked = false;
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        status.textContent = line();
      }, 400);
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        work();
      });
    };
  }

  // What was changed last, and what that did to a number.
  class Change {
    constructor() {
      this.element = h("p", { className: "mmcl-change" }, "Change something, and see.");
      this.what = "";
    }

    // Before a change is computed: a drag is one change, from its beginning on.
    note(what) {
      if (what === "dragged" || what === "moved") {
        if (this.what !== "dragged") this.from = this.value;
      } else this.from = this.value;
      this.what = what;
    }

    show(value) {
      this.value = value;
      if (!this.what || this.from === undefined) return;
      const said = this.what === "dragged" ? "moved" : this.what;
      this.element.textContent = `${said}: from ${two(this.from)} to ${two(value)}`;
    }
  }

  const OTHER = ["colour", "shape", "size", "texture", "position"];

  // Sentences for a picture, each with one mistake: [[what, text], ...].
  function mistakes(objects, detail, i) {
    const right = mmcl.say(objects, detail);
    const found = [["as it is", right]];
    const add = (what, changed) => {
      const text = mmcl.say(changed, detail);
      if (!found.some(([, known]) => known === text)) found.push([what, text]);
    };
    const exchanged = (name) => {
      const values = objects.map((one) => one[name]);
      return objects.map((one, k) => ({ ...one, [name]: values[(k + 1) % values.length] }));
    };
    if (objects.length > 1) {
      for (const name of ["colour", "shape", "position"]) {
        add(`${name}s swapped`, exchanged(name));
      }
    }
    for (const name of OTHER) {
      const taken = name === "position" ? objects.map((one) => one.position) : [];
      const n = VALUES[name].length;
      let value = (objects[i][name] + 1) % n;
      while (taken.includes(value) && value !== objects[i][name]) value = (value + 1) % n;
      add(`another ${name}`, objects.map((one, k) => (k === i ? { ...one, [name]: value } : one)));
    }
    return found;
  }

  // CLIP: a picture and a sentence.
  function pair(root, about) {
    const model = new mmcl.Model(about.models[0].spec);
    const vectors = new Map(); // of sentences
    const told = (text) => {
      if (!vectors.has(text)) vectors.set(text, model.embedOne("caption", model.number(text)));
      return vectors.get(text);
    };
    const change = new Change();
    const score = h("p", { className: "mmcl-score" });
    const composer = new Composer(about, (what) => refresh(what), score, change.element);
    const where = h("p", { className: "mmcl-hint" });
    const sentence = new Sentence(
      model,
      about.sentence,
      (what) => refresh(what),
      () => point(),
    );
    const list = h("ol", { className: "mmcl-list" });
    const status = h("p", { className: "mmcl-status", role: "status" });
    const describe = button("describe the picture", () =>
      sentence.write(mmcl.say(composer.scene.objects, about.detail), "the true sentence"),
    );
    const gallery = new Gallery(model, about);
    let line = "";

    let seen = null; // the encoded picture

    // Where a pressed word is: the patches by their similarity to it.
    function point() {
      if (sentence.pressed === null) {
        composer.cover(null);
        where.textContent = "Press a word: bright patches are most similar to it.";
        return;
      }
      const said = model.encode("caption", model.number(sentence.text));
      const word = model.embedTokens("caption", said)[sentence.pressed + 1];
      const patches = model.embedTokens("image", seen).map((patch) => mmcl.dot(patch, word));
      composer.cover(spread(patches));
      where.textContent = "CLIP was never trained to point: it compares whole pictures.";
    }

    function update() {
      seen = model.encode("image", composer.pixels);
      const picture = model.embedPooled("image", seen);
      point();
      const mine = mmcl.dot(picture, told(sentence.text));
      score.replaceChildren("similarity ", bar(mine));
      root.dataset.score = String(mine);
      change.show(mine);
      const { objects } = composer.scene;
      const rows = mistakes(objects, about.detail, composer.chosen).map(([what, text]) => ({
        what,
        text,
        value: mmcl.dot(picture, told(text)),
      }));
      rows.push({ what: "yours", text: sentence.text, value: mine });
      rows.sort((a, b) => b.value - a.value);
      list.replaceChildren(
        ...rows.map(({ what, text, value }) =>
          h(
            "li",
            { className: what === "yours" ? "mmcl-mine" : "" },
            bar(value),
            h("span", {}, h("b", {}, what), ` ${text}`),
          ),
        ),
      );
      const rank = 1 + rows.filter((row) => row.value > mine).length;
      line = `Similarity ${two(mine)}. Of ${rows.length} sentences, yours is number ${rank}.`;
      gallery.show(told(sentence.text), mine);
    }

    const soon = paced(update, status, () => line);
    function refresh(what) {
      change.note(what);
      soon();
    }

    const right = h("div", { className: "mmcl-side" });
    right.append(
      sentence.element,
      where,
      h("div", { className: "mmcl-row" }, describe),
      h("p", { className: "mmcl-head" }, "Your sentence among others, for this picture:"),
      list,
    );
    root.append(h("div", { className: "mmcl-two" }, composer.element, right), gallery.element, status);
    update();
    status.textContent = line;
  }

  // Other pictures, and which of them fit a sentence best; encoded when it is opened.
  class Gallery {
    constructor(model, about, count = 60) {
      Object.assign(this, { model, about, count, scenes: [] });
      this.places = h("div", { className: "mmcl-row mmcl-gallery" });
      this.line = h("p", {}, "");
      const summary = h("summary", {}, `Which of ${count} other pictures fit your sentence best?`);
      this.element = h("details", {}, summary, this.line, this.places);
      this.element.ontoggle = () => this.element.open && !this.scenes.length && this.fill();
    }

    fill() {
      const { size, most } = this.about;
      const random = mmcl.randomly(60);
      const next = () => {
        for (let i = 0; i < 3 && this.scenes.length < this.count; i++) {
          const drawn = mmcl.scene(random, size, 1, Math.min(3, most));
          const pixels = mmcl.render(drawn, size);
          const vector = this.model.embedOne("image", pixels);
          this.scenes.push({ pixels, vector, name: described(drawn.objects) });
        }
        this.show(this.asked, this.mine);
        if (this.scenes.length < this.count) setTimeout(next);
      };
      next();
    }

    show(vector, mine) {
      Object.assign(this, { asked: vector, mine });
      if (!this.element.open || !this.scenes.length) return;
      const ranked = this.scenes
        .map((one) => ({ ...one, value: mmcl.dot(one.vector, vector) }))
        .sort((a, b) => b.value - a.value);
      const rank = 1 + ranked.filter((one) => one.value > mine).length;
      this.line.textContent = `Among these, your own picture would be number ${rank}. The best six:`;
      this.places.replaceChildren(
        ...ranked.slice(0, 6).map((one) => {
          const canvas = h("canvas", { role: "img", "aria-label": one.name });
          paint(canvas, one.pixels, this.about.size);
          return h("figure", {}, canvas, bar(one.value));
        }),
      );
    }
  }

  const spread = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return Array.from(values, (v) => (high > low ? (v - low) / (high - low) : 0));
  };

  // FDT: the tokens of a picture and a sentence; one that is pressed shows where it is called.
  function tokens(root, about) {
    const model = new mmcl.Model(about.models[0].spec);
    const change = new Change();
    const score = h("p", { className: "mmcl-score" });
    const composer = new Composer(about, (what) => refresh(what), score, change.element);
    const sentence = new Sentence(model, about.sentence, (what) => refresh(what));
    const list = h("ul", { className: "mmcl-list mmcl-tokens" });
    const where = h("p", { className: "mmcl-hint" });
    const status = h("p", { className: "mmcl-status", role: "status" });
    const describe = button("describe the picture", () =>
      sentence.write(mmcl.say(composer.scene.objects, about.detail), "the true sentence"),
    );
    let pressed = null;
    let found = {};
    let line = "";

    function update() {
      const values = { image: composer.pixels, caption: model.number(sentence.text) };
      found = {};
      for (const [m, value] of Object.entries(values)) {
        found[m] = model.ground(m, model.encode(m, value));
      }
      const cosine =
        mmcl.dot(found.image.feature, found.caption.feature) /
        Math.hypot(...found.image.feature) /
        Math.hypot(...found.caption.feature);
      root.dataset.score = String(cosine);
      score.replaceChildren("similarity ", bar(cosine));
      change.show(cosine);
      show();
      const on = (m) => found[m].weights.filter((w) => w > 0).length;
      line = `Similarity ${two(cosine)}. The picture calls ${on("image")} tokens, the sentence ${on("caption")}.`;
    }

    function show() {
      const { image, caption } = found;
      const strength = image.weights.map((w, c) => w + caption.weights[c]);
      const best = strength
        .map((value, c) => ({ c, value }))
        .filter(({ value, c }) => value > 0 || c === pressed)
        .sort((a, b) => b.value - a.value);
      const shown = best.filter(({ c }, i) => i < 10 || c === pressed);
      const most = Math.max(...image.weights, ...caption.weights);
      const focused = list.contains(document.activeElement) && document.activeElement.dataset.c;
      list.replaceChildren(
        ...shown.map(({ c }) => {
          const press = button(`token ${c}`, () => {
            pressed = pressed === c ? null : c;
            show();
          });
          press.dataset.c = c;
          press.setAttribute("aria-pressed", String(c === pressed));
          return h(
            "li",
            {},
            press,
            h("span", {}, "picture ", bar(image.weights[c], most)),
            h("span", {}, "sentence ", bar(caption.weights[c], most)),
          );
        }),
      );
      if (focused) list.querySelector(`[data-c="${focused}"]`)?.focus();
      if (pressed === null) {
        composer.cover(null);
        sentence.tint(null);
        where.textContent = "Press a token: bright patches and tinted words call it most.";
        return;
      }
      const patches = spread(image.scores.map((row) => row[pressed]));
      const words = model.words(sentence.text).map(([word]) => word);
      const scores = caption.scores.slice(1, -1).map((row) => row[pressed]);
      composer.cover(patches);
      sentence.tint(spread(scores));
      const word = words[scores.indexOf(Math.max(...scores))];
      where.textContent = word
        ? `Token ${pressed}: of the words, "${word}" calls it most.`
        : `Token ${pressed}.`;
    }

    const soon = paced(update, status, () => line);
    function refresh(what) {
      change.note(what);
      soon();
    }

    const right = h("div", { className: "mmcl-side" });
    right.append(
      sentence.element,
      h("div", { className: "mmcl-row" }, describe),
      h("p", { className: "mmcl-head" }, "The strongest tokens of both:"),
      where,
      list,
    );
    root.append(h("div", { className: "mmcl-two" }, composer.element, right), status);
    update();
    status.textContent = line;
  }

  const SAID = { image: "picture", caption: "caption", tags: "tags" };

  // Models that take any part of a sample: what they tell of the class when parts are switched off.
  function parts(root, about) {
    const models = about.models.map(({ name, spec }) => ({ name, model: new mmcl.Model(spec) }));
    const composer = new Composer({ ...about, most: 1 }, (what) => {
      if (what !== "dragged" && what !== "moved") follow();
      soon();
    });
    const options = (name) =>
      VALUES[name].map((text, value) => h("option", { value, textContent: text }));
    const caption = h("select", {}, ...options("shape"));
    const tag = h("select", {}, ...options("colour"));
    caption.onchange = tag.onchange = () => soon();
    const switches = {};
    const fields = { caption: labelled("caption says", caption), tags: labelled("tag says", tag) };
    const there = () => about.modalities.filter((m) => switches[m].checked);
    const rows = about.modalities.map((m) => {
      switches[m] = h("input", { type: "checkbox", checked: true });
      switches[m].onchange = () => soon();
      const label = h("label", { className: "mmcl-switch" }, switches[m], ` ${SAID[m] ?? m}`);
      return h("div", { className: "mmcl-row" }, label, fields[m] ?? "");
    });
    const status = h("p", { className: "mmcl-status", role: "status" });
    const boxes = models.map(({ name }) => {
      const grid = h("div", { className: "mmcl-grid", role: "img" });
      const best = h("p", {});
      const far = h("p", { className: "mmcl-far" });
      const element = h("section", {}, h("p", { className: "mmcl-head" }, name), best, grid, far);
      return { grid, best, far, element };
    });
    let line = "";

    function follow() {
      const [one] = composer.scene.objects;
      caption.value = one.shape;
      tag.value = one.colour;
    }

    function sample() {
      const word = VALUES.shape[caption.value];
      const text = `${"aeiou".includes(word[0]) ? "an" : "a"} ${word}`;
      const tags = about.tags.map(([name, value]) =>
        Number((name === "colour" ? tag : caption).value) === value ? 1 : 0,
      );
      return { image: composer.pixels, caption: models[0].model.number(text), tags };
    }

    function update() {
      const open = there();
      for (const m of about.modalities) switches[m].disabled = open.length === 1 && open[0] === m;
      const every = sample();
      const whole = Object.fromEntries(about.modalities.map((m) => [m, every[m]]));
      const part = Object.fromEntries(open.map((m) => [m, every[m]]));
      const [one] = composer.scene.objects;
      const own = 6 * one.shape + one.colour;
      composer.element.classList.toggle("mmcl-off", !open.includes("image"));
      const said = models.map(({ name, model }, k) => {
        const shares = model.classes(part);
        const top = shares.indexOf(Math.max(...shares));
        const word = `${VALUES.colour[top % 6]} ${VALUES.shape[Math.floor(top / 6)]}`;
        const { grid, best, far } = boxes[k];
        best.replaceChildren(`says: ${word} `, bar(shares[top]));
        table(grid, shares, own);
        grid.setAttribute("aria-label", `${name}: ${word} ${two(shares[top])}`);
        const cosine = mmcl.dot(unit(model.embed(part)), unit(model.embed(whole)));
        const angle = (180 / Math.PI) * Math.acos(Math.min(Math.max(cosine, -1), 1));
        const degrees = `${Math.round(angle)}\u00b0`;
        far.replaceChildren("angle to the whole ", bar(angle, 90, degrees));
        root.dataset[`score${k}`] = String(shares[own]);
        return `${name} says ${word}, ${two(shares[top])}, ${degrees} from the whole.`;
      });
      line = `With ${open.map((m) => SAID[m] ?? m).join(", ")}: ${said.join(" ")}`;
    }

    const soon = paced(update, status, () => line);
    const right = h("div", { className: "mmcl-side" });
    right.append(
      h("p", { className: "mmcl-head" }, "What is left of the sample:"),
      ...rows,
      h("div", { className: "mmcl-models" }, ...boxes.map((box) => box.element)),
      h("p", { className: "mmcl-hint" }, "The stronger the colour, the more likely; the frame is what the picture shows."),
    );
    root.append(h("div", { className: "mmcl-two" }, composer.element, right), status);
    follow();
    update();
    status.textContent = line;
  }

  function unit(x) {
    const norm = Math.hypot(...x) || 1;
    return Array.from(x, (v) => v / norm);
  }

  const SIGNS = ["\u25cf", "\u25a0", "\u25b2", "\u2605", "\u271a", "\u25cb"]; // of the shapes

  // 36 classes as colours by shapes.
  function table(grid, shares, own) {
    const cells = [h("span", {})];
    for (const sign of SIGNS) cells.push(h("span", { className: "mmcl-sign" }, sign));
    VALUES.colour.forEach((colour, c) => {
      cells.push(h("span", {}, colour));
      VALUES.shape.forEach((_, s) => {
        const cell = h("i", { className: 6 * s + c === own ? "mmcl-own" : "" });
        cell.style.setProperty("--share", shares[6 * s + c]);
        cells.push(cell);
      });
    });
    grid.replaceChildren(...cells);
  }

  mmcl.views = { pair, tokens, parts, ...mmcl.views };
  Object.assign(mmcl, { h, button, bar, labelled, guess, paced, two });

  // Puts the figure into its place, once the place and its data are in the document.
  mmcl.mount = (id, tries = 100) => {
    const place = document.getElementById(id);
    const data = document.getElementById(`${id}-data`);
    if (!place || !data) {
      if (tries) setTimeout(() => mmcl.mount(id, tries - 1), 50);
      return;
    }
    const root = place.querySelector(".mmcl-live");
    if (root.childElementCount) return;
    const about = JSON.parse(data.textContent);
    if (about.guess) root.append(guess(about.guess));
    mmcl.views[about.view](root, about);
    root.hidden = false;
    place.classList.add("mmcl-on");
  };

  mmcl.start = (id) => {
    const idle = globalThis.requestIdleCallback ?? ((work) => setTimeout(work, 1));
    const soon = () => idle(() => mmcl.mount(id));
    if (document.readyState !== "loading") soon();
    else document.addEventListener("DOMContentLoaded", soon);
  };
})();
