import { child } from "./explorable.js";

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const WIDEST = 900; // CSS pixels, as wide as the figures that matplotlib draws
const FONT = "13px system-ui, sans-serif";

/** The round numbers from `first` to `last`, about `most` of them at most. */
export function ticks(first, last, most) {
  const rough = (last - first) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  const from = Math.ceil(first / step - 1e-9);
  const count = Math.floor(last / step + 1e-9) - from + 1;
  return Array.from({ length: count }, (_, place) => Number(((from + place) * step).toPrecision(12)));
}

function decades(first, last, most) {
  const [from, to] = [Math.ceil(Math.log10(first) - 1e-9), Math.floor(Math.log10(last) + 1e-9)];
  const step = Math.ceil((to - from + 1) / most);
  return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, place) => 10 ** (from + place * step));
}

function written(value, logarithmic) {
  if (!logarithmic) return String(value).replace("-", "−");
  const power = Math.round(Math.log10(value));
  return `10${power < 0 ? "⁻" : ""}${[...String(Math.abs(power))].map((digit) => SUPERSCRIPT[digit]).join("")}`;
}

/** A canvas on the sheet, as wide as there is room; `paint(context, width, seen)` is called for each view of it. */
export function mountCanvas(sheet, heightFor, paint) {
  const canvas = child(sheet, "canvas", { role: "img" });
  let seen = null;
  const draw = () => {
    const width = Math.min(WIDEST, sheet.clientWidth);
    if (!width || !seen) return; // in a cell that is not shown
    const height = heightFor(width);
    const ratio = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) }); // clears it too
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    paint(context, width, seen);
  };
  const resized = new ResizeObserver(draw);
  resized.observe(sheet);
  const show = (now) => {
    seen = now;
    canvas.setAttribute("aria-label", `${seen.finding}. ${seen.alt}`);
    draw();
  };
  return [show, () => resized.disconnect()];
}

/** Axes in a box {left, top, width, height} of the canvas; `x` and `y` are their [first, last], `log` is for y. */
export class Axes {
  constructor(context, colours, box, { x, y, log = false }) {
    Object.assign(this, { context, colours, ...box, xlim: x, ylim: y, log });
  }

  x(value) {
    const [first, last] = this.xlim;
    return this.left + ((value - first) / (last - first)) * this.width;
  }

  y(value) {
    const scale = this.log ? (v) => Math.log10(Math.max(v, 1e-30)) : (v) => v;
    const [first, last] = this.ylim.map(scale);
    return this.top + this.height - ((scale(value) - first) / (last - first)) * this.height;
  }

  text(words, x, y, { colour = this.colours.ink, align = "left", turned = false } = {}) {
    const { context } = this;
    context.save();
    context.translate(x, y);
    if (turned) context.rotate(-Math.PI / 2);
    Object.assign(context, { font: FONT, fillStyle: colour, textAlign: align, textBaseline: "middle" });
    context.fillText(words, 0, 0);
    context.restore();
  }

  /** The lines at the left and below, with ticks and labels; an axis without a label has no numbers. */
  frame({ xlabel = "", ylabel, grid = true }) {
    const { lines, clipped: edge } = this.colours;
    const bottom = this.top + this.height;
    const most = Math.max(2, Math.floor(this.height / 20));
    const xs = ticks(...this.xlim, Math.max(3, Math.floor(this.width / 60)));
    const ys = this.log ? decades(...this.ylim, most) : ticks(...this.ylim, most);
    if (grid) {
      for (const tick of xs) this.#stroke([[this.x(tick), this.top], [this.x(tick), bottom]], lines, 1);
      for (const tick of ys) this.#stroke([[this.left, this.y(tick)], [this.left + this.width, this.y(tick)]], lines, 1);
    }
    this.#stroke([[this.left, this.top], [this.left, bottom], [this.left + this.width, bottom]], edge, 1);
    for (const tick of ys) {
      this.#stroke([[this.left - 4, this.y(tick)], [this.left, this.y(tick)]], edge, 1);
      this.text(written(tick, this.log), this.left - 7, this.y(tick), { align: "right" });
    }
    for (const tick of xs) {
      this.#stroke([[this.x(tick), bottom], [this.x(tick), bottom + 4]], edge, 1);
      if (xlabel) this.text(written(tick, false), this.x(tick), bottom + 14, { align: "center" });
    }
    this.text(xlabel, this.left + this.width / 2, bottom + 34, { align: "center" });
    this.text(ylabel, this.left - 48, this.top + this.height / 2, { align: "center", turned: true });
  }

  /** A line through the points (xs[i], ys[i]); what lies outside the axes is cut off. */
  line(xs, ys, colour, { width = 2, dash = [] } = {}) {
    this.inside(() => this.#stroke(Array.from(xs, (x, i) => [this.x(x), this.y(ys[i])]), colour, width, dash));
  }

  /** A level line at each of these values. */
  levels(values, colour, options) {
    for (const value of values) this.line(this.xlim, [value, value], colour, options);
  }

  /** The area from `x0` to `x1` and from `y0` to `y1`. */
  bar(x0, x1, y0, y1, colour) {
    this.inside(() => {
      this.context.fillStyle = colour;
      this.context.fillRect(this.x(x0), this.y(y1), this.x(x1) - this.x(x0) + 0.5, this.y(y0) - this.y(y1)); // no gap to the next
    });
  }

  dot(x, y, colour) {
    this.context.fillStyle = colour;
    this.context.beginPath();
    this.context.arc(this.x(x), this.y(y), 6, 0, 2 * Math.PI);
    this.context.fill();
  }

  /** What a student predicted, as a dashed line at this `x`; nothing as long as it is no number. */
  guess(x, words) {
    if (typeof x !== "number") return;
    this.line([x, x], this.ylim, this.colours.ink, { dash: [6, 4] });
    this.text(words, this.x(x) - 9, this.top + 6 + this.context.measureText(words).width / 2, { align: "center", turned: true });
  }

  inside(draw) {
    this.context.save();
    this.context.beginPath();
    this.context.rect(this.left, this.top, this.width, this.height);
    this.context.clip();
    draw();
    this.context.restore();
  }

  #stroke(points, colour, width, dash = []) {
    const { context } = this;
    Object.assign(context, { strokeStyle: colour, lineWidth: width, lineJoin: "round" });
    context.setLineDash(dash);
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.stroke();
  }
}
