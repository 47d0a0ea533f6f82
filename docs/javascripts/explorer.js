// The page of the estimator explorer: controls, charts and readout around estimators.js.
(function () {
  "use strict";

  const place = document.getElementById("explorer");
  if (!place || place.dataset.ready) return;
  place.dataset.ready = "yes";

  const LANGUAGE = place.dataset.lang || "en";
  const WORDS = {
    en: {
      estimator: "Estimator", momentum: "Momentum a", size: "Window, batches", power: "Power p", batch: "Batch size",
      drift: "Drift per step", at: "Look at step", draw: "Draw other batches", mean: "Running mean", variance: "Running variance",
      seam: "One value, one standard deviation above the mean, after batch norm", truth: "with true statistics: 1",
      train: "train mode: the batch normalises", eval: "eval mode: the running statistics normalise",
      error: "Error of the running mean, in standard deviations of the data", lag: "lag", noise: "noise", both: "both",
      lines: "lines: theory, rings: {n} channels", step: "step", atStep: "At step {t}", theory: "theory", measured: "measured",
      rows: ["lag of the mean, in standard deviations", "noise of the mean, in standard deviations",
        "lag of the variance, relative to it", "noise of the variance, relative to it"],
      statistics: { mean: "Running mean and the truth over {n} steps", variance: "Running variance and the truth over {n} steps" },
      weight: "The weight of batch {t} is {gain}; it falls as 1 / step^{p}.",
      settled: "Once settled", here: "At step {t}", nothing: "none", steps: (n) => (n === 1 ? "step" : "steps"),
      modes: "At step {t} the value becomes {train} in train mode and {eval} in eval mode. ",
      text: "{when}, the noise has {source} = {noise} times the variance of a batch's mean. That is {sd} standard deviations, "
        + "as for an average of {many} batches. The lag behind a steady drift is {behind} = {lag} steps. "
        + "After {t} {steps} {left} of the initial value is left.",
    },
    zh: {
      estimator: "估计器", momentum: "momentum a", size: "窗口（批次数）", power: "幂 p", batch: "批次大小",
      drift: "每步漂移", at: "查看第几步", draw: "换一组批次", mean: "滑动均值", variance: "滑动方差",
      seam: "一个比均值高一个标准差的值，归一化之后", truth: "用真实统计量：1",
      train: "训练模式：用当前批次归一化", eval: "评估模式：用滑动统计量归一化",
      error: "滑动均值的误差，以数据的标准差为单位", lag: "滞后", noise: "噪声", both: "合计",
      lines: "线：理论，圈：{n} 个通道", step: "步", atStep: "第 {t} 步", theory: "理论", measured: "实测",
      rows: ["均值的滞后（标准差）", "均值的噪声（标准差）", "方差的滞后（相对大小）", "方差的噪声（相对大小）"],
      statistics: { mean: "{n} 步中的滑动均值和真实值", variance: "{n} 步中的滑动方差和真实值" },
      weight: "第 {t} 个批次的权重是 {gain}；它按 1 / 步数^{p} 下降。",
      settled: "稳定之后", here: "在第 {t} 步", nothing: "0", steps: () => "步",
      modes: "在第 {t} 步，这个值在训练模式下变成 {train}，在评估模式下变成 {eval}。",
      text: "{when}，噪声的方差是批次均值方差的 {source} = {noise}，也就是 {sd} 个标准差，相当于 {many} 个批次的平均。"
        + "对稳定漂移的滞后是 {behind} = {lag} 步。{t} {steps}之后还剩 {left} 的初值。",
    },
  }[LANGUAGE];
  const say = (text, values) => text.replace(/{(\w+)}/g, (_, name) => values[name]);

  const STEPS = 300, CHANNELS = 200, E = window.Estimators;
  const NAMES = { ema: "ema", debiased: "debiased", cumulative: "cumulative", window: "window", diminishing: "diminishing" };
  const digits = (value, n = 3) => (Math.abs(value) < 5e-4 ? "0" : Number(value.toPrecision(n)).toString()).replace("-", "\u2212");
  const share = (value) => digits(100 * value, 2) + " %";

  // Each slider: what it says, its ends, its start, what its position stands for, how that reads, and who uses it.
  const momentum = (p) => Number((10 ** p).toPrecision(2));
  const SLIDERS = {
    momentum: [WORDS.momentum, -3, 0, 0.02, -1, momentum, digits, ["ema", "debiased"]],
    size: [WORDS.size, 1, 100, 1, 19, Number, String, ["window"]],
    power: [WORDS.power, 0.1, 1, 0.05, 0.5, Number, digits, ["diminishing"]],
    batch: [WORDS.batch, 1, 9, 1, 4, (p) => 2 ** p, String, null],
    drift: [WORDS.drift, 0, 0.05, 0.001, 0.01, Number, share, null],
    at: [WORDS.at, 1, STEPS, 1, 100, Number, String, null],
  };

  place.innerHTML = `
    <form>
      <fieldset><legend>${WORDS.estimator}</legend>${E.KINDS.map((kind) => `
        <label><input type="radio" name="kind" value="${kind}"${kind === "ema" ? " checked" : ""}>${NAMES[kind]}</label>`).join("")}
      </fieldset>${Object.entries(SLIDERS).map(([name, [label, low, high, step, start]]) => `
      <div class="slider" data-name="${name}"><label for="explorer-${name}">${label}</label><output for="explorer-${name}"></output>
        <input type="range" id="explorer-${name}" min="${low}" max="${high}" step="${step}" value="${start}"></div>`).join("")}
      <button type="button">${WORDS.draw}</button>
    </form>
    <figure><figcaption>${WORDS.seam}<span class="key">
      <span>${swatch("dots")}${WORDS.train}</span><span>${swatch("run")}${WORDS.eval}</span>
      <span>${swatch("truth")}${WORDS.truth}</span></span></figcaption><div data-chart="seam"></div></figure>
    <div class="charts">
      <figure><figcaption>${WORDS.mean}</figcaption><div data-chart="mean"></div></figure>
      <figure><figcaption>${WORDS.variance}</figcaption><div data-chart="variance"></div></figure>
    </div>
    <figure><figcaption>${WORDS.error}<span class="key">
      <span>${swatch("lag")}${WORDS.lag}</span><span>${swatch("noise")}${WORDS.noise}</span><span>${swatch("total")}${WORDS.both}</span>
      <span>${say(WORDS.lines, { n: CHANNELS })}</span></span></figcaption><div data-chart="error"></div></figure>
    <div class="readout"><div></div><p aria-live="polite"></p></div>`;

  function swatch(name) {
    if (name === "dots") return `<svg style="width:22px" width="22" height="8" aria-hidden="true"><circle class="dot" r="2" cx="5" cy="4"/><circle class="dot" r="2" cx="16" cy="4"/></svg>`;
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
    for (let t = every; t <= STEPS; t += every) marks += `<text x="${x(t)}" y="${height - 6}" text-anchor="${t === STEPS ? "end" : "middle"}">${t === every ? `${WORDS.step} ` : ""}${t}</text>`;
    marks += `<path class="axis" d="M${left} ${height - bottom}H${width - right}"/>`;
    return { x, y, wrap: (inner) => `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${name}"><defs><clipPath id="clip-${box.dataset.chart}"><rect x="${left}" y="${top - 4}" width="${width - left}" height="${height - top - bottom + 8}"/></clipPath></defs>${marks}<g clip-path="url(#clip-${box.dataset.chart})">${inner}</g></svg>` };
  }

  const line = (values, { x, y }) => "M" + Array.from(values, (v, i) => `${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`).join("L");

  function drawStatistic(result, what) {
    const { data, theory, seen, paths, chosen } = result, box = chart(what), noise = theory[what + "Noise"];
    const upper = theory[what].map((v, t) => v + 2 * noise[t]), lower = theory[what].map((v, t) => v - 2 * noise[t]);
    const all = [...data[what], ...paths[what][0], ...upper, ...lower, ...Array.from(seen[0][what]).sort((a, b) => a - b).slice(9, -9)];
    const low = Math.min(0, ...all), high = Math.max(...all) * 1.03;
    const scale = axes(box, low, high, 230, say(WORDS.statistics[what], { n: STEPS }));
    const band = line(upper, scale) + "L" + line(lower, scale).slice(1).split("L").reverse().join("L") + "Z";
    const dots = Array.from(seen[0][what], (v, i) => `<circle class="dot" r="1.4" cx="${scale.x(i + 1).toFixed(1)}" cy="${scale.y(v).toFixed(1)}"/>`).join("");
    box.innerHTML = scale.wrap(`<path class="band" d="${band}"/>${dots}<path class="line truth" d="${line(data[what], scale)}"/>
      <path class="line run" d="${line(paths[what][0], scale)}"/><path class="at" d="M${scale.x(chosen.at)} 0V208"/>`);
  }

  // What the question is about: the same value in both modes.
  function modes({ data, seen, paths }) {
    return { train: E.normalised(data, seen[0].mean, seen[0].variance), eval: E.normalised(data, paths.mean[0], paths.variance[0]) };
  }

  function drawSeam(result) {
    const box = chart("seam"), { train, eval: stored } = modes(result), ones = new Float64Array(STEPS).fill(1);
    const sorted = Array.from(train).sort((a, b) => a - b), inner = sorted.slice(6, -6);
    const low = Math.min(0, ...stored, ...inner), high = Math.max(1.2, ...stored, ...inner) * 1.03;
    const scale = axes(box, low, high, 190, WORDS.seam);
    const dots = Array.from(train, (v, i) => `<circle class="dot" r="1.6" cx="${scale.x(i + 1).toFixed(1)}" cy="${scale.y(v).toFixed(1)}"/>`).join("");
    box.innerHTML = scale.wrap(`${dots}<path class="line truth" d="${line(ones, scale)}"/><path class="line run" d="${line(stored, scale)}"/>
      <path class="at" d="M${scale.x(result.chosen.at)} 0V168"/>`);
  }

  function drawError(result) {
    const { data, theory, measured, chosen } = result, box = chart("error");
    const sd = data.variance.map(Math.sqrt);
    const lag = theory.mean.map((v, t) => Math.abs(v - data.mean[t]) / sd[t]);
    const noise = theory.meanNoise.map((v, t) => v / sd[t]);
    const total = lag.map((v, t) => Math.hypot(v, noise[t]));
    const scale = axes(box, 0, Math.max(0.01, ...total) * 1.05, 190, WORDS.error, true);
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
      [WORDS.rows[0], (theory.mean[t] - data.mean[t]) / sd, (measured.mean.mean[t] - data.mean[t]) / sd],
      [WORDS.rows[1], theory.meanNoise[t] / sd, measured.mean.deviation[t] / sd],
      [WORDS.rows[2], theory.variance[t] / variance - 1, measured.variance.mean[t] / variance - 1],
      [WORDS.rows[3], theory.varianceNoise[t] / variance, measured.variance.deviation[t] / variance],
    ];
    return rows;
  }

  function words({ kind, momentum: a, size, power, batch, at }) {
    const { noise, lag, left } = E.closedForm(kind, { momentum: a, size }, at);
    if (kind === "diminishing") return say(WORDS.weight, { t: at, gain: digits(E.gain(kind, at, { power })), p: digits(power) });
    const source = { ema: "a / (2 \u2212 a)", debiased: "a / (2 \u2212 a)", cumulative: "1 / t", window: "1 / k" }[kind];
    const behind = { ema: "(1 \u2212 a) / a", debiased: "(1 \u2212 a) / a", cumulative: "(t \u2212 1) / 2", window: "(k \u2212 1) / 2" }[kind];
    return say(WORDS.text, {
      when: kind === "cumulative" ? say(WORDS.here, { t: at }) : WORDS.settled, source, noise: digits(noise),
      sd: digits(Math.sqrt(noise / batch)), many: digits(1 / noise), behind, lag: digits(lag), t: at, steps: WORDS.steps(at),
      left: left < 5e-4 ? WORDS.nothing : share(left),
    });
  }

  function draw() {
    shown = compute(read());
    drawSeam(shown);
    drawStatistic(shown, "mean");
    drawStatistic(shown, "variance");
    drawError(shown);
    const [table, text] = place.querySelector(".readout").children;
    table.innerHTML = `<table class="figures"><thead><tr><th scope="col">${say(WORDS.atStep, { t: shown.chosen.at })}</th><th scope="col">${WORDS.theory}</th><th scope="col">${WORDS.measured}</th></tr></thead><tbody>${
      figures(shown).map(([name, one, two]) => `<tr><th scope="row">${name}</th><td>${digits(one)}</td><td>${digits(two)}</td></tr>`).join("")}</tbody></table>`;
    const here = modes(shown), t = shown.chosen.at - 1;
    text.textContent = say(WORDS.modes, { t: t + 1, train: digits(here.train[t]), eval: digits(here.eval[t]) }) + words(shown.chosen);
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
