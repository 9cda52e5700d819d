/** A labelled <input type=range> in `el`: a slider that a screen reader can name and that the keyboard can move.
 *
 * (The handles of ipywidgets' own sliders have no name.) `moved` is told the value that a student chooses;
 * the function that comes back shows the slider with another value.
 */
export function control(el, moved) {
  const input = document.createElement("input");
  const label = document.createElement("label"); // around the input: ids would have to be new in the whole notebook
  const name = document.createElement("span");
  const shown = document.createElement("output");
  input.type = "range";
  input.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes the arrow keys
  label.append(name, input);
  input.addEventListener("input", () => moved(input.valueAsNumber));
  el.classList.add("qlab-slider");
  el.append(label, shown);
  return ({ label: text, minimum, maximum, step = 1 }, value, said) => {
    Object.assign(input, { min: minimum, max: maximum, step });
    input.value = value;
    shown.textContent = said ?? input.value;
    if (said) input.setAttribute("aria-valuetext", said);
    else input.removeAttribute("aria-valuetext");
    name.textContent = text;
  };
}
