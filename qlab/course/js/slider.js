import { control } from "./control.js";

function render({ model, el }) {
  const show = control(el, (value) => {
    model.set("value", value);
    model.save_changes();
  });
  const follow = () =>
    show(Object.fromEntries(["label", "minimum", "maximum", "step"].map((name) => [name, model.get(name)])), model.get("value"));
  model.on("change", follow);
  follow();
  return () => model.off("change", follow);
}

export default { render };
