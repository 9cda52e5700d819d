import assert from "node:assert/strict";
import test from "node:test";
import { load, reference } from "./reference.mjs";

const { verdict } = await load("predict");

test("what stands below a question", () => {
  for (const [state, lines] of reference.cases) assert.deepEqual(verdict(state), lines);
});
