import assert from "node:assert/strict";
import test from "node:test";
import { load, near, reference } from "./reference.mjs";

const { rounded, see, wave } = await load("rounding");

test("the wave is rounded as in Python, whatever the grid", () => {
  for (const { bits, shift, step, grid, wave: expected, between } of reference.cases) {
    const what = `${bits} bits, shift ${shift}`;
    const now = rounded(wave, bits, shift);
    near(now.step, step, what);
    near(now.grid, grid, what);
    near(now.values, expected, what);
    near(rounded(reference.between, bits, shift).values, between, `${what}, half-way`);
  }
});

test("the words are those of Python", () => {
  for (const { bits, shift, finding, alt } of reference.cases) {
    const seen = see({ bits, shift }, reference.texts);
    assert.deepEqual([seen.finding, seen.alt], [finding, alt]);
    near(seen.error, wave.map((x, i) => x - seen.values[i]), "error");
  }
});
