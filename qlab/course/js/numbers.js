// Numbers as numpy rounds and Python writes them, so that a figure shows and says the same in either language.

/** What is half-way between two whole numbers goes to the even one, as everywhere in this course. */
export function roundHalfToEven(x) {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 ? up - 1 : up;
}

/** numpy's linspace: `count` numbers, evenly spaced, both ends among them. */
export function linspace(first, last, count) {
  const step = (last - first) / (count - 1);
  return Array.from({ length: count }, (_, place) => (place === count - 1 ? last : first + place * step));
}

// An exact half goes to the even digit in Python, and always up in JavaScript. `text` is a function of the digits.
function halfToEven(text, digits) {
  const [exact, power] = text(100).split("e");
  const [kept, rest] = [exact.slice(0, digits - 100), exact.slice(digits - 100)];
  const even = /^50*$/.test(rest) && /[02468]\.?$/.test(kept);
  return even ? kept.replace(/\.$/, "") + (power ? `e${power}` : "") : text(digits);
}

/** A number by a format such as ".3f", ".2g" or "g". */
export function write(x, format) {
  if (Number.isNaN(x)) return "nan";
  const sign = x < 0 || Object.is(x, -0) ? "-" : "";
  const size = Math.abs(x);
  if (size === Infinity) return `${sign}inf`;
  const [, given = 6, kind] = /^(?:\.(\d+))?([fg])$/.exec(format);
  const precision = Number(given);
  const fixed = (digits) => halfToEven((more) => size.toFixed(more), digits);
  if (kind === "f") return sign + fixed(precision);
  const [digits, exponent] = halfToEven((more) => size.toExponential(more), precision - 1).split("e");
  const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const power = Number(exponent);
  if (power >= -4 && power < precision) return sign + short(fixed(precision - 1 - power));
  return `${sign}${short(digits)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

/** A sentence with its {placeholders} filled in: {bits}, {step:.3f}. */
export function fill(sentence, values) {
  return sentence.replace(/\{(\w+)(?::([^}]*))?\}/g, (_, name, format) =>
    format ? write(values[name], format) : String(values[name]),
  );
}
