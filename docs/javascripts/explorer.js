// The page of the estimator explorer: controls, charts and readout around estimators.js.
(function () {
  "use strict";

  const place = document.getElementById("explorer");
  if (!place || place.dataset.ready) return;
  place.dataset.ready = "yes";

  const STEPS = 300, CHANNELS = 200, E = window.Estimators;
  const NAMES = { ema: "ema", debiased: "debiased", cumulative: "cumulative", window: "window", diminishing: "diminishing" };
  const digits = (value, n = 3) => (Math.abs(value) < 5e-4 ? "0" : Number(value.toPrecision(n)).toString()).replace("-", "\u2212");
  const share = (value) => digits(100 * value, 2) + " %";

  // Each slider: what it says, its ends, its start, what its position stands for, how that reads, and who uses it.
  const momentum = (p) => Number((10 ** p).toPrecision(2));
  const SLIDERS = {
    momentum: ["Momentum a", -3, 0, 0.02, -1, momentum, digits, ["ema", "debiased"]],
    size: ["Window, batches", 1, 100, 1, 19, Number, String, ["window"]],
    power: ["Power p", 0.1, 1, 0.05, 0.5, Number, digits, ["diminishing"]],
    batch: ["Batch size", 1, 9, 1, 4, (p) => 2 ** p, String, null],
    drift: ["Drift a step", 0, 0.05, 0.001, 0.01, Number, share, null],
    at: ["Look at step", 1, STEPS, 1, 100, Number, String, null],
  };

  place.innerHTML = `
    <form>
      <fieldset><legend>Estimator</legend>${E.KINDS.map((kind) => `
        <label><input type="radio" name="kind" value="${kind}"${kind === "ema" ? " checked" : ""}>${NAMES[kind]}</label>`).join("")}
      </fieldset>${Object.entries(SLIDERS).map(([name, [label, low, high, step, start]]) => `
      <div class="slider" data-name="${name}"><label for="explorer-${name}">${label}</label><output for="explorer-${name}"></output>
        <input type="range" id="explorer-${name}" min="${low}" max="${high}" step="${step}" value="${start}"></div>`).join("")}
      <button type="button">Draw other batches</button>
    </form>
    <div class="charts">
      <figure><figcaption>Running mean</figcaption><div data-chart="mean"></div></figure>
      <figure><figcaption>Running variance</figcaption><div data-chart="variance"></div></figure>
    </div>
    <figure><figcaption>Error of the running mean, in standard deviations of the data<span class="key">
      <span>${swatch("lag")}lag</span><span>${swatch("noise")}noise</span><span>${swatch("total")}both</span>
      <span>lines: theory, rings: ${CHANNELS} channels</span></span></figcaption><div data-chart="error"></div></figure>
    <div class="readout"><div></div><p aria-live="polite"></p></div>`;

  function swatch(name) {
    return `<svg style="width:22px" width="22" height="8" aria-hidden="true"><path class="line ${name}" d="M0 4H22"/></svg>`;
  }

  const form = place.querySelector("form");
  const chart = (name) => place.querySelector(`[data-chart=${name}]`);
  let seed = 1, drawn = null, shown = null;

  function read() {
    const chosen = { kind: form.elements.kind.value };
    for (const [name, [, , , , , meaning, text, users]] of Object.entries(SLIDERS)) {
      const row = form.querySelector(`[data-name=${name}]`), input = row.querySelector("input");
      chosen[name] = meaning(Number(input.value));
      row.querySelector("output").textContent = text(chosen[name]);
      input.setAttribute("aria-valuetext", text(chosen[name]));
      row.hidden = Boolean(users) && !users.includes(chosen.kind);
    }
    return chosen;
  }

  function compute(chosen) {
    const key = `${seed} ${chosen.batch}`;
    if (!drawn || drawn.key !== key) drawn = { key, rows: E.draws(seed, CHANNELS, STEPS, chosen.batch) };
    const data = E.truth(STEPS, chosen.drift), theory = E.theory(chosen.kind, chosen, data, chosen.batch);
    const seen = drawn.rows.map((row) => E.batches(row, data));
    const path = (what, initial) => seen.map((one) => E.running(chosen.kind, chosen, one[what], initial));
    const paths = { mean: path("mean", 0), variance: path("variance", 1) };
    return { chosen, data, theory, seen, paths,
      measured: { mean: E.spread(paths.mean), variance: E.spread(paths.variance) } };
  }

  function ticks(low, high, count) {
    const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= raw);
    const out = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) out.push(Number(v.toPrecision(6)));
    return out;
  }

  // Where small errors matter beside large ones, heights are square roots.
  const ROOTS = [0, 0.001, 0.01, 0.05, 0.2, 0.5, 1, 2, 4];

  // Axes of one chart: its scales and the marks common to all.
  function axes(box, low, high, height, name, root = false) {
    const width = Math.max(240, box.clientWidth), left = 34, right = 6, top = 6, bottom = 22;
    const part = (v) => (root ? Math.sqrt(v / high) : (v - low) / (high - low));
    const x = (t) => left + ((t - 1) / (STEPS - 1)) * (width - left - right);
    const y = (v) => top + (1 - part(v)) * (height - top - bottom);
    const every = width < 420 ? 100 : 50;
    let marks = "";
    const levels = root ? ROOTS.filter((v) => v <= high && (v === 0 || part(v) > 0.14)) : ticks(low, high, 4);
    for (const v of levels) marks += `<path class="grid" d="M${left} ${y(v)}H${width - right}"/><text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${digits(v)}</text>`;
    for (let t = every; t <= STEPS; t += every) marks += `<text x="${x(t)}" y="${height - 6}" text-anchor="${t === STEPS ? "end" : "middle"}">${t === every ? "step " : ""}${t}</text>`;
    marks += `<path class="axis" d="M${left} ${height - bottom}H${width - right}"/>`;
    return { x, y, wrap: (inner) => `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${name}"><defs><clipPath id="clip-${box.dataset.chart}"><rect x="${left}" y="${top - 4}" width="${width - left}" height="${height - top - bottom + 8}"/></clipPath></defs>${marks}<g clip-path="url(#clip-${box.dataset.chart})">${inner}</g></svg>` };
  }

  const line = (values, { x, y }) => "M" + Array.from(values, (v, i) => `${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`).join("L");

  function drawStatistic(result, what) {
    const { data, theory, seen, paths, chosen } = result, box = chart(what), noise = theory[what + "Noise"];
    const upper = theory[what].map((v, t) => v + 2 * noise[t]), lower = theory[what].map((v, t) => v - 2 * noise[t]);
    const all = [...data[what], ...paths[what][0], ...upper, ...lower, ...Array.from(seen[0][what]).sort((a, b) => a - b).slice(9, -9)];
    const low = Math.min(0, ...all), high = Math.max(...all) * 1.03;
    const scale = axes(box, low, high, 230, `Running ${what} and the truth over ${STEPS} steps`);
    const band = line(upper, scale) + "L" + line(lower, scale).slice(1).split("L").reverse().join("L") + "Z";
    const dots = Array.from(seen[0][what], (v, i) => `<circle class="dot" r="1.4" cx="${scale.x(i + 1).toFixed(1)}" cy="${scale.y(v).toFixed(1)}"/>`).join("");
    box.innerHTML = scale.wrap(`<path class="band" d="${band}"/>${dots}<path class="line truth" d="${line(data[what], scale)}"/>
      <path class="line run" d="${line(paths[what][0], scale)}"/><path class="at" d="M${scale.x(chosen.at)} 0V208"/>`);
  }

  function drawError(result) {
    const { data, theory, measured, chosen } = result, box = chart("error");
    const sd = data.variance.map(Math.sqrt);
    const lag = theory.mean.map((v, t) => Math.abs(v - data.mean[t]) / sd[t]);
    const noise = theory.meanNoise.map((v, t) => v / sd[t]);
    const total = lag.map((v, t) => Math.hypot(v, noise[t]));
    const scale = axes(box, 0, Math.max(0.01, ...total) * 1.05, 190, "Lag and noise of the running mean over the steps", true);
    let rings = "";
    for (let t = 20; t <= STEPS; t += 20) {
      const off = Math.abs(measured.mean.mean[t - 1] - data.mean[t - 1]) / sd[t - 1], spread = measured.mean.deviation[t - 1] / sd[t - 1];
      for (const [kind, v] of [["lag", off], ["noise", spread]]) rings += `<circle class="ring ${kind}" r="3.5" cx="${scale.x(t)}" cy="${scale.y(v)}"/>`;
    }
    box.innerHTML = scale.wrap(`<path class="at" d="M${scale.x(chosen.at)} 0V168"/><path class="line total" d="${line(total, scale)}"/>
      <path class="line lag" d="${line(lag, scale)}"/><path class="line noise" d="${line(noise, scale)}"/>${rings}`);
  }

  function figures({ data, theory, measured, chosen }) {
    const t = chosen.at - 1, sd = Math.sqrt(data.variance[t]), variance = data.variance[t];
    const rows = [
      ["lag of the mean, in standard deviations", (theory.mean[t] - data.mean[t]) / sd, (measured.mean.mean[t] - data.mean[t]) / sd],
      ["noise of the mean, in standard deviations", theory.meanNoise[t] / sd, measured.mean.deviation[t] / sd],
      ["lag of the variance, of its size", theory.variance[t] / variance - 1, measured.variance.mean[t] / variance - 1],
      ["noise of the variance, of its size", theory.varianceNoise[t] / variance, measured.variance.deviation[t] / variance],
    ];
    return rows;
  }

  function words({ kind, momentum: a, size, power, batch, at }) {
    const { noise, lag, left } = E.closedForm(kind, { momentum: a, size }, at);
    if (kind === "diminishing") return `The weight of batch ${at} is ${digits(E.gain(kind, at, { power }))}; it falls as 1 / step^${digits(power)}.`;
    const source = { ema: "a / (2 \u2212 a)", debiased: "a / (2 \u2212 a)", cumulative: "1 / t", window: "1 / k" }[kind];
    const behind = { ema: "(1 \u2212 a) / a", debiased: "(1 \u2212 a) / a", cumulative: "(t \u2212 1) / 2", window: "(k \u2212 1) / 2" }[kind];
    return `${kind === "cumulative" ? `At step ${at}` : "Once settled"}, the noise has ${source} = ${digits(noise)} of the variance of a batch's mean, `
      + `so it is ${digits(Math.sqrt(noise / batch))} standard deviations, as that of an average of ${digits(1 / noise)} batches. `
      + `The lag behind a steady drift is ${behind} = ${digits(lag)} steps. `
      + `After ${at} ${at === 1 ? "step" : "steps"} ${left < 5e-4 ? "nothing" : share(left)} of the initial value is left.`;
  }

  function draw() {
    shown = compute(read());
    drawStatistic(shown, "mean");
    drawStatistic(shown, "variance");
    drawError(shown);
    const [table, text] = place.querySelector(".readout").children;
    table.innerHTML = `<table class="figures"><thead><tr><th scope="col">At step ${shown.chosen.at}</th><th scope="col">theory</th><th scope="col">measured</th></tr></thead><tbody>${
      figures(shown).map(([name, one, two]) => `<tr><th scope="row">${name}</th><td>${digits(one)}</td><td>${digits(two)}</td></tr>`).join("")}</tbody></table>`;
    text.textContent = words(shown.chosen);
  }

  let waiting = false;
  const soon = () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  };
  form.addEventListener("input", soon);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => { seed += 1; soon(); });
  for (const figure of place.querySelectorAll("figure")) figure.addEventListener("pointermove", (event) => {
    const svg = figure.querySelector("[data-chart] svg"), box = svg.getBoundingClientRect();
    if (event.pointerType === "touch") return;
    const step = 1 + Math.round(((event.clientX - box.left - 34) / (box.width - 40)) * (STEPS - 1));
    form.querySelector("#explorer-at").value = Math.min(STEPS, Math.max(1, step));
    soon();
  });
  draw();
  let width = place.clientWidth;
  new ResizeObserver(() => { if (place.clientWidth !== width) { width = place.clientWidth; soon(); } }).observe(place);
})();
