import { Axes, mountCanvas } from "./canvas.js";
import { explorable } from "./explorable.js";
import { fill, linspace } from "./numbers.js";

export const time = linspace(0, 2 * Math.PI, 400);
export const wave = time.map(Math.sin);

/** The grid of 2**bits values from about -1 to 1, moved by `shift` steps, and each of x taken to the nearest. */
export function rounded(x, bits, shift) {
  const step = 2 / (2 ** bits - 1);
  const grid = Array.from({ length: 2 ** bits }, (_, code) => (code - 2 ** (bits - 1) + shift) * step);
  const nearest = (value) => grid.reduce((best, rung) => (Math.abs(value - rung) < Math.abs(value - best) ? rung : best));
  return { step, grid, values: x.map(nearest) };
}

/** What there is to see, in numbers and in words. */
export function see({ bits, shift }, texts) {
  const { step, grid, values } = rounded(wave, bits, shift);
  const error = wave.map((x, i) => x - values[i]);
  const worst = Math.max(...error.map(Math.abs));
  const near = Math.min(...grid.map(Math.abs));
  const zero = near < 1e-9 ? texts.exact : fill(texts.moved, { near });
  return {
    step, grid, values, error,
    finding: fill(texts.finding, { bits, step, worst, zero }),
    alt: fill(texts.alt, { levels: grid.length, used: new Set(values).size, half: step / 2 }),
  };
}

function paint(context, width, seen, texts, colours) {
  const [left, room, end] = [66, width - 78, time.at(-1)];
  const above = new Axes(context, colours, { left, top: 8, width: room, height: 216 }, { x: [0, end], y: [-1.5, 1.5] });
  above.levels(seen.grid, colours.clipped, { width: Math.min(0.5, 16 / seen.grid.length) }); // thinner where they touch
  above.frame({ ylabel: texts.value, grid: false });
  above.line(time, wave, colours.float);
  above.line(time, seen.values, colours.quantized);
  above.text(texts.signal, left + 12, 210, { colour: colours.float });
  above.text(texts.rounded, left + 72, 210, { colour: colours.quantized });
  const below = new Axes(context, colours, { left, top: 240, width: room, height: 108 }, { x: [0, end], y: [-0.45, 0.45] });
  below.frame({ xlabel: texts.time, ylabel: texts.error });
  below.line(time, seen.error, colours.error);
  below.levels([-seen.step / 2, seen.step / 2], colours.clipped, { width: 1, dash: [5, 4] });
}

function render(context) {
  const [texts, colours] = [context.model.get("texts"), context.model.get("colours")];
  const mount = (sheet) => mountCanvas(sheet, () => 396, (...view) => paint(...view, texts, colours));
  return explorable(context, (values) => see(values, texts), mount);
}

export default { render };
