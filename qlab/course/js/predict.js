import { control } from "./control.js";
import { child } from "./explorable.js";
import { fill } from "./numbers.js";

/** What was said and what was measured, as [a label, words] each; `guess` is none, "shown", a number or a choice's place. */
export function verdict({ guess, among, slider, measured, texts }) {
  if (guess === null || guess === undefined) return [];
  const after = fillIn(texts.measured, { measured });
  if (guess === "shown") return [after];
  const words = among.length ? among[guess] : `${guess} ${slider.unit}`.trim();
  return [fillIn(texts.said, { guess: words }), after];
}

/** The template with its {names} replaced, without an end of a sentence twice. */
function fillIn(template, values) {
  return fill(template, values).replace(/([.!?])\.$/, "$1");
}

/** Radio buttons in `form`; returns what was chosen, or null. */
function choices(form, among, chosen) {
  const set = child(form, "div", { role: "radiogroup" });
  for (const [place, text] of among.entries()) {
    const label = child(set, "label");
    const input = child(label, "input", { type: "radio", name: "guess", value: place });
    input.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes the arrow keys
    input.addEventListener("change", () => chosen(place));
    label.append(text);
  }
  return set;
}

function render({ model, el }) {
  const texts = model.get("texts");
  const [among, slider] = [model.get("among"), model.get("slider")];
  let now = null;
  el.classList.add("qlab-question");
  const form = child(el, "form");
  const question = child(form, "p");
  child(question, "strong").textContent = texts.predict;
  question.append(` ${model.get("question")}`);

  const commit = document.createElement("button");
  const chosen = (value) => {
    now = value;
    commit.disabled = false;
  };
  if (among.length) {
    choices(form, among, chosen).setAttribute("aria-label", model.get("question"));
  } else {
    const { minimum, maximum, step, unit } = slider;
    const box = child(form, "div");
    const show = control(box, (value) => {
      chosen(value);
      show({ label: texts.slider, minimum, maximum, step }, value, `${value} ${unit}`.trim());
    });
    show({ label: texts.slider, minimum, maximum, step }, (minimum + maximum) / 2, texts.unmoved);
  }
  const row = child(form, "div", { class: "qlab-buttons" });
  Object.assign(commit, { type: "submit", textContent: texts.commit, disabled: true });
  const showMe = child(row, "button", { type: "button" });
  showMe.textContent = texts.show;
  row.prepend(commit);
  for (const button of [commit, showMe]) button.dataset.lmSuppressShortcuts = "true";
  const hint = child(form, "em");
  hint.textContent = texts.covered;
  const said = child(el, "div", { role: "status", tabindex: "-1", class: "qlab-said" });

  const set = (guess) => {
    model.set("guess", guess);
    model.save_changes();
    said.focus({ preventScroll: true });
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (now !== null) set(now);
  });
  showMe.addEventListener("click", () => set("shown"));

  const follow = () => {
    const state = Object.fromEntries(["guess", "among", "slider", "measured", "texts"].map((name) => [name, model.get(name)]));
    const lines = verdict(state);
    el.classList.toggle("qlab-open", lines.length > 0); // explorables.css uncovers what stands below
    for (const part of [row, hint]) part.hidden = lines.length > 0;
    for (const input of form.querySelectorAll("input")) input.disabled = lines.length > 0;
    if (typeof state.guess === "number" && among.length) form.querySelectorAll("input")[state.guess].checked = true;
    said.replaceChildren(...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
  };
  model.on("change:guess", follow);
  model.on("change:measured", follow);
  follow();
  return () => {
    model.off("change:guess", follow);
    model.off("change:measured", follow);
  };
}

export default { render };
