// The forward pass of the book's models, number by number as in mmcl_core: encoders.py, grounding.py
// and methods/. One sample at a time; a row of tokens is a Float32Array, [N, F] row by row.
// `mmcl_book.live` packs the weights and refuses what is not mirrored here.
"use strict";
// biome-ignore lint: one name for all that the figures share
var mmcl = globalThis.mmcl || (globalThis.mmcl = {});

(() => {
  const EPS = 1e-5;

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  }

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (!exponent) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  // {name: {shape, values}} from [[name, shape], ...] and all numbers in 16 bits, one after another.
  function unpack(index, base64) {
    const raw = new DataView(bytes(base64).buffer);
    const table = new Float32Array(65536).map((_, bits) => half(bits));
    const tensors = {};
    let at = 0;
    for (const [name, shape] of index) {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      for (let i = 0; i < values.length; i++, at++) values[i] = table[raw.getUint16(2 * at, true)];
      tensors[name] = { shape, values };
    }
    return tensors;
  }

  // The error function, by a series of positive terms.
  function erf(x) {
    const z = Math.abs(x);
    if (z > 6) return Math.sign(x);
    let term = z;
    let sum = z;
    for (let n = 1; term > 1e-12 * sum; n++) sum += term *= (2 * z * z) / (2 * n + 1);
    return Math.sign(x) * (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
  }

  const gelu = (x) => x.map((v) => 0.5 * v * (1 + erf(v * Math.SQRT1_2)));
  const relu = (x) => x.map((v) => Math.max(v, 0));
  const add = (x, y) => x.map((v, i) => v + y[i]);

  // [N, F] times the transpose of [O, F], plus [O]. Four outputs at a time: twice as fast.
  function linear(x, weight, bias, inner) {
    const outer = weight.length / inner;
    const n = x.length / inner;
    const out = new Float32Array(n * outer);
    const four = outer - (outer % 4);
    for (let i = 0; i < n; i++) {
      const a = i * inner;
      const to = i * outer;
      for (let o = 0; o < four; o += 4) {
        const b = o * inner;
        let [s, t, u, v] = [0, 0, 0, 0];
        for (let f = 0; f < inner; f++) {
          const value = x[a + f];
          s += value * weight[b + f];
          t += value * weight[b + inner + f];
          u += value * weight[b + 2 * inner + f];
          v += value * weight[b + 3 * inner + f];
        }
        out[to + o] = s;
        out[to + o + 1] = t;
        out[to + o + 2] = u;
        out[to + o + 3] = v;
      }
      for (let o = four; o < outer; o++) {
        let sum = 0;
        for (let f = 0; f < inner; f++) sum += x[a + f] * weight[o * inner + f];
        out[to + o] = sum;
      }
      if (bias) for (let o = 0; o < outer; o++) out[to + o] += bias[o];
    }
    return out;
  }

  function layerNorm(x, weight, bias) {
    const f = weight.length;
    const out = new Float32Array(x.length);
    for (let at = 0; at < x.length; at += f) {
      const [mean, scale] = moments(x, (i) => at + i, f);
      for (let i = 0; i < f; i++) out[at + i] = (x[at + i] - mean) * scale * weight[i] + bias[i];
    }
    return out;
  }

  function moments(x, place, count) {
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < count; i++) sum += x[place(i)];
    const mean = sum / count;
    for (let i = 0; i < count; i++) squares += (x[place(i)] - mean) ** 2;
    return [mean, 1 / Math.sqrt(squares / count + EPS)];
  }

  // Pixels [P, C], in `groups` groups of channels.
  function groupNorm(x, weight, bias, groups) {
    const channels = weight.length;
    const each = channels / groups;
    const pixels = x.length / channels;
    const out = new Float32Array(x.length);
    for (let g = 0; g < groups; g++) {
      const place = (i) => ((i / each) | 0) * channels + g * each + (i % each);
      const [mean, scale] = moments(x, place, pixels * each);
      for (let i = 0; i < pixels * each; i++) {
        const at = place(i);
        const c = at % channels;
        out[at] = (x[at] - mean) * scale * weight[c] + bias[c];
      }
    }
    return out;
  }

  // A convolution with stride 2 and one pixel of zeros around: [side * side, C] to half the side.
  function convolve(x, side, kernel, bias) {
    const [, channels, k] = kernel.shape;
    const small = side / 2;
    const columns = new Float32Array(small * small * channels * k * k);
    let at = 0;
    for (let top = 0; top < small; top++) {
      for (let left = 0; left < small; left++) {
        for (let c = 0; c < channels; c++) {
          for (let dy = 0; dy < k; dy++) {
            for (let dx = 0; dx < k; dx++, at++) {
              const y = 2 * top + dy - 1;
              const z = 2 * left + dx - 1;
              if (y < 0 || z < 0 || y >= side || z >= side) continue;
              columns[at] = x[(y * side + z) * channels + c];
            }
          }
        }
      }
    }
    return linear(columns, kernel.values, bias, channels * k * k);
  }

  function softmax(x) {
    const top = Math.max(...x);
    const exps = Array.from(x, (v) => Math.exp(v - top));
    const sum = exps.reduce((a, b) => a + b, 0);
    return exps.map((v) => v / sum);
  }

  // The point of the simplex that is nearest to the scores.
  function sparsemax(scores) {
    const sorted = Array.from(scores).sort((a, b) => b - a);
    let sum = 0;
    let threshold = 0;
    for (let k = 0; k < sorted.length; k++) {
      sum += sorted[k];
      if (1 + (k + 1) * sorted[k] <= sum) break;
      threshold = (sum - 1) / (k + 1);
    }
    return Array.from(scores, (v) => Math.max(v - threshold, 0));
  }

  function unit(x) {
    const norm = Math.max(Math.sqrt(x.reduce((a, v) => a + v * v, 0)), 1e-12);
    return x.map((v) => v / norm);
  }

  const dot = (x, y) => x.reduce((a, v, i) => a + v * y[i], 0);

  function mean(rows) {
    return rows[0].map((_, i) => rows.reduce((a, row) => a + row[i], 0) / rows.length);
  }

  class Model {
    constructor(spec) {
      this.spec = spec;
      this.tensors = unpack(spec.tensors, spec.data);
      this.ids = new Map(spec.words.map((word, i) => [word, i + 4]));
    }

    has(name) {
      return name in this.tensors;
    }

    w(name) {
      return this.tensors[name].values;
    }

    apply(name, x) {
      const { shape, values } = this.tensors[`${name}.weight`];
      return linear(x, values, this.has(`${name}.bias`) ? this.w(`${name}.bias`) : null, shape[1]);
    }

    norm(name, x) {
      return layerNorm(x, this.w(`${name}.weight`), this.w(`${name}.bias`));
    }

    // A transformer block over [N, F]; all tokens are real.
    block(name, x, width, heads) {
      const n = x.length / width;
      const each = width / heads;
      const qkv = this.apply(`${name}.qkv`, this.norm(`${name}.norm_attention`, x));
      const mixed = new Float32Array(x.length);
      const row = new Float64Array(n);
      for (let h = 0; h < heads; h++) {
        for (let i = 0; i < n; i++) {
          const q = i * 3 * width + h * each;
          for (let j = 0; j < n; j++) {
            const k = j * 3 * width + width + h * each;
            let sum = 0;
            for (let f = 0; f < each; f++) sum += qkv[q + f] * qkv[k + f];
            row[j] = sum / Math.sqrt(each);
          }
          const share = softmax(row);
          for (let j = 0; j < n; j++) {
            const v = j * 3 * width + 2 * width + h * each;
            for (let f = 0; f < each; f++) mixed[i * width + h * each + f] += share[j] * qkv[v + f];
          }
        }
      }
      const attended = add(x, this.apply(`${name}.out`, mixed));
      const inner = gelu(this.apply(`${name}.mlp.0`, this.norm(`${name}.norm_mlp`, attended)));
      return add(attended, this.apply(`${name}.mlp.2`, inner));
    }

    blocks(name, x, width, heads) {
      let tokens = x;
      for (let i = 0; this.has(`${name}.blocks.${i}.out.bias`); i++) {
        tokens = this.block(`${name}.blocks.${i}`, tokens, width, heads);
      }
      return this.norm(`${name}.norm`, tokens);
    }

    // {pooled: [F], tokens: N rows of [F]} of pixels, a Uint8Array [3, size, size].
    image(name, pixels, { size, width, heads, pool }) {
      let x = new Float32Array(pixels.length);
      for (let c = 0, at = 0; c < 3; c++) {
        for (let i = 0; i < size * size; i++, at++) {
          x[i * 3 + c] = Math.fround(2 * Math.fround(pixels[at] / 255)) - 1;
        }
      }
      for (let layer = 0, side = size; layer < 3; layer++, side /= 2) {
        const at = `${name}.stem.${3 * layer}`;
        const after = `${name}.stem.${3 * layer + 1}`;
        x = convolve(x, side, this.tensors[`${at}.weight`], this.w(`${at}.bias`));
        x = groupNorm(x, this.w(`${after}.weight`), this.w(`${after}.bias`), 8);
        if (layer < 2) x = gelu(x);
      }
      x = add(x, this.w(`${name}.position`));
      if (pool === "cls") {
        const more = new Float32Array(x.length + width);
        more.set(this.w(`${name}.cls`));
        more.set(x, width);
        x = more;
      }
      const rows = split(this.blocks(name, x, width, heads), width);
      if (pool === "cls") return { pooled: rows[0], tokens: rows.slice(1) };
      if (pool === "mean") return { pooled: mean(rows), tokens: rows };
      const most = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i])));
      return { pooled: most, tokens: rows };
    }

    // The same of word numbers, start and end included.
    caption(name, ids, { width, heads }) {
      const x = new Float32Array(ids.length * width);
      const [words, places] = [this.w(`${name}.words.weight`), this.w(`${name}.position`)];
      ids.forEach((id, n) => {
        for (let f = 0; f < width; f++) {
          x[n * width + f] = words[id * width + f] + places[n * width + f];
        }
      });
      const rows = split(this.blocks(name, x, width, heads), width);
      return { pooled: mean(rows), tokens: rows };
    }

    // The same of tags, a list of zeros and ones.
    tags(name, tags, { width }) {
      const table = split(this.w(`${name}.embedding`), width);
      const rows = table.filter((_, i) => tags[i] > 0);
      const pooled = rows.length ? mean(rows) : new Float32Array(width);
      const inner = gelu(this.apply(`${name}.mlp.0`, pooled));
      return {
        pooled: this.norm(`${name}.norm`, add(pooled, this.apply(`${name}.mlp.2`, inner))),
        tokens: table,
      };
    }

    encode(modality, value, place = "encoders") {
      const about = this.spec[place][modality];
      return this[about.kind](`${place}.${modality}`, value, about);
    }

    // A projection head: one linear map, or two with a ReLU between them.
    head(name, x) {
      const first = this.apply(`${name}.0`, x);
      return this.has(`${name}.2.weight`) ? this.apply(`${name}.2`, relu(first)) : first;
    }

    // FDT: what the tokens of one modality call. {scores: N rows of [C], weights: [C], feature}.
    ground(modality, encoded) {
      const at = `heads.${modality}.query`;
      const { shape, values: codebook } = this.tensors.codebook;
      const [entries, dim] = shape;
      const scale = Math.sqrt(dim) * this.spec.grounding.temperature;
      const scores = encoded.tokens.map((token) => {
        const inner = this.norm(`${at}.3`, gelu(this.apply(`${at}.1`, this.norm(`${at}.0`, token))));
        return linear(this.apply(`${at}.4`, inner), codebook, null, dim).map((v) => v / scale);
      });
      const pooled =
        this.spec.grounding.pooling === "mean"
          ? mean(scores)
          : scores[0].map((_, c) => Math.max(...scores.map((row) => row[c])));
      const weights =
        this.spec.grounding.normalizer === "softmax" ? softmax(pooled) : sparsemax(pooled);
      const feature = new Float32Array(dim);
      for (let c = 0; c < entries; c++) {
        if (!weights[c]) continue;
        for (let d = 0; d < dim; d++) feature[d] += weights[c] * codebook[c * dim + d];
      }
      return { scores, weights, feature };
    }

    // A unit vector of one modality.
    embedOne(modality, value) {
      return this.embedPooled(modality, this.encode(modality, value));
    }

    // The same of what its encoder returned.
    embedPooled(modality, encoded) {
      if (this.spec.method === "FDT") return unit(this.ground(modality, encoded).feature);
      if (this.spec.method === "GMC") return this.onSphere(modality, encoded.pooled);
      return unit(this.head(`heads.${modality}`, encoded.pooled));
    }

    // CLIP: each patch, or each word, in the common space.
    embedTokens(modality, encoded) {
      return encoded.tokens.map((token) => unit(this.head(`heads.${modality}`, token)));
    }

    onSphere(base, pooled) {
      return unit(this.head("head", this.apply(`bases.${base}`, pooled)));
    }

    // A vector of whatever is there: {modality: value}. Of unit norm, but for GMC's plain average.
    embed(batch) {
      const { method, modalities } = this.spec;
      const there = modalities.filter((m) => m in batch);
      if (method === "LateFusion") return unit(this.hidden(batch));
      if (method === "GMC") {
        if (there.length === modalities.length) {
          const parts = there.map((m) => this.encode(m, batch[m], "joint_encoders").pooled);
          return this.onSphere("joint", side(parts));
        }
        const middle = mean(there.map((m) => this.embedOne(m, batch[m])));
        return this.spec.average === "plain" ? middle : unit(middle);
      }
      const vectors = there.map((m) => this.embedOne(m, batch[m]));
      return vectors.length === 1 ? vectors[0] : unit(add(vectors[0], vectors[1]));
    }

    hidden(batch) {
      const { modalities, encoders } = this.spec;
      let at = 0;
      const parts = modalities.map((m) => {
        const { width } = encoders[m];
        const fill = this.w("fill").slice(at, (at += width));
        return m in batch ? this.encode(m, batch[m]).pooled : fill;
      });
      return gelu(this.apply("fused.0", side(parts)));
    }

    // Fusion: [C] from whatever is there.
    logits(batch) {
      return this.apply("heads.fusion", this.hidden(batch));
    }

    // Probabilities of the classes: the fusion's own, or those of a probe on the embedding.
    classes(batch) {
      if (this.spec.method === "LateFusion") return softmax(this.logits(batch));
      return softmax(this.apply("probe", this.embed(batch)));
    }

    // [[word, its number or 3], ...] of a text, as `split_words` and `WordTokenizer` have it.
    words(text) {
      const composed = text.normalize("NFC").replaceAll("’", "'").toLowerCase().normalize("NFC");
      const found = composed.match(/[\p{L}\p{N}]+(?:'[\p{L}\p{N}]+)*/gu) || [];
      return found.slice(0, this.spec.max_length - 2).map((w) => [w, this.ids.get(w) ?? 3]);
    }

    // Word numbers, start and end included.
    number(text) {
      return [1, ...this.words(text).map(([, id]) => id), 2];
    }
  }

  function split(x, width) {
    const rows = [];
    for (let at = 0; at < x.length; at += width) rows.push(x.subarray(at, at + width));
    return rows;
  }

  function side(parts) {
    const out = new Float32Array(parts.reduce((a, part) => a + part.length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }

  Object.assign(mmcl, { Model, dot, bytes, softmax, sparsemax });
})();
