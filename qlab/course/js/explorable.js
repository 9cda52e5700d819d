import { control } from "./control.js";

/** A new element in `parent`. */
export function child(parent, tag, attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

/** Sliders, below them a sheet of paper with the finding and the figure, below that the figure in words.
 *
 * `see` turns the controls' values into what there is to see: {finding, alt, ...}. `mount` puts the figure on
 * the sheet and returns (show, end): `show` is given what `see` saw, and the `guess` of a prediction (a number, once there is
 * one) for `Axes.guess`. Nothing here waits for the kernel.
 */
export function explorable({ model, el }, see, mount) {
  const set = (values) => {
    model.set("values", values);
    model.save_changes();
  };
  const options = model.get("sliders");
  const sliders = Object.keys(options).map((name) => [
    name,
    control(child(el, "div"), (value) => {
      const now = { ...model.get("values"), [name]: value };
      set(Object.fromEntries(Object.keys(options).map((key) => [key, now[key]])));
    }),
  ]);
  const sheet = child(el, "div", { class: "qlab-sheet" });
  const title = child(sheet, "strong", { role: "status" });
  const words = child(el, "em", { role: "status" });
  el.classList.add("qlab-explorable");
  for (const [name, colour] of Object.entries(model.get("colours"))) el.style.setProperty(`--qlab-${name}`, colour);

  const [show, end] = mount(sheet, set);
  const follow = () => {
    const values = model.get("values");
    const seen = { ...see(values), guess: model.get("guess") };
    for (const [name, move] of sliders) {
      // A value that no slider chose is said as it is: the slider itself can only stand near it.
      if (name in values) move(options[name], values[name]);
      else move(options[name], seen[name], seen.said);
    }
    title.textContent = seen.finding;
    words.textContent = seen.alt;
    show(seen);
  };
  for (const name of ["values", "guess"]) model.on(`change:${name}`, follow);
  follow();
  return () => {
    for (const name of ["values", "guess"]) model.off(`change:${name}`, follow);
    end();
  };
}
