// A labelled <input type=range>: a slider that a screen reader can name and that the keyboard can move.
// (The handles of ipywidgets' own sliders have no name.)
let made = 0;

function render({ model, el }) {
  const input = document.createElement("input");
  const label = document.createElement("label");
  const value = document.createElement("output");
  input.type = "range";
  input.id = `qlab-slider-${++made}`;
  input.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes the arrow keys
  label.htmlFor = input.id;
  value.htmlFor = input.id;

  const show = () => {
    Object.assign(input, { min: model.get("minimum"), max: model.get("maximum"), step: model.get("step") });
    input.value = model.get("value");
    value.textContent = input.value;
    label.textContent = model.get("label");
  };
  input.addEventListener("input", () => {
    model.set("value", input.valueAsNumber);
    model.save_changes();
  });
  model.on("change", show);
  show();
  el.classList.add("qlab-slider");
  el.append(label, input, value);
}

export default { render };
