let made = 0;

/** A labelled <input type=range> in `el`: a slider that a screen reader can name and that the keyboard can move.
 *
 * (The handles of ipywidgets' own sliders have no name.) `moved` is told the value that a student chooses;
 * the function that comes back shows the slider with another value.
 */
export function control(el, moved) {
  const input = document.createElement("input");
  const label = document.createElement("label");
  const shown = document.createElement("output");
  input.type = "range";
  input.id = `qlab-slider-${++made}`;
  input.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes the arrow keys
  label.htmlFor = input.id;
  shown.htmlFor = input.id;
  input.addEventListener("input", () => moved(input.valueAsNumber));
  el.classList.add("qlab-slider");
  el.append(label, input, shown);
  return ({ label: text, minimum, maximum, step = 1 }, value, said) => {
    Object.assign(input, { min: minimum, max: maximum, step });
    input.value = value;
    shown.textContent = said ?? input.value;
    if (said) input.setAttribute("aria-valuetext", said);
    else input.removeAttribute("aria-valuetext");
    label.textContent = text;
  };
}
