"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const short = (v) => {
    if (v === null || v === undefined) return "–";
    if (typeof v !== "number") return String(v);
    if (Number.isInteger(v) && Math.abs(v) < 1e7) return String(v);
    return Math.abs(v) >= 1e6 || (v !== 0 && Math.abs(v) < 1e-4) ? v.toExponential(1) : String(+v.toPrecision(4));
  };
  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

  // Copying works from a file too: where the clipboard is refused, the text is selected instead.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".fix button");
    if (!button) return;
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });

  const bell = (x, mean, std) => Math.exp(-0.5 * ((x - mean) / std) ** 2) / std;
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const ticks = (low, high, most) => {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw || 1));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || power;
    const found = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(+t.toPrecision(10));
    return found;
  };
  const W = 480, H = 210, LEFT = 34, BOTTOM = 24, TOP = 8;
  const X = (v, low, high) => LEFT + ((v - low) / (high - low)) * (W - LEFT - 6);
  const Y = (v, low, high) => H - BOTTOM - ((v - low) / (high - low)) * (H - BOTTOM - TOP);
  const axis = (low, high) =>
    `<line class="axis" x1="${LEFT}" x2="${W - 6}" y1="${H - BOTTOM}" y2="${H - BOTTOM}"/>` +
    ticks(low, high, 7).map((t) => `<text x="${X(t, low, high)}" y="${H - 7}" text-anchor="middle">${short(t)}</text>`).join("");
  const side = (low, high) =>
    ticks(low, high, 4).map((t) => `<line class="axis" x1="${LEFT}" x2="${W - 6}" y1="${Y(t, low, high)}" y2="${Y(t, low, high)}"/>` +
      `<text x="${LEFT - 6}" y="${Y(t, low, high) + 4}" text-anchor="end">${short(t)}</text>`).join("");

  // What the stored statistics make of the layer's input; they promise a standard normal distribution.
  function histogram(layer) {
    const counts = layer.histogram, bins = counts.length - 2, total = counts.reduce((a, b) => a + b, 0);
    const width = 10 / bins, heights = counts.slice(1, -1).map((c) => c / total / width);
    const top = Math.max(0.42, ...heights), bar = (W - LEFT - 6) / bins;
    const bars = heights.map((h, i) => `<rect class="actual-fill" x="${(LEFT + i * bar).toFixed(1)}" width="${(bar - 0.6).toFixed(1)}" ` +
      `y="${Y(h, 0, top).toFixed(1)}" height="${(H - BOTTOM - Y(h, 0, top)).toFixed(1)}"/>`).join("");
    const curve = path(Array.from({ length: 101 }, (_, i) => -5 + i / 10).map((x) => [X(x, -5, 5), Y(bell(x, 0, 1) / 2.5066, 0, top)]));
    const outside = (100 * (counts[0] + counts[counts.length - 1])) / total;
    const box = el("div");
    box.innerHTML = `<h3>Normalised with the stored statistics</h3><p class="key"><span style="--c:var(--actual)">output of the layer</span>` +
      `<span style="--c:var(--stored)">expected on average</span></p><svg viewBox="0 0 ${W} ${H}" role="img" aria-label="Histogram of the ` +
      `normalised values against a standard normal curve">${axis(-5, 5)}${bars}<path class="stored-line" d="${curve}"/></svg>` +
      `<p class="numbers">${outside >= 0.05 ? `${outside.toFixed(1)} % of the values lie beyond 5 standard deviations` : "standard deviations"}</p>`;
    return box;
  }

  function unpack(layer) {
    if (layer.values || !layer.data) return layer.values || [];
    const raw = atob(layer.data), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const flat = new Float32Array(bytes.buffer), rows = [];
    for (let i = 0; i < flat.length; i += layer.width) rows.push([...flat.slice(i, i + layer.width)]);
    return (layer.values = rows);
  }

  // One dot a channel: where its actual mean lies, in stored standard deviations. Below: that channel's two distributions.
  function channels(layer) {
    const rows = unpack(layer), measured = layer.width === 4, box = el("div");
    if (!rows.length) return null;
    const shifts = rows.map((r) => (measured ? (r[2] - r[0]) / (r[1] || 1e-5) : r[0]));
    const order = shifts.map((_, i) => i).sort((a, b) => shifts[a] - shifts[b]);
    const legal = shifts.filter(Number.isFinite);
    const low = Math.min(measured ? -1.5 : 0, ...legal), high = Math.max(measured ? 1.5 : 1e-9, ...legal);
    const clip = (v) => (Number.isFinite(v) ? v : high);
    const dots = order.map((i, k) => {
      const far = measured && !(Math.abs(shifts[i]) < 1) ? " far" : "";
      return `<circle class="dot${far}" data-channel="${k}" r="${rows.length > 200 ? 2 : 3}" cx="${X(k + 0.5, 0, rows.length).toFixed(1)}" cy="${Y(clip(shifts[i]), low, high).toFixed(1)}"/>`;
    }).join("");
    const band = measured ? `<rect class="band" x="${LEFT}" width="${W - LEFT - 6}" y="${Y(1, low, high)}" height="${Y(-1, low, high) - Y(1, low, high)}"/>` : "";
    const of = layer.numbers ? `, the ${rows.length} farthest of ${layer.facts.channels}` : "";
    box.innerHTML = `<h3>${measured ? "Channels: actual mean in stored standard deviations" : "Channels: stored mean"}</h3>` +
      `<p class="key"><span style="--c:var(--actual)">a channel${of}</span>${measured ? '<span style="--c:var(--stored)">within one standard deviation</span>' : ""}</p>` +
      `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="Channels by their mean">${band}${side(low, high)}${dots}</svg>`;
    const slider = el("input", { type: "range", min: 0, max: rows.length - 1, value: 0, "aria-label": "Channel" });
    const numbers = el("p", { class: "numbers" }), curves = el("div");
    const show = () => {
      const k = +slider.value, i = order[k], [m, s, am, as] = rows[i];
      box.querySelectorAll(".dot.on").forEach((d) => d.classList.remove("on"));
      box.querySelector(`[data-channel="${k}"]`).classList.add("on");
      const name = layer.numbers ? layer.numbers[i] : i;
      numbers.textContent = `channel ${name}: stored mean ${short(m)}, std ${short(s)}` + (measured ? `; actual mean ${short(am)}, std ${short(as)}` : "");
      slider.setAttribute("aria-valuetext", numbers.textContent);
      curves.innerHTML = measured ? twoBells(m, s, am, as) : "";
    };
    slider.addEventListener("input", show);
    box.addEventListener("click", (e) => {
      if (e.target.dataset && e.target.dataset.channel) { slider.value = e.target.dataset.channel; show(); }
    });
    box.append(slider, numbers, curves);
    slider.value = Math.abs(clip(shifts[order[0]])) > Math.abs(clip(shifts[order[rows.length - 1]])) ? 0 : rows.length - 1;
    show();
    return box;
  }

  function twoBells(m, s, am, as) {
    const a = Math.max(s, 1e-6), b = Math.max(as, 1e-6);
    if (![m, a, am, b].every(Number.isFinite)) return "";
    const low = Math.min(m - 3.2 * a, am - 3.2 * b), high = Math.max(m + 3.2 * a, am + 3.2 * b);
    const h = 110, top = Math.max(1 / a, 1 / b) * 1.05, y = (v) => h - 22 - (v / top) * (h - 30);
    const xs = Array.from({ length: 161 }, (_, i) => low + ((high - low) * i) / 160);
    const draw = (mean, std, name) => {
      const points = path(xs.map((x) => [X(x, low, high), y(bell(x, mean, std))]));
      return `<path class="${name}-fill" d="${points}L${W - 6} ${h - 22}L${LEFT} ${h - 22}Z"/><path class="${name}-line" d="${points}"/>`;
    };
    const marks = ticks(low, high, 6).map((t) => `<text x="${X(t, low, high)}" y="${h - 6}" text-anchor="middle">${short(t)}</text>`).join("");
    return `<p class="key"><span style="--c:var(--stored)">stored</span><span style="--c:var(--actual)">actual</span></p>` +
      `<svg viewBox="0 0 ${W} ${h}" role="img" aria-label="Stored and actual distribution of the channel">` +
      `${draw(m, a, "stored")}${draw(am, b, "actual")}<line class="axis" x1="${LEFT}" x2="${W - 6}" y1="${h - 22}" y2="${h - 22}"/>${marks}</svg>`;
  }

  const section = document.getElementById("layers"), strip = section.querySelector(".strip");
  const detail = document.getElementById("layer"), views = section.querySelector(".views");
  let view = "value", chosen = 0;
  const value = (layer) => (view === "share" ? layer.share : layer.value);

  function bars() {
    const known = data.layers.map(value).filter((v) => v !== null);
    const top = Math.max(...known, view === "share" ? 0.05 : data.bar === "drift" ? 0.3 : 1e-9);
    strip.replaceChildren(...data.layers.map((layer, i) => {
      const v = value(layer), height = v === null ? 0 : 100 * Math.sqrt(Math.max(v, 0) / top);
      const said = v === null ? "not measured" : view === "share" ? `${(100 * v).toFixed(1)} %` : `${short(v)} ${data.unit}`;
      const cell = el("div", { role: "option", id: `bar-${i}`, "aria-selected": i === chosen, title: `${layer.name}: ${said}`,
        "aria-label": `${layer.name}: ${data.bar} ${said}`, class: (layer.state || "") + (v === null && layer.state === "error" ? " unknown" : "") });
      cell.append(el("i", { style: `height:${height.toFixed(1)}%` }));
      cell.addEventListener("click", () => { choose(i); strip.focus({ preventScroll: true }); });
      return cell;
    }));
    document.getElementById("strip-caption").textContent = view === "share"
      ? "How much of the change in the output each layer's stored statistics cause, alone, in the network with exact ones. Bar heights follow the square root. Choose a layer by click or arrow keys."
      : `${data.bar[0].toUpperCase() + data.bar.slice(1)} in ${data.unit}, root mean square over channels. Bar heights follow the square root. Choose a layer by click or arrow keys.`;
  }

  function choose(i) {
    chosen = Math.max(0, Math.min(data.layers.length - 1, i));
    strip.querySelectorAll("[aria-selected=true]").forEach((n) => n.setAttribute("aria-selected", "false"));
    const cell = strip.children[chosen], layer = data.layers[chosen];
    cell.setAttribute("aria-selected", "true");
    strip.setAttribute("aria-activedescendant", cell.id);
    const x = cell.offsetLeft - strip.offsetLeft;
    if (x < strip.scrollLeft || x > strip.scrollLeft + strip.clientWidth - 12) strip.scrollLeft = x - strip.clientWidth / 2;
    const facts = el("dl");
    const list = { ...(layer.value === null ? {} : { [data.bar]: short(layer.value) + (layer.error === null ? "" : ` ± ${short(+layer.error.toPrecision(2))}`) }),
      ...(layer.share === null ? {} : { "share of the change": `${(100 * layer.share).toFixed(1)} %` }), ...layer.facts };
    for (const [key, v] of Object.entries(list)) if (v !== null) facts.append(el("div", {}, el("dt", {}, key), el("dd", {}, short(v))));
    const says = el("div");
    says.innerHTML = layer.says.map(([code, severity, text]) => `<p class="says"><span class="badge ${severity}">${code}</span> ${escape(text)}</p>`).join("");
    const pair = el("div", { class: "pair" });
    if (layer.histogram) pair.append(histogram(layer));
    const dots = channels(layer);
    if (dots) pair.append(dots);
    detail.replaceChildren(el("h3", {}, layer.name), says, facts, pair);
  }

  if (data.layers.length) {
    section.hidden = false;
    const shared = data.layers.some((l) => l.share !== null && l.share > 0);
    for (const [key, label] of [["value", data.bar], ["share", "share of the gap"]]) {
      if (key === "share" && !shared) continue;
      const button = el("button", { type: "button", "aria-pressed": key === view }, label);
      button.addEventListener("click", () => {
        view = key;
        views.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b === button));
        bars(); choose(chosen);
      });
      views.append(button);
    }
    views.hidden = !shared;
    section.querySelector(".ends").hidden = data.layers.length < 14;
    strip.classList.toggle("many", data.layers.length > 90);
    bars();
    if (strip.scrollWidth > strip.clientWidth + 4) section.querySelector(".ends span").textContent = "first layer, scroll for more";
    const rank = { error: 3, warning: 2 };
    const worst = (l) => (rank[l.state] || 0) * 1e6 + (l.share || 0) * 1e3 + Math.min(l.value || 0, 1e3);
    choose(data.layers.reduce((best, l, i) => (worst(l) > worst(data.layers[best]) ? i : best), 0));
    strip.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: chosen + 1, ArrowDown: chosen + 1, ArrowLeft: chosen - 1, ArrowUp: chosen - 1, Home: 0, End: data.layers.length - 1,
        PageDown: chosen + 10, PageUp: chosen - 10 };
      if (event.key in moves) { event.preventDefault(); choose(moves[event.key]); }
    });
  }

  const colours = ["var(--actual)", "var(--stored)", "var(--good)", "var(--error)", "#8a63c9", "#3b9ca8", "#b0578d", "var(--note)"];
  for (const { title, caption, lines } of data.timelines) {
    const all = Object.values(lines).flat().filter((p) => p[1] !== null), box = el("section");
    if (!all.length) continue;
    const w = 960, h = 240, left = 46;
    const lowX = Math.min(...all.map((p) => p[0])), highX = Math.max(...all.map((p) => p[0]), lowX + 1);
    const lowY = Math.min(0, ...all.map((p) => p[1])), highY = Math.max(...all.map((p) => p[1]), lowY + 1e-9);
    const x = (v) => left + ((v - lowX) / (highX - lowX)) * (w - left - 10), y = (v) => h - 26 - ((v - lowY) / (highY - lowY)) * (h - 40);
    const rules = ticks(lowY, highY, 4).map((t) => `<line class="axis" x1="${left}" x2="${w - 10}" y1="${y(t)}" y2="${y(t)}"/><text x="${left - 8}" y="${y(t) + 4}" text-anchor="end">${short(t)}</text>`).join("");
    const marks = ticks(lowX, highX, 8).map((t) => `<text x="${x(t)}" y="${h - 6}" text-anchor="middle">${short(t)}</text>`).join("");
    const drawn = Object.values(lines).map((points, i) => `<path fill="none" stroke-width="2" stroke="${colours[i % 8]}" d="${path(points.filter((p) => p[1] !== null).map((p) => [x(p[0]), y(p[1])]))}"/>`).join("");
    const key = Object.keys(lines).map((name, i) => `<span style="--c:${colours[i % 8]}">${escape(name)}</span>`).join("");
    box.innerHTML = `<h2>${escape(title)}</h2><p class="caption">${escape(caption)}</p><p class="key">${key}</p><svg viewBox="0 0 ${w} ${h}" role="img" aria-label="${escape(title)}">${rules}${marks}${drawn}</svg><p class="ends"><span></span><span>step</span></p>`;
    document.getElementById("timelines").append(box);
  }
})();
