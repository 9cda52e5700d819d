import { child, explorable } from "./explorable.js";
import { fill, roundHalfToEven, write } from "./numbers.js";

// Bits of the exponent and of the fraction; the codes, without the sign, of what lies beyond the largest number and of nan.
export const FORMATS = {
  float32: { exponent: 8, fraction: 23, beyond: 0x7f800000, nan: 0x7fc00000 },
  bfloat16: { exponent: 8, fraction: 7, beyond: 0x7f80, nan: 0x7fc0 },
  float16: { exponent: 5, fraction: 10, beyond: 0x7c00, nan: 0x7e00 },
  "fp8 e5m2": { exponent: 5, fraction: 2, beyond: 0x7c, nan: 0x7f },
  "fp8 e4m3": { exponent: 4, fraction: 3, beyond: 0x7e, nan: 0x7f }, // no infinity: it stops at 448
  int8: { exponent: 0, fraction: 7 },
};
const SCALE = 1 / 32; // of int8
const float32 = new DataView(new ArrayBuffer(4));

/** The pattern of bits, as a whole number, that a format stores for a number; null where it has none. */
export function encode(number, name) {
  const { exponent, fraction, beyond, nan } = FORMATS[name];
  if (name === "int8") {
    if (Number.isNaN(number)) return null;
    return Math.max(-128, Math.min(127, roundHalfToEven(number / SCALE))) & 255;
  }
  float32.setFloat32(0, number); // the other formats are made from float32, as torch does
  const single = float32.getFloat32(0);
  const sign = single < 0 || Object.is(single, -0) ? 2 ** (exponent + fraction) : 0;
  if (Number.isNaN(single)) return nan;
  const lowest = 2 - 2 ** (exponent - 1); // power of two of the smallest numbers
  const power = Math.max(((float32.getUint32(0) >>> 23) & 255) - 127, lowest);
  const steps = roundHalfToEven(Math.abs(single) * 2 ** (fraction - power)); // with the leading 1, if there is one
  return sign + Math.min((power - lowest) * 2 ** fraction + steps, beyond);
}

/** The number that a pattern of bits stands for. */
export function decode(pattern, name) {
  const { exponent, fraction, beyond } = FORMATS[name];
  if (name === "int8") return (pattern - 256 * (pattern > 127)) * SCALE;
  const half = 2 ** (exponent + fraction);
  const code = pattern % half;
  const sign = pattern < half ? 1 : -1;
  if (code > beyond) return NaN;
  if (code === beyond && name !== "fp8 e4m3") return sign * Infinity;
  const lowest = 2 - 2 ** (exponent - 1);
  const power = Math.floor(code / 2 ** fraction);
  const steps = (code % 2 ** fraction) + (power ? 2 ** fraction : 0);
  return sign * steps * 2 ** (lowest + Math.max(power - 1, 0) - fraction);
}

function finding(number, rows, texts) {
  if (Number.isNaN(number)) return texts.nan;
  if (!Number.isFinite(number)) return fill(texts.infinite, { number });
  const small = rows.filter(({ name }) => name !== "float32");
  const off = small.map(({ value }) => (Number.isFinite(value) ? Math.abs(value - number) : Infinity));
  const least = Math.min(...off);
  const names = small.filter((_, i) => off[i] === least).map(({ name }) => name);
  if (least === 0) return fill(texts.exact, { number, names: names.join(", ") });
  return fill(texts.nearest, { number, name: names[0], off: least });
}

/** What there is to see for a number, or for the pattern that a student has made in one of the formats. */
export function see(values, texts) {
  const number = "pattern" in values ? decode(values.pattern, values.format) : values.number;
  const rows = Object.keys(FORMATS).map((name) => {
    const pattern = name === values.format ? values.pattern : encode(number, name);
    const value = pattern === null ? NaN : decode(pattern, name);
    return { name, pattern, value, stored: pattern === null ? texts.none : write(value, ".9g") };
  });
  const what = ({ name, value, pattern }) => fill(pattern === null ? texts.nothing : texts.what, { name, value });
  return {
    rows,
    number: Math.max(-1e9, Math.min(1e9, number)),
    said: write(number, ".9g"),
    finding: finding(number, rows, texts),
    alt: `${rows.map(what).join("; ")}.`,
  };
}

/** The places of a format's bits, the sign's first, by field. */
function fields({ exponent, fraction }) {
  const places = Array.from({ length: 1 + exponent + fraction }, (_, i) => exponent + fraction - i);
  const cut = [places.slice(0, 1), places.slice(1, 1 + exponent), places.slice(1 + exponent)];
  return [["sign", cut[0]], ["exponent", cut[1]], [exponent ? "fraction" : "code", cut[2]]];
}

/** A row of buttons, one for each bit: one stop of the Tab key, within which the arrow keys move. */
function mountRow(parent, name, texts, toggle) {
  const row = child(parent, "div", { class: "qlab-format" });
  child(row, "strong").textContent = name;
  const stored = child(row, "span");
  const bar = child(row, "div", { role: "toolbar", "aria-label": name, "data-lm-suppress-shortcuts": "true" });
  const bits = fields(FORMATS[name]).flatMap(([field, places]) => {
    const group = child(bar, "span", { class: `qlab-${field}` });
    return places.map((place) => ({ place, field, button: child(group, "button", { type: "button", tabindex: -1 }) }));
  });
  const buttons = bits.map(({ button }) => button);
  buttons[0].tabIndex = 0;
  bits.forEach(({ place, button }) => button.addEventListener("click", () => toggle(2 ** place)));
  bar.addEventListener("focusin", ({ target }) => buttons.forEach((button) => (button.tabIndex = button === target ? 0 : -1)));
  bar.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    buttons[buttons.indexOf(event.target) + way]?.focus();
  });
  return ({ pattern, stored: text }) => {
    stored.textContent = text;
    for (const { place, field, button } of bits) {
      const bit = pattern === null ? "–" : String(Math.floor(pattern / 2 ** place) % 2);
      if (button.textContent === bit) continue;
      button.textContent = bit;
      button.setAttribute("aria-pressed", String(bit === "1"));
      button.setAttribute("aria-label", fill(texts.bit, { name, place, field: texts[field], bit }));
    }
  };
}

function render(context) {
  const texts = context.model.get("texts");
  const mount = (sheet, set) => {
    let patterns = {};
    const table = child(sheet, "div");
    const legend = child(table, "div", { class: "qlab-legend" });
    for (const field of ["sign", "exponent", "fraction"]) child(legend, "span", { class: `qlab-${field}` }).textContent = texts[field];
    const rows = Object.keys(FORMATS).map((name) =>
      mountRow(table, name, texts, (bit) => {
        const pattern = patterns[name] ?? 0;
        set({ format: name, pattern: Math.floor(pattern / bit) % 2 ? pattern - bit : pattern + bit });
      }),
    );
    const show = (seen) => {
      patterns = Object.fromEntries(seen.rows.map(({ name, pattern }) => [name, pattern]));
      seen.rows.forEach((row, i) => rows[i](row));
    };
    return [show, () => {}];
  };
  return explorable(context, (values) => see(values, texts), mount);
}

export default { render };
