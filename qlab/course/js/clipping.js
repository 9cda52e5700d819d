import { Axes, mountCanvas } from "./canvas.js";
import { explorable } from "./explorable.js";
import { fill, linspace, roundHalfToEven } from "./numbers.js";

/** The mean squared errors of x, none below 0, on the grid from 0 to the limit: {rounding, clipped, total}. */
export function errors(x, bits, limit) {
  const last = 2 ** bits - 1;
  const step = limit / last;
  let [rounding, clipped] = [0, 0];
  for (const value of x) {
    const squared = (Math.min(roundHalfToEven(value / step), last) * step - value) ** 2;
    if (value > limit) clipped += squared;
    else rounding += squared;
  }
  return { rounding: rounding / x.length, clipped: clipped / x.length, total: (rounding + clipped) / x.length };
}

/** numpy's histogram of x, the largest first: the edges of so many bins, evenly spaced, and how many are in each. */
export function histogram(x, bins) {
  const [least, most] = [x.at(-1), x[0]];
  const around = least === most ? 0.5 : 0;
  const edges = linspace(least - around, most + around, bins + 1);
  const counts = new Array(bins).fill(0);
  for (const value of x) {
    let bin = Math.min(bins - 1, Math.floor(((value - edges[0]) / (edges[bins] - edges[0])) * bins));
    if (value < edges[bin]) bin -= 1; // by the last binary digit
    counts[bin] += 1;
  }
  return { edges, counts };
}

/** From values, the largest first, to a function from (controls, texts) to what there is to see. */
export function clipping(x) {
  const bars = histogram(x, 60);
  const limits = linspace(0.02, 1, 99).map((share) => x[0] * share);
  const whole = {}; // by bits: the errors at each of the limits
  return ({ bits, limit }, texts) => {
    whole[bits] ??= limits.map((at) => errors(x, bits, at));
    const at = (x[0] * limit) / 100;
    const now = errors(x, bits, at);
    const times = now.total / Math.max(1e-12, Math.min(...whole[bits].map(({ total }) => total)));
    const share = (100 * x.reduce((count, value) => count + (value > at), 0)) / x.length;
    return {
      bars, limits, at, now, curves: whole[bits],
      finding: fill(texts.finding, { bits, at, total: now.total, times }),
      alt: fill(texts.alt, { ...now, share }),
    };
  };
}

const narrow = (width) => width < 600;

function paint(context, width, { bars, limits, at, now, curves }, power, texts, colours) {
  const largest = limits.at(-1);
  const room = narrow(width) ? width - 78 : width / 2 - 78;
  const counts = new Axes(
    context, colours, { left: 66, top: 8, width: room, height: 270 },
    { x: [0, largest], y: [0.7, 1.6 * Math.max(...bars.counts)], log: true },
  );
  counts.frame({ xlabel: texts.activation, ylabel: texts.count });
  bars.counts.forEach((count, i) => counts.bar(bars.edges[i], bars.edges[i + 1], 1e-9, count, colours.float));
  context.globalAlpha = 0.4;
  counts.bar(at, largest, ...counts.ylim, colours.clipped);
  context.globalAlpha = 1;

  const place = narrow(width) ? { left: 66, top: 348 } : { left: width / 2 + 66, top: 8 };
  const error = new Axes(
    context, colours, { ...place, width: room, height: 270 }, { x: [0, largest], y: [1e-6 * power, 2 * power], log: true },
  );
  error.frame({ xlabel: texts.limit, ylabel: texts.squared });
  const kinds = [["rounding", colours.error], ["clipped", colours.clipped], ["total", colours.quantized]];
  kinds.forEach(([kind, colour], row) => {
    error.line(limits, curves.map((each) => each[kind]), colour);
    error.text(texts[kind], place.left + room - 8, place.top + 16 + 19 * row, { colour, align: "right" });
  });
  error.dot(at, now.total, colours.quantized);
}

function render(context) {
  const [texts, colours, data] = ["texts", "colours", "data"].map((name) => context.model.get(name));
  const x = new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
  const power = x.reduce((sum, value) => sum + value ** 2, 0) / x.length;
  const see = clipping(x);
  const height = (width) => (narrow(width) ? 668 : 328);
  const mount = (sheet) => mountCanvas(sheet, height, (...view) => paint(...view, power, texts, colours));
  return explorable(context, (values) => see(values, texts), mount);
}

export default { render };
