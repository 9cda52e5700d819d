import assert from "node:assert/strict";
import test from "node:test";
import { load, reference } from "./reference.mjs";

const { FORMATS, decode, encode, see } = await load("formats");

function bits(pattern, { exponent, fraction }) {
  const width = 1 + exponent + fraction;
  return pattern === null ? "-".repeat(width) : pattern.toString(2).padStart(width, "0");
}

test("every format stores a number in the bits in which torch stores it", () => {
  for (const { number, stored } of reference.cases) {
    for (const [name, expected] of Object.entries(stored)) {
      const pattern = encode(Number(number), name);
      // Many patterns are nan, and which of them torch takes depends on the processor.
      if (number === "NaN" && pattern !== null) assert.ok(Number.isNaN(decode(pattern, name)), name);
      else assert.equal(bits(pattern, FORMATS[name]), expected, `${number} as ${name}`);
    }
  }
});

test("every pattern stands for torch's number", () => {
  assert.deepEqual(reference.patterns.map(({ name }) => name), Object.keys(FORMATS));
  for (const { name, patterns, values } of reference.patterns) {
    patterns.forEach((pattern, i) => {
      const value = decode(pattern, name);
      assert.ok(Object.is(value, Number(values[i])), `${name} ${pattern}: ${value}, torch ${values[i]}`);
    });
  }
});

test("the words are those of Python", () => {
  for (const { number, finding, alt } of reference.cases) {
    const seen = see({ number: Number(number) }, reference.texts);
    assert.deepEqual([seen.finding, seen.alt], [finding, alt]);
  }
});

test("a pattern that a student makes stays as it is, and the other formats follow", () => {
  for (const [name, format] of Object.entries(FORMATS)) {
    for (let place = 0; place < 1 + format.exponent + format.fraction; place += 1) {
      for (const pattern of [2 ** place, (format.beyond ?? 127) ^ 1, 2 ** (place + 1) - 1]) {
        const seen = see({ format: name, pattern }, reference.texts);
        const value = decode(pattern, name);
        for (const row of seen.rows) {
          assert.equal(row.pattern, row.name === name ? pattern : encode(value, row.name));
        }
        assert.deepEqual(seen.finding, see({ number: value }, reference.texts).finding);
      }
    }
  }
});
