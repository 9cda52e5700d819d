import assert from "node:assert/strict";
import test from "node:test";
import { load, near, reference } from "./reference.mjs";

const { clipping, errors, histogram } = await load("clipping");

for (const [name, { x, counts, edges, cases }] of Object.entries(reference.sets)) {
  const values = Float32Array.from(x);

  test(`${name}: the errors are those of Python`, () => {
    for (const { bits, limit, errors: expected } of cases) {
      const { rounding, clipped, total } = errors(values, bits, (x[0] * limit) / 100);
      near([rounding, clipped, total], expected, `${bits} bits, limit ${limit} %`);
    }
  });

  test(`${name}: every bar has the height that numpy gives it`, () => {
    const bars = histogram(values, 60);
    assert.deepEqual(bars.counts, counts);
    near(bars.edges, edges, "edges");
  });

  test(`${name}: the words are those of Python`, () => {
    const see = clipping(values);
    for (const { bits, limit, finding, alt } of cases) {
      const seen = see({ bits, limit }, reference.texts);
      assert.deepEqual([seen.finding, seen.alt], [finding, alt]);
    }
  });
}
