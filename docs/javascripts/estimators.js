// The estimators of the explorer, and what theory says about them. Plain arithmetic: no page, no clock, no network.
// tests/docs/test_explorer.py holds them to the package's own estimators.
(function (root) {
  "use strict";

  const KINDS = ["ema", "debiased", "cumulative", "window", "diminishing"];

  // The weight of the new batch at step t; 1 is the first. A window has none: it forgets all at once.
  function gain(kind, t, { momentum = 0.1, power = 0.5 } = {}) {
    if (kind === "ema") return momentum;
    if (kind === "debiased") return momentum / (1 - (1 - momentum) ** t);
    if (kind === "cumulative") return 1 / t;
    if (kind === "diminishing") return Math.min(1, 1 / t ** power);
    throw new Error(`kind must be one of ${KINDS.join(", ")}; it was ${kind}`);
  }

  // The running value after each batch. order 1 averages the values. order 2 weighs them by squared weights:
  // given the variances of independent batches it is the variance of their running value.
  function running(kind, options, values, initial, order = 1) {
    const out = new Float64Array(values.length);
    let value = initial;
    for (let t = 1; t <= values.length; t++) {
      if (kind === "window") {
        const n = Math.min(options.size, t);
        value = 0;
        for (let i = t - n; i < t; i++) value += values[i];
        value /= n ** order;
      } else {
        const a = gain(kind, t, options);
        value = (1 - a) ** order * value + a ** order * values[t - 1];
      }
      out[t - 1] = value;
    }
    return out;
  }

  // The data: mean and variance grow for the first half of the steps, by `drift` of their start a step, then stand.
  function truth(steps, drift) {
    const mean = new Float64Array(steps), variance = new Float64Array(steps);
    for (let t = 0; t < steps; t++) {
      const moved = drift * Math.min(t, steps / 2);
      mean[t] = 2 + 2 * moved;
      variance[t] = 4 + 4 * moved;
    }
    return { mean, variance };
  }

  // What the running statistics are expected to be, and their standard deviations, for batches of `batch` normal values.
  function theory(kind, options, data, batch) {
    const noise = (variances) => running(kind, options, variances, 0, 2).map(Math.sqrt);
    return {
      mean: running(kind, options, data.mean, 0),
      variance: running(kind, options, data.variance, 1),
      meanNoise: noise(data.variance.map((v) => v / batch)),
      varianceNoise: noise(data.variance.map((v) => (2 * v * v) / (batch - 1))),
    };
  }

  // The same figures for ever and steady drift, where a formula has them: a / (2 - a) and (1 - a) / a.
  function closedForm(kind, { momentum, size }, t) {
    if (kind === "ema" || kind === "debiased") {
      const left = kind === "ema" ? (1 - momentum) ** t : 0;
      return { noise: momentum / (2 - momentum), lag: (1 - momentum) / momentum, left };
    }
    if (kind === "cumulative") return { noise: 1 / t, lag: (t - 1) / 2, left: 0 };
    if (kind === "window") return { noise: 1 / Math.min(size, t), lag: (Math.min(size, t) - 1) / 2, left: 0 };
    return { noise: null, lag: null, left: 0 };
  }

  // A small generator of random numbers (mulberry32), so that a seed always draws the same.
  function uniforms(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = state;
      z = Math.imul(z ^ (z >>> 15), z | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
    };
  }

  function normal(uniform) {
    return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  // Gamma with this shape and scale 1 (Marsaglia and Tsang 2000).
  function gamma(shape, uniform) {
    if (shape < 1) return gamma(shape + 1, uniform) * (1 - uniform()) ** (1 / shape);
    const d = shape - 1 / 3, c = 1 / Math.sqrt(9 * d);
    for (;;) {
      const x = normal(uniform), v = (1 + c * x) ** 3;
      if (v > 0 && Math.log(1 - uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
    }
  }

  // Mean and unbiased variance of batches of standard normal values, drawn from their own laws: a row a channel.
  function draws(seed, channels, steps, batch) {
    const uniform = uniforms(seed), shape = (batch - 1) / 2, rows = [];
    for (let c = 0; c < channels; c++) {
      const mean = new Float64Array(steps), variance = new Float64Array(steps);
      for (let t = 0; t < steps; t++) {
        mean[t] = normal(uniform) / Math.sqrt(batch);
        variance[t] = gamma(shape, uniform) / shape;
      }
      rows.push({ mean, variance });
    }
    return rows;
  }

  // One channel's batches: standard draws given the mean and the variance of the data.
  function batches(row, data) {
    return {
      mean: row.mean.map((z, t) => data.mean[t] + Math.sqrt(data.variance[t]) * z),
      variance: row.variance.map((v, t) => data.variance[t] * v),
    };
  }

  // What a value of the data becomes, one standard deviation above their mean (exactly 1 with true statistics),
  // normalised with these means and variances.
  function normalised(data, mean, variance, eps = 1e-5) {
    return Float64Array.from(mean, (m, t) => {
      const value = data.mean[t] + Math.sqrt(data.variance[t]);
      return (value - m) / Math.sqrt(variance[t] + eps);
    });
  }

  // Mean and standard deviation over channels of their running values, at every step.
  function spread(paths) {
    const steps = paths[0].length, mean = new Float64Array(steps), deviation = new Float64Array(steps);
    for (let t = 0; t < steps; t++) {
      let sum = 0, squares = 0;
      for (const path of paths) sum += path[t];
      mean[t] = sum / paths.length;
      for (const path of paths) squares += (path[t] - mean[t]) ** 2;
      deviation[t] = Math.sqrt(squares / (paths.length - 1));
    }
    return { mean, deviation };
  }

  const api = { KINDS, gain, running, truth, theory, closedForm, draws, batches, normalised, spread };
  if (typeof module !== "undefined") module.exports = api;
  else root.Estimators = api;
})(typeof self !== "undefined" ? self : this);
