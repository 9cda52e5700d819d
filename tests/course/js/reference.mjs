// What Python got (tests/test_javascript.py), and the modules as the browser gets them.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

export const reference = JSON.parse(readFileSync(process.env.QLAB_REFERENCE, "utf-8"));
export const load = (name) => import(pathToFileURL(`${process.env.QLAB_MODULES}/${name}.mjs`));

/** Numbers that are equal but for the last digits. */
export function near(one, other, what) {
  const [a, b] = [one, other].map((list) => Array.from([list].flat(), Number));
  assert.equal(a.length, b.length, what);
  a.forEach((x, i) => assert.ok(Math.abs(x - b[i]) <= 1e-6 * Math.abs(b[i]) + 1e-15, `${what}, place ${i}: ${x}, Python ${b[i]}`));
}
