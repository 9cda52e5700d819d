import assert from "node:assert/strict";
import test from "node:test";
import { load, reference } from "./reference.mjs";

const { fill, write } = await load("formats");

test("a number is written as Python writes it", () => {
  for (const [x, format, text] of reference.numbers) assert.equal(write(Number(x), format), text, `${x} as ${format}`);
});

test("a sentence is filled in as Python does", () => {
  for (const [sentence, values, text] of reference.sentences) assert.equal(fill(sentence, values), text);
});
